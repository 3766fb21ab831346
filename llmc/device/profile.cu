// Ranges on CUDA: NVTX, and the profiler's start and stop.
#include "llmc/device/profile.h"
#include <cuda_profiler_api.h>
#include <nvtx3/nvToolsExt.h>
#include "llmc/device/cuda_check.h"

static bool on = false;

Range::Range(const char* name) { nvtxRangePushA(name); }
Range::Range(const char* name, int number) { nvtxRangePushA(concat(name, " ", number).c_str()); }
Range::~Range() { nvtxRangePop(); }

bool profiling() { return on; }

void profile_start() {
    cuda_check(cudaStreamSynchronize(cudaStreamPerThread), "profile_start");   // the step before
    cuda_check(cudaProfilerStart(), "profile_start");
    on = true;
}

std::string profile_stop() {
    cuda_check(cudaStreamSynchronize(cudaStreamPerThread), "profile_stop");
    cuda_check(cudaProfilerStop(), "profile_stop");
    on = false;
    return "";
}
