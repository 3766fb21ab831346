// A GPU's peak, by its data sheet.
#include "llmc/ops/peak.h"
#include <string>
#include <utility>
#include "llmc/device/cuda_common.h"
#include "llmc/device/device.h"

// Dense bf16 with fp32 accumulation. A name that is not here gives 0: unknown.
static constexpr std::pair<const char*, double> BF16_PEAKS[] = {
    {"B200", 2250e12}, {"H200", 989.4e12}, {"H100 PCIe", 756e12}, {"H100", 989.4e12}, {"A100", 312e12}, {"L40S", 362e12}, {"RTX 5090", 209.5e12},
    {"RTX 4090", 165.2e12}, {"RTX 3090", 71e12}};

// Fused multiply-adds of fp32 a clock on one SM.
[[maybe_unused]] static double fp32_lanes() {
    const int major = device_attribute(cudaDevAttrComputeCapabilityMajor), minor = device_attribute(cudaDevAttrComputeCapabilityMinor);
    return major == 8 && minor == 0 ? 64 : 128;
}

double device_peak_flops() {
    const std::string device = device_name();   // an error where there is no GPU
    if constexpr (sizeof(floatX) == 4) {
        return 2 * fp32_lanes() * sm_count() * 1e3 * device_attribute(cudaDevAttrClockRate);
    } else {
        for (auto [name, flops] : BF16_PEAKS)
            if (device.find(name) != std::string::npos) return flops;
        return 0;
    }
}

size_t device_peak_bytes() { return 0; }   // nothing is measured on a GPU
