// One checkpoint -> a deeper one, by copies of its layers and by new ones (the depth growth study; README.md).
#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include "llmc/io/flags.h"
#include "llmc/lineage.h"
#include "llmc/rewrite.h"
#include "llmc/tensors.h"

static std::string orders_help() {
    std::string text = "which layer goes where, one of:";
    for (const GrowthOperator& op : growth_operators()) text += concat("\n", op.name, ": ", op.help);
    return text;
}

/// The optional flags of growth: each is declared by a line of the constructor, with the member of GrowthOptions that it sets.
class GrowthFlags {
public:
    explicit GrowthFlags(Flags& table) : flags(table) {
        set(&GrowthOptions::factor, flags.number("--factor", Nothing<int>{}, 1, MAX_LAYERS, "how many times deeper"));
        set(&GrowthOptions::depth,
            flags.number("--depth", Nothing<int>{}, 1, MAX_LAYERS,
                         "how many layers, as many as the model's L or more, also no multiple of them: layer n then comes\n"
                         "from n mod L by stack, and from floor(n L / D) by interleave"));
        set(&GrowthOptions::middle, flags.text("--middle", Nothing<std::string>{},
                                               "A:B: layers that middle repeats, both included (all but the first and the last)"));
        set(&GrowthOptions::drop,
            flags.number("--drop", Nothing<int>{}, 0, MAX_LAYERS, "layers that solar leaves out of each of its two copies"));
        choose(&GrowthOptions::at, "--at",
               concat("where new layers go; middle: behind half of the old ones (", operators_that_take("--at"), "; top)"));
        choose(&GrowthOptions::value_embeds, "--value-embeds",
               "layer: value embeddings go with their layer (default); pattern: they stay only where the\n"
               "deeper model's own pattern has them (all but zero)");
        set(&GrowthOptions::damp,
            flags.text("--damp", Nothing<std::string>{},
                       "X: both branches of the added uses of a layer times X; 1/copies: of every use of a layer that is\n"
                       "used more than once. Attention by its scale in the configuration, the MLP by fc_proj in the weights"));
        set(&GrowthOptions::seed, flags.at_least("--seed", Nothing<uint64_t>{}, uint64_t{0},
                                                 concat("of initial values, default 42 (", operators_that_take("--seed"), ")")));
        choose(&GrowthOptions::optimizer, "--optimizer",
               "the optimizer's state in OUT. reset: none (default); copy: each copy of a layer has the layer's;\n"
               "zero: the first one has it, further ones zeros. New layers: zeros. train_gpt --init OUT --optimizer\n"
               "keep goes on with it");
    }
    GrowthOptions options(const std::string& order) const {
        GrowthOptions given{.order = order};
        for (auto& take : takes) take(given);
        return given;
    }

private:
    template <class Value>
    void set(std::optional<Value> GrowthOptions::*member, const std::optional<Value>& value) {
        takes.push_back([member, &value](GrowthOptions& options) { options.*member = value; });
    }
    template <class Enum>
    void choose(std::optional<Enum> GrowthOptions::*member, const std::string& flag, const std::string& help) {
        const std::vector<std::string>& names = spellings(Enum{});
        const std::optional<std::string>& name = flags.choice(flag, Nothing<std::string>{}, names, help);
        takes.push_back([member, &name, &names](GrowthOptions& options) {
            if (name) options.*member = static_cast<Enum>(std::find(names.begin(), names.end(), *name) - names.begin());
        });
    }

    Flags& flags;
    std::vector<std::function<void(GrowthOptions&)>> takes;
};

static void print_timing(double params, double flops) {
    const double tokens = tokens_before_growth(params, flops), all = flops / (6 * params);
    char text[160];
    std::snprintf(text, sizeof text,
                  "train the small model on %.3g tokens before it grows: %.3g of the %.3g tokens that %.3g FLOPs train %.3g "
                  "parameters on",
                  tokens, tokens / all, all, flops, params);
    std::cout << text << std::endl;
    if (params < 1e9)
        std::cerr << concat("grow: the rule was fitted on models of about 1e9 parameters and more, and ", params,
                            " are fewer: take it as a hint")
                  << std::endl;
}

static void print_free_params(const GPTConfig& config, bool can_leave_out) {
    const int64_t free = free_params(config);
    if (free == 0) return;
    std::cout << "free parameters: " << free << ", which cost no FLOPs, in value embeddings beyond the pattern of "
              << config.n_layer << " layers" << (can_leave_out ? "; --value-embeds pattern leaves them out" : "") << "\n";
}

static int grow(int argc, char** argv) {
    Flags flags("grow",
                "A deeper model, its layers copies of IN's or new ones. Embedding, head, tokenizer and data position are kept;\n"
                "the optimizer starts afresh unless --optimizer keeps its state, and windows are those of the deeper model's own\n"
                "pattern unless the order says otherwise. IN is verified whole before anything is written. Exit code 0, or 2 when\n"
                "something given was wrong.");
    const std::optional<std::string>& in = flags.optional_argument("IN", "a checkpoint");
    const std::optional<std::string>& out = flags.optional_argument("OUT", "the checkpoint to write");
    const std::optional<std::string>& order = flags.text("--order", Nothing<std::string>{}, orders_help());
    const GrowthFlags growth(flags);
    const bool& dry_run = flags.toggle("--dry-run", "print the layer map, check all but the tensors' bytes, write nothing");
    const bool& overwrite = flags.toggle("--overwrite", "replace OUT if it is there");
    const std::vector<double>& timing =
        flags.numbers("--timing", 2,
                      "N C: in place of all else, print on how many tokens to train a small model before it grows, by\n"
                      "log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74 (arXiv 2405.15319), N parameters of the grown\n"
                      "model, C FLOPs of the whole training; fitted on about 1e9 parameters and more");
    flags.alone("--timing");
    if (!flags.parse(argc, argv)) return 0;
    if (!timing.empty()) {
        print_timing(timing[0], timing[1]);
        return 0;
    }
    require(in.has_value(), "IN is required; see grow --help");
    require(out.has_value(), "OUT is required; see grow --help");
    require(order.has_value(), "--order is required; see grow --help");
    const GrowthOptions options = growth.options(*order);

    check_output(*out, {*in}, overwrite);
    Checkpoint model = open_checkpoint(*in);
    std::vector<const Checkpoint*> models{&model};
    LayerMap map = grow_map(model.config, options);
    print_map(map, models);
    if (options.damp)
        std::cout << "damp " << *options.damp
                  << ": attention by its scale, which is in the configuration, the MLP by fc_proj, in the weights\n";
    print_free_params(map.config, order_takes(*order, "--value-embeds"));

    nlohmann::json header{{"config", to_json(map.config)}, {"progress", no_progress()},
                          {"lineage", make_lineage("grow", growth_detail(options), models)}};
    header["lineage"]["layers"] = layers_json(map);
    if (model.header.contains("data")) header["data"] = model.header["data"];
    std::vector<TensorSource> sources = mapped_tensors(map, models, model);
    std::cout << "bytes: " << checkpoint_bytes(header, sources) << std::endl;
    if (!dry_run) verify_and_write(*out, header, sources, models);
    return 0;
}

int main(int argc, char** argv) {
    return run_to_its_file("grow", [&] { return grow(argc, argv); });
}
