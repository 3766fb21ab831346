// One checkpoint -> a deeper one, by copies of its layers (the depth growth study; README.md).
#include "llmc/io/flags.h"
#include "llmc/rewrite.h"

static std::string orders_help() {
    std::string text = "which layer goes where, one of:";
    for (const GrowthOrder& order : growth_orders()) text += concat("\n", order.name, ": ", order.help);
    return text + "\nLIST: the layers themselves, like 0,1,2,0,1,2, without --factor";
}

static int grow(int argc, char** argv) {
    Flags flags("grow", "A deeper model, each layer a copy of one of IN's. Embedding, head, tokenizer and data position are kept; the optimizer\n"
                        "starts afresh, and windows are those of the deeper model's own pattern. IN is verified whole before anything is written.\n"
                        "Exit code 0, or 2 when something given was wrong.");
    const std::string& in = flags.argument("IN", "a checkpoint");
    const std::string& out = flags.argument("OUT", "the checkpoint to write");
    const std::string& order = flags.text("--order", "", orders_help());
    const std::optional<int>& factor = flags.number("--factor", Nothing<int>{}, 1, MAX_LAYERS, "how many times deeper");
    const std::string& value_embeds = flags.choice("--value-embeds", "layer", {"layer", "pattern"},
                                                   "layer: value embeddings go with their layer (default); pattern: they stay only where the\n"
                                                   "deeper model's own pattern has them");
    const bool& dry_run = flags.toggle("--dry-run", "print the layer map, check all but the tensors' bytes, write nothing");
    const bool& overwrite = flags.toggle("--overwrite", "replace OUT if it is there");
    flags.require_given("--order");
    if (!flags.parse(argc, argv)) return 0;

    check_output(out, {in}, overwrite);
    Checkpoint model = open_checkpoint(in);
    std::vector<const Checkpoint*> models{&model};
    LayerMap map = grow_map(model.config, growth_order(order, factor.value_or(0), model.config.n_layer),
                            value_embeds == "pattern" ? ValueEmbeds::pattern : ValueEmbeds::layer);
    print_map(map, models);

    std::string detail = concat("--order ", order, factor ? concat(" --factor ", *factor) : "", " --value-embeds ", value_embeds);
    nlohmann::json header{{"config", to_json(map.config)}, {"progress", no_progress()}, {"lineage", make_lineage("grow", detail, models)}};
    if (model.header.contains("data")) header["data"] = model.header["data"];
    std::vector<TensorSource> sources = mapped_tensors(map, models, model);
    std::cout << "bytes: " << checkpoint_bytes(header, sources) << std::endl;
    if (!dry_run) verify_and_write(out, header, sources, models);
    return 0;
}

int main(int argc, char** argv) {
    return run_program("grow", [&] { return grow(argc, argv); });
}
