// One checkpoint -> a deeper one, by copies of its layers and by new ones (the depth growth study; README.md).
#include "llmc/io/flags.h"
#include "llmc/lineage.h"
#include "llmc/rewrite.h"

static std::string orders_help() {
    std::string text = "which layer goes where, one of:";
    for (const GrowthOperator& op : growth_operators()) text += concat("\n", op.name, ": ", op.help);
    return text;
}

static int grow(int argc, char** argv) {
    Flags flags("grow", "A deeper model, its layers copies of IN's or new ones. Embedding, head, tokenizer and data position are kept; the optimizer\n"
                        "starts afresh, and windows are those of the deeper model's own pattern unless the order says otherwise. IN is verified whole\n"
                        "before anything is written. Exit code 0, or 2 when something given was wrong.");
    const std::string& in = flags.argument("IN", "a checkpoint");
    const std::string& out = flags.argument("OUT", "the checkpoint to write");
    std::string& order = flags.text("--order", "", orders_help());
    std::optional<int>& factor = flags.number("--factor", Nothing<int>{}, 1, MAX_LAYERS, "how many times deeper");
    std::optional<std::string>& value_embeds =
        flags.choice("--value-embeds", Nothing<std::string>{}, {"layer", "pattern"},
                     concat("layer: value embeddings go with their layer (default); pattern: they stay only where the\n"
                            "deeper model's own pattern has them (", operators_that_take("--value-embeds"), ")"));
    std::optional<uint64_t>& seed = flags.at_least("--seed", Nothing<uint64_t>{}, uint64_t{0},
                                                   concat("of initial values, default 42 (", operators_that_take("--seed"), ")"));
    const bool& dry_run = flags.toggle("--dry-run", "print the layer map, check all but the tensors' bytes, write nothing");
    const bool& overwrite = flags.toggle("--overwrite", "replace OUT if it is there");
    flags.require_given("--order");
    if (!flags.parse(argc, argv)) return 0;
    GrowthOptions options{order, factor, {}, seed};
    if (value_embeds) options.value_embeds = *value_embeds == "pattern" ? ValueEmbeds::pattern : ValueEmbeds::layer;

    check_output(out, {in}, overwrite);
    Checkpoint model = open_checkpoint(in);
    std::vector<const Checkpoint*> models{&model};
    LayerMap map = grow_map(model.config, options);
    print_map(map, models);

    nlohmann::json header{{"config", to_json(map.config)}, {"progress", no_progress()},
                          {"lineage", make_lineage("grow", growth_detail(options), models)}};
    header["lineage"]["layers"] = layers_json(map);
    if (model.header.contains("data")) header["data"] = model.header["data"];
    std::vector<TensorSource> sources = mapped_tensors(map, models, model);
    std::cout << "bytes: " << checkpoint_bytes(header, sources) << std::endl;
    if (!dry_run) verify_and_write(out, header, sources, models);
    return 0;
}

int main(int argc, char** argv) {
    return run_to_its_file("grow", [&] { return grow(argc, argv); });
}
