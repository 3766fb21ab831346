// What is special to a build with ISA=avx2.
#ifdef ISA_AVX2
#include <dnnl.h>
#include <doctest/doctest.h>
#include "llmc/device/device.h"

TEST_CASE("ISA=avx2: oneDNN is limited to AVX2 before its first call, and the device's name says so") {
    CHECK(dnnl_get_effective_cpu_isa() == dnnl_cpu_isa_avx2);
    CHECK(device_name().ends_with(", AVX2 (ISA=avx2)"));
}
#endif
