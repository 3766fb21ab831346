// Ranges on the CPU: a table of times.
#include "llmc/device/profile.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <vector>
#include "llmc/io/error.h"

using Clock = std::chrono::steady_clock;

namespace {
struct Row {
    int64_t calls = 0;
    double seconds = 0, own = 0;   // own: without the ranges inside
};
struct Open {
    Row* row;   // in a std::map, whose elements do not move
    Clock::time_point start;
    double inside;
};
struct Profile {
    bool on = false;
    std::map<std::string, Row> rows;
    std::vector<Open> open;   // innermost last
};
}  // namespace

// Of the thread that calls the ops; ranges of other threads are not counted.
static thread_local Profile profile;

static bool begin(std::string name) {
    Row& row = profile.rows[std::move(name)];   // memory is taken here: a destructor must not run out of it
    profile.open.push_back({&row, Clock::now(), 0});
    return true;
}

Range::Range(const char* name) : counted(profile.on && begin(name)) {}
Range::Range(const char* name, int number) : counted(profile.on && begin(concat(name, " ", number))) {}

Range::~Range() {
    if (!counted || !profile.on) return;
    const Open range = profile.open.back();
    profile.open.pop_back();
    const double seconds = std::chrono::duration<double>(Clock::now() - range.start).count();
    range.row->calls++;
    range.row->seconds += seconds;
    range.row->own += seconds - range.inside;
    if (!profile.open.empty()) profile.open.back().inside += seconds;
}

bool profiling() { return profile.on; }

void profile_start() {
    profile = {};
    profile.on = true;
}

std::string profile_stop() {
    profile.on = false;
    std::vector<std::pair<std::string, Row>> rows;
    for (const auto& [name, row] : profile.rows)
        if (row.calls > 0) rows.emplace_back(name, row);   // a range that is still open has none
    std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.own > b.second.own; });
    double all = 0;
    for (auto& [name, row] : rows) all += row.own;
    std::string table = "profile: range                       calls        ms    own ms   share\n";
    for (auto& [name, row] : rows) {
        char line[160];
        std::snprintf(line, sizeof line, "profile: %-26s %7ld %9.2f %9.2f %6.1f%%\n", name.c_str(), static_cast<long>(row.calls), row.seconds * 1e3,
                      row.own * 1e3, 100 * row.own / all);
        table += line;
    }
    profile = {};
    return table;
}
