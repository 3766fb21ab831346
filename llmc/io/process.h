// Facts about this process and machine, from Linux.
#pragma once
#include <cstddef>
#include <string>

/// The text after `name:` in a file of /proc, or an empty string.
std::string proc_value(const std::string& path, const std::string& name);

/// Resident memory of this program, now and at its peak. (Not from getrusage(), which also counts the process before exec.)
size_t resident_bytes();
size_t peak_resident_bytes();

/// The host name of this machine.
std::string own_host_name();
