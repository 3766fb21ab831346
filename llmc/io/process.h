// What Linux says of the machine and of this process.
#pragma once
#include <cstddef>
#include <string>

/// What follows `name` and the colon in a file of /proc, or an empty string.
std::string proc_value(const std::string& path, const std::string& name);

/// Memory of this program now, and the most that it had at once. (getrusage() also counts what the process was before it ran this
/// program.)
size_t resident_bytes();
size_t peak_resident_bytes();

/// This machine's name, as other machines may know it.
std::string own_host_name();
