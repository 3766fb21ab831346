// The C library's math functions, declared so that `#pragma omp simd` calls their vector versions in glibc's libmvec (error at most 4 ulp).
#pragma once

extern "C" {
#pragma omp declare simd notinbranch
float expf(float) noexcept;

#pragma omp declare simd notinbranch
float erff(float) noexcept;

#pragma omp declare simd notinbranch
float tanhf(float) noexcept;
}
