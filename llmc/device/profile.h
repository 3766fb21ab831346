// Named ranges of time, for people who profile: phases of a step, layers, ops. On CUDA they are NVTX ranges, which Nsight shows over
// the kernels; on the CPU, where an op is done when it returns, their times are added up to a table.
#pragma once
#include <string>

/// A range until the end of its scope, inside the one that is open. Costs next to nothing while nobody profiles.
class Range {
public:
    explicit Range(const char* name);
    /// "layer 3"
    Range(const char* name, int number);
    ~Range();
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;

private:
    bool counted = false;   // CPU: opened while a profile is made
};

/// From here to profile_stop() ranges are timed: on CUDA by the profiler that waits for cudaProfilerStart, on the CPU by Range itself.
void profile_start();
/// One line a range name: calls, milliseconds with and without the ranges inside, share. Empty on CUDA: the profiler has it.
std::string profile_stop();
/// True between the two. Work is then launched op by op, never replayed from a CUDA graph, so that every range shows.
bool profiling();
