// NVTX for the emulator: ranges name what runs, in errors.
#pragma once
#include "../emulator.h"

inline int nvtxRangePushA(const char* name) { return emulator_push_name(name), 0; }
inline int nvtxRangePop() { return emulator_pop_name(), 0; }
