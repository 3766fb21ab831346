// llmc/layout.h: the place and the owner of every tensor, for every number of processes.
#include "llmc/layout.h"
#include <doctest/doctest.h>
#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include "llmc/recipe.h"

namespace {

const int COUNTS[] = {1, 2, 4, 8, 64};

struct Model {
    GPTConfig config;
    Trained trained;
};

std::vector<Model> models() {
    GPTConfig speedrun = recipe_config(SPEEDRUN, 12, 12, 768, 50304, 1024), nanochat = recipe_config(NANOCHAT, 3, 4, 96, 88, 37, "SL");
    nanochat.n_kv_head = 2;
    return {{speedrun, {}}, {nanochat, {}}, {nanochat, {.only = parse_train_only("h.1.q,wte", nanochat)}},
            {nanochat, {.only = parse_train_only("*.fc,x0_lambdas", nanochat)}}, {speedrun, {.only = {}, .embedding = false}}};
}

bool is_vector(const Tensor& tensor) { return tensor.shape.size() == 1; }

std::string refusal(const Job& job) {
    try {
        validate(job);
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

}  // namespace

TEST_CASE("layout: tensors do not overlap, q, k and v of a layer are contiguous, and all are aligned") {
    for (const Model& model : models())
        for (int processes : COUNTS) {
            CAPTURE(processes);
            const std::vector<Tensor> tensors = tensor_table(model.config);
            const Layout layout(model.config, tensors, model.trained, {0, processes, processes});
            std::map<int64_t, int64_t> used;   // begin, end
            for (size_t i = 0; i < tensors.size(); i++) {
                REQUIRE(layout.offset(i) % TENSOR_ALIGNMENT == 0);
                used[layout.offset(i)] = layout.offset(i) + tensors[i].numel;
                if (std::string(tensors[i].spec->name) == "k") REQUIRE(layout.offset(i) == layout.offset(i - 1) + tensors[i - 1].numel);
                if (std::string(tensors[i].spec->name) == "v") REQUIRE(layout.offset(i) == layout.offset(i - 1) + tensors[i - 1].numel);
                if (model.trained(tensors[i])) CHECK(layout.has_gradient(i));
            }
            REQUIRE(used.size() == tensors.size());
            int64_t end = 0;
            for (auto& [begin, after] : used) {
                REQUIRE(begin >= end);
                end = after;
            }
            CHECK(end <= layout.size());
        }
}

TEST_CASE("layout: every element has one owner, except that each process owns all lambdas; a matrix has one owner; what a process owns lies within its memory") {
    for (const Model& model : models())
        for (int processes : COUNTS) {
            CAPTURE(processes);
            const std::vector<Tensor> tensors = tensor_table(model.config);
            std::vector<int64_t> end_of(tensors.size()), owners(tensors.size());
            for (int rank = 0; rank < processes; rank++) {
                const Layout layout(model.config, tensors, model.trained, {rank, processes, processes});
                std::map<int64_t, int64_t> used;
                for (size_t i = 0; i < tensors.size(); i++) {
                    const Piece own = layout.owned(i);
                    if (own.count == 0) continue;
                    used[layout.owned_offset(i)] = layout.owned_offset(i) + own.count;
                    owners[i]++;
                    if (is_vector(tensors[i])) {
                        CHECK(own.count == tensors[i].numel);
                        continue;
                    }
                    CHECK(own.begin == end_of[i]);   // consecutive ranks own consecutive elements
                    end_of[i] = own.begin + own.count;
                    const bool by_element = rule_of(*model.config.recipe, tensors[i].spec->group).by_element();
                    if (model.trained(tensors[i]) && !by_element) CHECK(own.count == tensors[i].numel);
                }
                int64_t end = 0;
                for (auto& [begin, after] : used) {
                    REQUIRE(begin >= end);
                    end = after;
                }
                CHECK(end <= layout.owned_size());
                // The padding: slices consist of 1024 terms of whole vectors, and frozen tensors are aligned.
                const int64_t padding = (1024 / processes + 1 + 2 * static_cast<int64_t>(tensors.size())) * TENSOR_ALIGNMENT;
                if (processes <= 8 && model.trained.only.empty()) CHECK(layout.owned_size() <= layout.size() / processes * 1.02 + padding + layout.replicated.segment);
            }
            for (size_t i = 0; i < tensors.size(); i++)
                if (is_vector(tensors[i])) CHECK(owners[i] == processes);
                else CHECK(end_of[i] == tensors[i].numel);
        }
}

TEST_CASE("layout: matrices are balanced between processes by update FLOPs and by elements, as far as whole matrices allow") {
    const GPTConfig config = recipe_config(SPEEDRUN, 12, 12, 768, 50304, 1024);
    const std::vector<Tensor> tensors = tensor_table(config);
    for (auto& [processes, worst] : {std::pair{2, 1.0}, {4, 1.0}, {8, 1.0}, {16, 1.2}, {32, 1.6}}) {
        CAPTURE(processes);
        double most = 0, all = 0;
        for (int rank = 0; rank < processes; rank++) {
            const Layout layout(config, tensors, {}, {rank, processes, processes});
            double own = 0;
            for (size_t i = 0; i < tensors.size(); i++)
                if (tensors[i].spec->group == Group::matrix && layout.owned(i).count > 0)
                    own += rule_of(SPEEDRUN, Group::matrix).update_flops(tensors[i].shape);
            most = std::max(most, own);
            all += own;
        }
        CHECK(most * processes / all <= worst + 1e-9);
        if (processes > 8) continue;
        const Layout layout(config, tensors, {}, {0, processes, processes});
        CHECK(layout.whole.segment * processes == 12 * 12 * 768 * 768);   // nothing is padded
    }
}

TEST_CASE("layout: the terms of the gradient norm are the same for every number of processes, and cover all gradients once") {
    for (const Model& model : models()) {
        const std::vector<Tensor> tensors = tensor_table(model.config);
        // A term as pieces of tensors, in order: which tensor, from which element, how many.
        auto terms_of = [&](int processes) {
            const Layout layout(model.config, tensors, model.trained, {0, processes, processes});
            std::vector<std::vector<std::tuple<size_t, int64_t, int64_t>>> terms;
            for (const Layout::Term& term : layout.terms()) {
                auto& pieces = terms.emplace_back();
                for (size_t i = 0; i < tensors.size(); i++) {
                    const int64_t begin = std::max(term.begin, layout.offset(i)), end = std::min(term.begin + term.count, layout.offset(i) + tensors[i].numel);
                    if (begin < end) pieces.emplace_back(i, begin - layout.offset(i), end - begin);
                }
                const int owner = term.owner;
                if (owner >= 0)   // it owns all of the pieces
                    for (auto& [i, begin, count] : pieces) {
                        const Piece own = layout.owned(i, owner);
                        CHECK(own.begin <= begin);
                        CHECK(own.begin + own.count >= begin + count);
                    }
            }
            return terms;
        };
        const auto one = terms_of(1);
        for (int processes : COUNTS) CHECK(terms_of(processes) == one);
        std::vector<int64_t> covered(tensors.size());
        for (const auto& term : one)
            for (auto& [i, begin, count] : term) covered[i] += count;
        for (size_t i = 0; i < tensors.size(); i++)
            if (model.trained(tensors[i])) CHECK(covered[i] == tensors[i].numel);
    }
}

TEST_CASE("job: numbers of processes that fit the parts, and the way out for those that do not") {
    for (int processes : COUNTS) CHECK(refusal({0, processes, 64}) == "");
    CHECK(refusal({0, 1, 1}) == "");
    CHECK(refusal({0, 2, 1}).find("2 processes cannot share 1 part of a step (--parts); start 1, or give --parts") == 0);
    CHECK(refusal({0, 3, 4}).find("3 processes cannot share 4 parts of a step (--parts); start 1, 2 or 4, or give") == 0);
    CHECK(refusal({0, 8, 4}).find("start 1, 2 or 4") != std::string::npos);
    for (int parts : {0, 3, 6, 2048, -1}) CHECK(refusal({0, 1, parts}).find("must be a power of two up to 1024") != std::string::npos);
}
