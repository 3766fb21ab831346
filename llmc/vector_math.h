// The C library's math functions as glibc's libmvec vectorizes them inside `#pragma omp simd` (error at most 4 ulp).
#pragma once

#ifdef __x86_64__
#pragma omp declare simd notinbranch
#endif
extern "C" float expf(float) noexcept;

#ifdef __x86_64__
#pragma omp declare simd notinbranch
#endif
extern "C" float erff(float) noexcept;

#ifdef __x86_64__
#pragma omp declare simd notinbranch
#endif
extern "C" float tanhf(float) noexcept;
