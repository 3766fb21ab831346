// Batch, steps, tokens and FLOPs of a run.
#include "llmc/plan.h"
#include <algorithm>
#include <cmath>
#include <limits>
#include "llmc/io/error.h"
#include "llmc/tensors.h"

static int64_t scaled_batch(const PlanInput& in) {
    double size = double(in.matmul_params) / double(in.reference_params);
    return int64_t{1} << std::max(0L, std::lrint(std::log2(double(in.tuned_batch) * std::pow(size, in.scaling->batch_exponent))));
}

/// Passes over a batch in that many steps: a step with looping makes two.
static double passes(double steps, int64_t coconut_every) {
    return coconut_every > 0 ? steps + std::ceil(steps / double(coconut_every)) : steps;
}

static double wanted_steps(const PlanInput& in, int64_t batch) {
    if (in.steps) return double(*in.steps - in.before.steps);
    if (in.param_data_ratio)
        return std::floor((*in.param_data_ratio * double(in.matmul_params) - double(in.before.tokens)) / double(batch));
    double step_flops = double(in.flops_per_token) * double(batch);
    if (in.coconut_every > 0) step_flops *= 1 + 1 / double(in.coconut_every);
    return std::nearbyint((*in.total_flops - in.before.flops) / step_flops);
}

static void require_one_horizon(const PlanInput& in) {
    int given = in.steps.has_value() + in.total_flops.has_value() + in.param_data_ratio.has_value();
    require(given == 1, given, " of --steps, --total-flops and --param-data-ratio are given, but it must be one");
    if (in.total_flops) require(*in.total_flops > 0 && std::isfinite(*in.total_flops), "--total-flops is ", *in.total_flops, ", but must be above 0");
    if (in.param_data_ratio)
        require(*in.param_data_ratio > 0 && std::isfinite(*in.param_data_ratio), "--param-data-ratio is ", *in.param_data_ratio,
                ", but must be above 0 (tokens per matmul parameter)");
}

/// Throws unless a batch is a whole number of micro-batches, equally many in each part; returns their number.
static int64_t count_micro_batches(const PlanInput& in, int64_t batch) {
    require(in.device_batch >= 1 && in.seq_len >= 1 && in.parts >= 1, "device_batch (", in.device_batch, "), seq_len (", in.seq_len,
            ") and parts (", in.parts, ") must be 1 or more");
    int64_t micro_batch, of_parts;
    bool overflow = __builtin_mul_overflow(in.device_batch, in.seq_len, &micro_batch) || __builtin_mul_overflow(micro_batch, in.parts, &of_parts);
    require(!overflow, "device_batch x seq_len x parts (", in.device_batch, " x ", in.seq_len, " x ", in.parts, ") is beyond 64 bits");
    int64_t below = batch / of_parts * of_parts;
    require(batch >= 1 && below == batch, "batch_tokens (", batch, ") must be a multiple of device_batch x seq_len", in.parts > 1 ? " x parts" : "", " (",
            in.device_batch, " x ", in.seq_len, in.parts > 1 ? concat(" x ", in.parts) : "", " = ", of_parts, "); use --batch-tokens ",
            std::max(below, of_parts), " or a smaller --device-batch");
    return batch / micro_batch;
}

Plan make_plan(const PlanInput& in) {
    require_one_horizon(in);
    Plan plan{};
    plan.batch_tokens = in.batch_tokens ? *in.batch_tokens : in.scaling ? scaled_batch(in) : in.tuned_batch;
    plan.micro_batches = count_micro_batches(in, plan.batch_tokens);

    const double steps = wanted_steps(in, plan.batch_tokens), tokens = steps * double(plan.batch_tokens);
    require(steps >= 1 || in.before.steps == 0, "the schedule continues after ", in.before.steps, " steps, ", in.before.tokens,
            " tokens, ", in.before.flops,
            " FLOPs, which is the whole horizon: give more --steps, --total-flops or --param-data-ratio, or --schedule restart");
    require(steps >= 1, "the horizon is less than one step of batch_tokens (", plan.batch_tokens,
            "): use more --steps, --total-flops or --param-data-ratio, or fewer --batch-tokens");
    require(double(in.before.steps) < 0x1p62, "the schedule is at step ", in.before.steps,
            ", more than can be counted in 62 bits; use --schedule restart");
    require(tokens < 0x1p62, "the horizon, ", steps, " steps of ", plan.batch_tokens, " tokens, is more than can be counted in 62 bits");
    plan.steps = static_cast<int64_t>(steps);
    plan.tokens = plan.steps * plan.batch_tokens;
    plan.schedule_steps = in.before.steps + plan.steps;
    plan.total_flops = double(in.flops_per_token) * double(plan.batch_tokens) * passes(steps, in.coconut_every);

    plan.lr_scale = in.scaling ? std::sqrt(double(plan.batch_tokens) / double(in.tuned_batch)) : 1;
    plan.weight_decay_scale = in.scaling ? plan.lr_scale * double(in.reference_params) / double(in.matmul_params) : 1;
    return plan;
}

int64_t reference_params(const GPTConfig& config) {
    const Recipe& recipe = *config.recipe;
    if (!recipe.scaling) return matmul_params(config);
    const int width = static_cast<int>(default_width(recipe, recipe.scaling->depth));
    GPTConfig tuned = recipe_config(recipe, recipe.scaling->depth, default_heads(recipe, width), width, config.vocab_size, config.seq_len, config.window_pattern);
    tuned.n_kv_head = std::max(1, tuned.n_head * config.n_kv_head / config.n_head);
    return matmul_params(tuned);
}
