// Test cases that need what a machine may lack; without it they are reported, and counted as skipped.
#pragma once
#include <doctest/doctest.h>
#ifndef PRECISION_ANY
#include "llmc/device/types.h"
#include "llmc/ops/matmul.h"
#endif

/// TEST_CASE("..." * Needs{is_there(), "what"}): without it, the case is skipped. (doctest::skip is for a case that is meaningless in a
/// build, on any machine; it is not counted.)
struct Needs {
    bool there;
    const char* what;

    /// The case remains visible to filters; test/main.cpp recognizes it by its description.
    void fill(doctest::detail::TestCase& test) const {
        if (!there) test.m_description = what, test.m_test = [] {};
    }
};

#ifndef PRECISION_ANY   // suites that are compiled once for all precisions have no matmuls
/// For a case with matmuls: oneDNN may have none in bf16 for a CPU (2.6 on AVX2).
inline Needs needs_matmul() {
    static const bool there = matmul_supported();
    return {there, sizeof(floatX) == 4 ? "fp32 matmuls" : "bf16 matmuls"};
}
#endif
