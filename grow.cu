// Makes a checkpoint deeper, with copies of its layers or with new ones (the depth growth study; README.md).
#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include "llmc/io/flags.h"
#include "llmc/lineage.h"
#include "llmc/rewrite.h"
#include "llmc/tensors.h"

static std::string orders_help() {
    std::string text = "how the model gets deeper; the examples show which layers the new model is made of:";
    for (const GrowthOperator& op : growth_operators()) text += concat("\n", op.name, ": ", op.help);
    return text;
}

/// The optional flags of growth. A line of the constructor declares a flag, and the member of GrowthOptions that it sets.
class GrowthFlags {
public:
    explicit GrowthFlags(Flags& table) : flags(table) {
        set(&GrowthOptions::factor, flags.number("--factor", Nothing<int>{}, 1, MAX_LAYERS, "how many times deeper"));
        set(&GrowthOptions::depth,
            flags.number("--depth", Nothing<int>{}, 1, MAX_LAYERS,
                         "the new number of layers D, at least the model's L, not necessarily a multiple of it: layer n is then a copy\n"
                         "of n mod L with stack, and of floor(n L / D) with interleave"));
        set(&GrowthOptions::middle, flags.text("--middle", Nothing<std::string>{},
                                               "A:B: the layers that middle repeats, both included (all but the first and the last)"));
        set(&GrowthOptions::drop,
            flags.number("--drop", Nothing<int>{}, 0, MAX_LAYERS, "layers that solar leaves out of each of its two copies"));
        choose(&GrowthOptions::at, "--at",
               concat("where new layers are inserted; middle: after half of the old ones (for ", operators_that_take("--at"), "; default top)"));
        choose(&GrowthOptions::value_embeds, "--value-embeds",
               "layer: value embeddings go with their layer (default); pattern: they stay only where the deeper model's\n"
               "own pattern has them (for every order but zero)");
        set(&GrowthOptions::damp,
            flags.text("--damp", Nothing<std::string>{},
                       "scales both branches (attention and MLP) of repeated layers. X: of every copy but the first, by X; 1/copies: of all\n"
                       "copies, by 1 / their number. Attention has a scale in the configuration; for the MLP the weights fc_proj are scaled"));
        set(&GrowthOptions::seed, flags.at_least("--seed", Nothing<uint64_t>{}, uint64_t{0},
                                                 concat("seed of initial values (for ", operators_that_take("--seed"), "; default 42)")));
        choose(&GrowthOptions::optimizer, "--optimizer",
               "the optimizer's state in OUT. reset: none (default); copy: every copy of a layer gets the layer's state;\n"
               "zero: the first copy gets it, further copies zeros. New layers get zeros. train_gpt --init OUT --optimizer\n"
               "keep uses it");
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
                            " are fewer: the result is an extrapolation")
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
                "Makes a deeper model OUT from IN: its layers are copies of IN's layers, or new. Embedding, head, tokenizer and data\n"
                "position are kept. The optimizer's state is dropped unless --optimizer keeps it, and attention windows follow the\n"
                "recipe's pattern at the new depth unless the order keeps them. All of IN is verified before anything is written.\n"
                "Exit code 0, or 2 for any error.");
    const std::optional<std::string>& in = flags.optional_argument("IN", "the checkpoint to grow");
    const std::optional<std::string>& out = flags.optional_argument("OUT", "the checkpoint to write");
    const std::optional<std::string>& order = flags.text("--order", Nothing<std::string>{}, orders_help());
    const GrowthFlags growth(flags);
    const bool& dry_run = flags.toggle("--dry-run", "print the layer map, check everything but the tensors' hashes, write nothing");
    const bool& overwrite = flags.toggle("--overwrite", "replace OUT if it exists");
    const std::vector<double>& timing =
        flags.numbers("--timing", 2,
                      "N C: only print on how many tokens d to train a small model before it grows, by\n"
                      "log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74 (arXiv 2405.15319), for N parameters of the grown\n"
                      "model and C FLOPs of the whole training; fitted on models of about 1e9 parameters and more");
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
