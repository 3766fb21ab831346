// The activation functions of the MLP, between its two matrices.
#pragma once
#include "llmc/device/types.h"

enum class Activation { gelu, relu2 };

/// gelu (Hendrycks & Gimpel 2016, exact):  out = x/2 (1 + erf(x / sqrt 2))
/// relu2 (So et al. 2021):                 out = max(x, 0)^2
///
/// out (n)  =
/// x   (n)
/// Throws std::invalid_argument when n is not a positive multiple of 8.
void activation_forward(floatX* out, const floatX* x, int64_t n, Activation kind, Stream stream);

/// dx   (n)  =   may be dout itself
/// dout (n)
/// x    (n)      what the forward pass read
void activation_backward(floatX* dx, const floatX* dout, const floatX* x, int64_t n, Activation kind, Stream stream);
