// Ranges of time, and the table that the CPU makes of them.
#include "llmc/device/profile.h"
#include <doctest/doctest.h>
#include <chrono>
#include <cmath>
#include <sstream>
#include <string>
#include <thread>

namespace {

void work(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

struct Row {
    bool there = false;
    long calls = 0;
    double ms = 0, own = 0;
};
Row row(const std::string& table, const std::string& name) {
    Row found;
    std::istringstream lines(table);
    for (std::string line; std::getline(lines, line);) {
        if (line.compare(0, 9 + name.size() + 1, "profile: " + name + " ") != 0) continue;
        std::istringstream rest(line.substr(9 + name.size()));
        rest >> found.calls >> found.ms >> found.own;
        found.there = static_cast<bool>(rest);
    }
    return found;
}

TEST_CASE("profile: a range counts its calls, and its own time leaves out the ranges inside") {
    { Range before("before"); }
    CHECK(!profiling());
    profile_start();
    CHECK(profiling());
    {
        Range outer("outer");
        work(20);
        for (int i = 0; i < 3; i++) {
            Range inner("inner", i % 2);
            work(10);
        }
    }
    const std::string table = profile_stop();
    CHECK(!profiling());
    { Range after("after"); }
    if (table.empty()) return;   // on CUDA the profiler has the times

    const Row outer = row(table, "outer"), even = row(table, "inner 0"), odd = row(table, "inner 1");
    CHECK(outer.calls == 1);
    CHECK(even.calls == 2);
    CHECK(odd.calls == 1);
    // A sleep takes at least its time. Sums are exact to the last digit that is printed, 0.01 ms, of four numbers.
    CHECK(even.own >= 20);
    CHECK(odd.own >= 10);
    CHECK(outer.own >= 20);
    CHECK(std::abs(outer.ms - (outer.own + even.ms + odd.ms)) <= 0.04);
    CHECK(even.ms == even.own);
    for (const char* name : {"before", "after"}) CHECK(!row(table, name).there);
}

TEST_CASE("profile: a new one begins empty; a range that is open when it begins or ends is left out") {
    {
        Range across("across");
        profile_start();
        Range inside("inside");
    }
    std::string table = profile_stop();
    profile_start();
    {
        Range cut("cut");
        table += profile_stop();
    }
    CHECK(!row(table, "across").there);
    CHECK(!row(table, "cut").there);
    if (!table.empty()) CHECK(row(table, "inside").calls == 1);
}

}  // namespace
