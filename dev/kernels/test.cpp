// The ladders of dev/kernels in the emulator's test runner: every step, at every size of its checks.
#include <doctest/doctest.h>
#include "dev/kernels/ladder.h"

template <class Run, class Size>
static void all_right(const std::vector<Step<Run, Size>>& steps, std::vector<Check> (*check)(Run*)) {
    for (const Step<Run, Size>& step : steps)
        for (const Check& one : check(step.run))
            CHECK_MESSAGE(one.worst <= 1, step.name, ", ", one.size, ": ", one.worst, " times the tolerance");
}

TEST_CASE("ladder: every step of the norm, forward") { all_right(norm_forward_ladder(), check_norm_forward); }
TEST_CASE("ladder: every step of the norm, backward") { all_right(norm_backward_ladder(), check_norm_backward); }
TEST_CASE("ladder: every step of the cross entropy") { all_right(cross_entropy_ladder(), check_cross_entropy); }
TEST_CASE("ladder: every step of the attention, forward") { all_right(attention_ladder(), check_attention); }
TEST_CASE("ladder: every step of the attention, backward") { all_right(attention_backward_ladder(), check_attention_backward); }
