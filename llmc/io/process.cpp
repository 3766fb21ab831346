#include "llmc/io/process.h"
#include <unistd.h>
#include <climits>
#include <cstdlib>
#include <fstream>

std::string proc_value(const std::string& path, const std::string& name) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        size_t colon = line.find(':');
        if (line.compare(0, name.size(), name) != 0 || colon == std::string::npos) continue;
        size_t value = line.find_first_not_of(" \t", colon + 1);
        return value == std::string::npos ? "" : line.substr(value);
    }
    return "";
}

static size_t status_bytes(const std::string& name) { return std::strtoull(proc_value("/proc/self/status", name).c_str(), nullptr, 10) << 10; }

size_t resident_bytes() { return status_bytes("VmRSS"); }
size_t peak_resident_bytes() { return status_bytes("VmHWM"); }

std::string own_host_name() {
    char name[HOST_NAME_MAX + 1] = "";
    return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}
