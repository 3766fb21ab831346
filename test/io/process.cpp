// Values of this process in /proc.
#include "llmc/io/process.h"
#include <cstring>
#include <doctest/doctest.h>
#include <string>
#include <unistd.h>
#include <vector>

TEST_CASE("process: values of /proc by name, and none for an unknown name") {
    CHECK(proc_value("/proc/self/status", "Pid") == std::to_string(getpid()));
    CHECK(proc_value("/proc/self/status", "nothing of this name").empty());
    CHECK(proc_value("/proc/there/is/no/such/file", "Pid").empty());
}

TEST_CASE("process: freed memory still counts in the peak") {
    const size_t before = resident_bytes(), bytes = size_t{256} << 20;
    CHECK(before > 0);
    {
        std::vector<char> block(bytes);
        std::memset(block.data(), 1, bytes);
        CHECK(resident_bytes() >= before + bytes / 2);
    }
    CHECK(peak_resident_bytes() >= before + bytes / 2);
    CHECK(resident_bytes() < before + bytes / 2);
}
