// One checkpoint -> a deeper one, by copies of its layers and by new ones (the depth growth study; README.md).
#include "llmc/io/command_line.h"
#include "llmc/rewrite.h"

static std::string orders_help() {
    std::string text = "which layer goes where, one of:";
    for (const GrowthOperator& op : growth_operators()) text += concat("\n", op.name, ": ", op.help);
    return text;
}

static int grow(int argc, char** argv) {
    std::string in, out, value_embeds;
    GrowthOptions options;
    bool dry_run = false, overwrite = false;
    CLI::App app("A deeper model, its layers copies of IN's or new ones. Embedding, head, tokenizer and data position are kept; the optimizer\n"
                 "starts afresh, and windows are those of the deeper model's own pattern unless the order says otherwise. IN is verified whole before\n"
                 "anything is written. Exit code 0, or 2 when something given was wrong.", "grow");
    app.add_option("IN", in, "a checkpoint")->required();
    app.add_option("OUT", out, "the checkpoint to write")->required();
    app.add_option("--order", options.order, orders_help())->required();
    app.add_option("--factor", options.factor, "how many times deeper")->check(CLI::Range(1, MAX_LAYERS));
    auto* value_embeds_option = app.add_option("--value-embeds", value_embeds,
        concat("layer: value embeddings go with their layer (default); pattern: they stay only where the\n"
               "deeper model's own pattern has them (", operators_that_take("--value-embeds"), ")"))->check(CLI::IsMember({"layer", "pattern"}));
    const auto below_the_largest = CLI::Range(int64_t{0}, INT64_MAX - 1);   // which CLI11 makes of anything beyond it
    app.add_option("--seed", options.seed, concat("of initial values, default 42 (", operators_that_take("--seed"), ")"))->check(below_the_largest);
    app.add_flag("--dry-run", dry_run, "print the layer map, check all but the tensors' bytes, write nothing");
    app.add_flag("--overwrite", overwrite, "replace OUT if it is there");
    if (!parse_command_line(app, argc, argv)) return 0;

    check_output(out, {in}, overwrite);
    Checkpoint model = open_checkpoint(in);
    std::vector<const Checkpoint*> models{&model};
    if (value_embeds_option->count()) options.value_embeds = value_embeds == "pattern" ? ValueEmbeds::pattern : ValueEmbeds::layer;
    LayerMap map = grow_map(model.config, options);
    print_map(map, models);

    nlohmann::json header{{"config", to_json(map.config)}, {"progress", no_progress()},
                          {"lineage", make_lineage("grow", growth_detail(options), models)}};
    if (model.header.contains("data")) header["data"] = model.header["data"];
    std::vector<TensorSource> sources = mapped_tensors(map, models, model);
    std::cout << "bytes: " << checkpoint_bytes(header, sources) << std::endl;
    if (!dry_run) verify_and_write(out, header, sources, models);
    return 0;
}

int main(int argc, char** argv) {
    return run_program("grow", [&] { return grow(argc, argv); });
}
