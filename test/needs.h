// Cases that this machine cannot run: they are named, and counted as skipped.
#pragma once
#include <doctest/doctest.h>
#ifndef PRECISION_ANY
#include "llmc/device/types.h"
#include "llmc/ops/matmul.h"
#endif

/// TEST_CASE("..." * Needs{is_it_there(), "what"}): without it, the case is skipped. (doctest::skip is for a case that has no meaning in a
/// build, whatever the machine: it is not counted.)
struct Needs {
    bool there;
    const char* what;

    /// The case stays among those that filters choose from; test/main.cpp knows it by its description.
    void fill(doctest::detail::TestCase& test) const {
        if (!there) test.m_description = what, test.m_test = [] {};
    }
};

#ifndef PRECISION_ANY   // suites that are compiled once for all precisions have no matmul
/// A case whose op needs matmuls: oneDNN may have none in bf16 for a CPU (2.6 on AVX2).
inline Needs needs_matmul() {
    static const bool there = matmul_supported();
    return {there, sizeof(floatX) == 4 ? "matmul in fp32" : "matmul in bf16"};
}
#endif
