// The C library's math functions as glibc's libmvec vectorizes them inside `#pragma omp simd` (error at most 4 ulp).
#pragma once

extern "C" {
#pragma omp declare simd notinbranch
float expf(float) noexcept;

#pragma omp declare simd notinbranch
float erff(float) noexcept;

#pragma omp declare simd notinbranch
float tanhf(float) noexcept;
}
