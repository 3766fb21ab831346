// The plan of a run, against the published accounting of the growth study, and against its rules computed independently.
#include "llmc/plan.h"
#include <doctest/doctest.h>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include "llmc/tensors.h"

static PlanInput input_of(const GPTConfig& config, bool scaling) {
    PlanInput in;
    in.matmul_params = matmul_params(config);
    in.reference_params = reference_params(config);
    in.flops_per_token = flops_per_token(config);
    in.tuned_batch = config.recipe->batch_tokens;
    if (scaling) in.scaling = config.recipe->scaling;
    in.device_batch = 8;
    in.seq_len = config.seq_len;
    return in;
}

static Plan plan_of_ratio(PlanInput in, double ratio) {
    in.param_data_ratio = ratio;
    return make_plan(in);
}

static std::string error_of(const PlanInput& in) {
    try {
        make_plan(in);
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

static bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Published to three digits.
static doctest::Approx published(double value) { return doctest::Approx(value).epsilon(5e-3); }
// Square roots and ratios in double.
static doctest::Approx close(double value) { return doctest::Approx(value).epsilon(1e-14); }

TEST_CASE("plan: d12 of the growth study") {
    const GPTConfig d12 = recipe_config(NANOCHAT, 12, 6, 768, 32768, 2048, "SSSL");
    const PlanInput in = input_of(d12, true);
    CHECK(in.matmul_params == 110101632);
    CHECK(in.reference_params == 110101632);
    CHECK(in.flops_per_token == 802167552);

    Plan plan = plan_of_ratio(in, 10.5);
    CHECK(plan.batch_tokens == 524288);
    CHECK(plan.micro_batches == 32);
    CHECK(plan.steps == 2205);
    CHECK(plan.tokens == 2205 * int64_t{524288});
    CHECK(plan.total_flops == published(9.27e17));
    CHECK(plan.lr_scale == 1);
    CHECK(plan.weight_decay_scale == 1);

    plan = plan_of_ratio(in, 9.30);
    CHECK(plan.steps == 1953);
    CHECK(plan.total_flops == published(8.21e17));
}

TEST_CASE("plan: d6s12, the shallow round: its scaling rules use d12 with the same vocabulary as the reference model") {
    const GPTConfig shallow = recipe_config(NANOCHAT, 6, 6, 768, 32768, 2048, "SSSL");
    const PlanInput in = input_of(shallow, true);
    CHECK(in.matmul_params == 67633728);
    CHECK(in.reference_params == 110101632);
    CHECK(in.flops_per_token == 481299840);
    const Plan plan = plan_of_ratio(in, 3.25);
    CHECK(plan.batch_tokens == 524288);                       // 2^18.73
    CHECK(plan.steps == 419);
    CHECK(plan.total_flops == published(1.06e17));
    CHECK(plan.lr_scale == 1);
    CHECK(plan.weight_decay_scale == close(110101632.0 / 67633728));
}

TEST_CASE("plan: larger and smaller models, against the reference's accounting and nanochat's rules in Python") {
    struct Row {
        int depth, heads, width, vocab, seq_len;
        int64_t batch, steps;
        double lr_scale, weight_decay_scale;
    };
    for (const Row& r : {Row{16, 8, 1024, 32768, 2048, 524288, 4704, 1, 0.46875081742800095},
                         Row{20, 10, 1280, 32768, 2048, 1048576, 4357, 1.4142135623730951, 0.35781418262258136},
                         Row{26, 13, 1664, 32768, 2048, 1048576, 9196, 1.4142135623730951, 0.169536866983501},
                         Row{4, 2, 256, 4096, 256, 131072, 336, 0.5, 10.499816900119015}}) {
        const Plan plan = plan_of_ratio(input_of(recipe_config(NANOCHAT, r.depth, r.heads, r.width, r.vocab, r.seq_len, "SSSL"), true), 10.5);
        CAPTURE(r.depth);
        CHECK(plan.batch_tokens == r.batch);
        CHECK(plan.steps == r.steps);
        CHECK(plan.lr_scale == close(r.lr_scale));
        CHECK(plan.weight_decay_scale == close(r.weight_decay_scale));
    }
}

TEST_CASE("plan: an explicit batch size scales learning rate and decay, and a horizon in FLOPs is rounded to steps") {
    PlanInput in = input_of(recipe_config(NANOCHAT, 4, 2, 256, 4096, 256, "SSSL"), true);
    in.batch_tokens = 16384;
    in.total_flops = 1e13;                                    // 22.495 steps
    Plan plan = make_plan(in);
    CHECK(plan.micro_batches == 8);
    CHECK(plan.steps == 22);
    CHECK(plan.total_flops == 22.0 * 16384 * 27132672);
    CHECK(plan.lr_scale == close(0.1767766952966369));
    CHECK(plan.weight_decay_scale == close(3.712245865645635));
    in.total_flops = 22.51 * 16384 * 27132672;
    CHECK(make_plan(in).steps == 23);

    in.total_flops.reset();
    in.steps = 100;
    plan = make_plan(in);
    CHECK(plan.steps == 100);
    CHECK(plan.tokens == 1638400);
    CHECK(plan.lr_scale == close(0.1767766952966369));
}

TEST_CASE("plan: without scaling, the batch has 2^19 tokens and the rates are unchanged") {
    PlanInput in = input_of(recipe_config(SPEEDRUN, 12, 12, 768, 50304, 1024), false);
    in.steps = 6200;
    const Plan plan = make_plan(in);
    CHECK(plan.batch_tokens == 524288);
    CHECK(plan.tokens == 3250585600);                         // the stacking study's 3.25 B
    CHECK(plan.lr_scale == 1);
    CHECK(plan.weight_decay_scale == 1);
    in.batch_tokens = 8192;
    CHECK(make_plan(in).lr_scale == 1);
}

TEST_CASE("plan: looping steps count twice in FLOPs, also the first step") {
    PlanInput in = input_of(recipe_config(SPEEDRUN, 2, 2, 64, 512, 64), false);
    in.batch_tokens = 512;
    in.steps = 21;
    const double flops_of_step = make_plan(in).total_flops / 21;
    in.coconut_every = 10;
    CHECK(make_plan(in).total_flops == close(24 * flops_of_step));      // steps 0, 10 and 20
    in.steps.reset();
    in.total_flops = 110 * flops_of_step;
    CHECK(make_plan(in).steps == 100);
    CHECK(make_plan(in).total_flops == close(110 * flops_of_step));
}

TEST_CASE("plan: the reference model of the scaling rules has the model's ratio of key/value heads") {
    GPTConfig config = recipe_config(NANOCHAT, 4, 6, 768, 32768, 2048, "L");
    const int64_t all = reference_params(config);
    config.n_kv_head = 2;
    // In 12 layers, two matrices of 768 x 768 become 768 x 256, and 6 gates of 32 x 6 become 32 x 2.
    CHECK(all - reference_params(config) == 12 * 2 * 768 * 512 + 6 * 32 * 4);
}

TEST_CASE("plan: refusals name the rule, the values and the way out") {
    PlanInput good = input_of(recipe_config(NANOCHAT, 4, 2, 256, 4096, 256, "SSSL"), true);
    good.steps = 10;
    CHECK(error_of(good).empty());

    PlanInput in = good;
    in.batch_tokens = 5000;
    CHECK(error_of(in) == "batch_tokens (5000) must be a multiple of device_batch x seq_len (8 x 256 = 2048); use --batch-tokens 4096 or a smaller --device-batch");
    in.batch_tokens = 100;
    CHECK(has(error_of(in), "use --batch-tokens 2048"));
    for (int64_t batch : {0, -2048}) {
        in.batch_tokens = batch;
        CHECK(has(error_of(in), "must be a multiple"));
    }
    in = good;
    in.parts = 3;
    CHECK(has(error_of(in), "device_batch x seq_len x parts (8 x 256 x 3 = 6144)"));
    in.device_batch = in.seq_len = int64_t{1} << 31;
    CHECK(has(error_of(in), "beyond 64 bits"));
    in.device_batch = 0;
    CHECK(has(error_of(in), "must be 1 or more"));

    in = good;
    in.steps.reset();
    CHECK(has(error_of(in), "0 of --steps, --total-flops and --param-data-ratio"));
    in.total_flops = 1e15;
    in.param_data_ratio = 10;
    CHECK(has(error_of(in), "2 of --steps"));

    for (double bad : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
        in = good;
        in.steps.reset();
        in.total_flops = bad;
        CHECK(has(error_of(in), "--total-flops is"));
        in.total_flops.reset();
        in.param_data_ratio = bad;
        CHECK(has(error_of(in), "--param-data-ratio is"));
    }

    in = good;
    for (int64_t steps : {int64_t{0}, int64_t{-5}}) {
        in.steps = steps;
        CHECK(has(error_of(in), "less than one step"));
    }
    in.steps = std::numeric_limits<int64_t>::max();
    CHECK(has(error_of(in), "more than can be counted"));
    in.steps.reset();
    in.total_flops = 1;
    CHECK(has(error_of(in), "less than one step of batch_tokens (131072)"));
    in.total_flops = 1e300;
    CHECK(has(error_of(in), "more than can be counted"));
    in.total_flops.reset();
    in.param_data_ratio = 1e-3;
    CHECK(has(error_of(in), "less than one step"));
}

TEST_CASE("plan: a run that continues a schedule gets the remaining part of the horizon") {
    PlanInput in = input_of(recipe_config(NANOCHAT, 12, 6, 768, 32768, 2048, "SSSL"), true);
    PlanInput whole = in;
    in.before = {.steps = 1000, .tokens = 1000 * int64_t{524288}, .flops = 1000 * 524288.0 * 802167552.0};
    whole.param_data_ratio = in.param_data_ratio = 10.5;
    Plan plan = make_plan(in);
    CHECK(plan.steps == 1205);
    CHECK(plan.schedule_steps == 2205);
    CHECK(plan.tokens == 1205 * int64_t{524288});
    CHECK(plan.total_flops == close(make_plan(whole).total_flops * 1205 / 2205));   // of this run alone
    in.param_data_ratio.reset();
    in.total_flops = make_plan(whole).total_flops;
    CHECK(make_plan(in).steps == 1205);
    in.total_flops.reset();
    in.steps = 1001;
    CHECK(make_plan(in).steps == 1);
    in.steps = 1000;
    CHECK(has(error_of(in), "the schedule continues after 1000 steps, 524288000 tokens"));
    // After a shallow model: its FLOPs count as they were.
    in.steps.reset();
    in.before.flops /= 2;
    in.total_flops = make_plan(whole).total_flops;
    CHECK(make_plan(in).steps == 1705);
    CHECK(make_plan(in).schedule_steps == 2705);
}

TEST_CASE("plan: FLOPs of frozen matrices: 4 per parameter, 2 where nothing below trains") {
    const GPTConfig c = recipe_config(SPEEDRUN, 3, 2, 32, 96, 24), nanochat = recipe_config(NANOCHAT, 4, 2, 64, 128, 32, "SL");
    const int64_t C = 32, head = 96 * C, qkv = 3 * C * C, proj = C * C, fc = 4 * C * C, layer = qkv + proj + 2 * fc,
                  attention = C * 24;
    auto flops = [&](const std::string& patterns) { return flops_per_token(c, {.only = parse_train_only(patterns, c)}); };
    CHECK(flops("*") == flops_per_token(c));
    CHECK(flops_per_token(c) == 6 * (3 * layer + head) + 3 * 12 * attention);
    CHECK(flops_per_token(c, {.only = {}, .embedding = false}) == flops_per_token(c));   // as the stacking study counts
    CHECK(flops("h.2.*") == 2 * 2 * layer + 6 * layer + 4 * head + (4 + 4 + 12) * attention);
    CHECK(flops("h.1.fc") == 2 * layer + (2 * (qkv + proj) + 6 * fc + 4 * fc) + 4 * layer + 4 * head + (4 + 4 + 12) * attention);
    CHECK(flops("h.1.fc_proj") == 2 * layer + (2 * (qkv + proj + fc) + 6 * fc) + 4 * layer + 4 * head + (4 + 4 + 12) * attention);
    CHECK(flops("h.1.v") == 2 * layer + 4 * layer + 2 * C * C - 2 * 2 * C * C + 4 * layer + 4 * head + (4 + 12 + 12) * attention);
    CHECK(flops("wte") == 4 * 3 * layer + 6 * head + 3 * 12 * attention);   // tied: wte is also the head
    // An untied head alone: its input needs no gradient.
    const int64_t all = flops_per_token(nanochat), nano_head = 128 * 64, nano_attention = 64 * (16 + 32 + 16 + 32);
    const int64_t layers = (all - 6 * nano_head - 12 * nano_attention) / 6;
    CHECK(flops_per_token(nanochat, {.only = {"lm_head"}}) == 2 * layers + 6 * nano_head + 4 * nano_attention);
    CHECK(flops_per_token(nanochat, {.only = {"x0_lambdas"}}) == 4 * (layers + nano_head) + 12 * nano_attention);
    CHECK(flops_per_token(nanochat, {.only = {"wte"}}) == 4 * (layers + nano_head) + 12 * nano_attention);
}

TEST_CASE("plan: patterns of --train-only") {
    const GPTConfig c = recipe_config(NANOCHAT, 12, 2, 64, 128, 32);
    auto names = [&](const std::string& text) {
        const Trained trained{.only = parse_train_only(text, c)};
        std::string all;
        for (const Tensor& tensor : tensor_table(c))
            if (trained(tensor)) all += tensor.name + " ";
        return all;
    };
    CHECK(names("h.10-11.fc") == "h.10.fc h.11.fc ");
    CHECK(names("lm_head,wte") == "wte lm_head ");
    CHECK(names("h.1.q") == "h.1.q ");
    CHECK(names("h.1*.q") == "h.1.q h.10.q h.11.q ");
    CHECK(names("h.3-3.ve*") == "h.3.ve h.3.ve_gate ");
    CHECK(names("*lambdas") == "resid_lambdas x0_lambdas ");
    auto error = [&](const std::string& text) {
        try {
            parse_train_only(text, c);
        } catch (const std::invalid_argument& refused) {
            return std::string(refused.what());
        }
        return std::string();
    };
    for (const char* wrong : {"foo", "", ",", "wte,", "h.0.ve", "h.12.q", "h.0", "fc", "h.*.fc2", "H.1.fc"})
        CHECK(has(error(wrong), "' matches no tensor of the model"));
    CHECK(error("wte,h.6-12.*") == "--train-only h.6-12.*: layers 6 to 12, but the model has layers 0 to 11");
    CHECK(has(error("h.5-3.fc"), "layers 5 to 3"));
    CHECK(has(error("h.2-3.foo"), "matches no tensor"));
}
