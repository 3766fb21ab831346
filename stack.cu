// Stacks blocks of several checkpoints into one model (the cross-model stacking study; README.md).
#include <algorithm>
#include <deque>
#include "llmc/io/flags.h"
#include "llmc/lineage.h"
#include "llmc/mix.h"
#include "llmc/rewrite.h"
#include "llmc/tensors.h"

struct Arguments {
    Flags flags{"stack",
                "Stacks the layers of several models, in the order given, into one model. By default the layers at the seams are left\n"
                "out: the last layer of every model but the last, and the first layer of every model but the first. The embedding is\n"
                "the first model's. Per-layer properties (windows, scale, value embedding, lambdas) go with their layer. The same file\n"
                "may be given twice. With --mix the models are averaged instead of stacked. All files are verified before anything is\n"
                "written. Exit code 0, or 2 for any error."};
    using Text = Nothing<std::string>;
    const std::vector<std::string> norms{"none", "rms_norm", "layer_norm"};
    std::vector<std::string>& inputs = flags.arguments("MODELS", "two checkpoints or more");
    std::string& out = flags.text("--out", "", "the checkpoint to write");
    bool& use_first_layer = flags.toggle("--use-first-layer", "keep the first layer of every model but the first too");
    bool& use_last_layer = flags.toggle("--use-last-layer", "keep the last layer of every model but the last too");
    std::optional<std::string>& layers =
        flags.text("--layers", Text{},
                   "slices instead of whole models, as in A:0-3,B:2-7: layers 0 to 3 of the first model, then 2 to 7 of the\n"
                   "second, both ends included; B:2 is one layer. Slices may come in any order and from a model any number of\n"
                   "times; there is a seam between any two slices");
    std::optional<std::string>& mix =
        flags.text("--mix", Text{},
                   "averages models of one configuration instead of stacking them: a weight per model, as in 0.9,0.1 or 1.5,-0.5, summing\n"
                   "to 1. Training state, data position and progress are the first model's, and train_gpt --resume can continue its run");
    std::string& norm_inter_model = flags.choice("--norm-inter-model", "none", norms, "norm at each seam (none)");
    std::optional<std::string>& norm_wte = flags.choice("--norm-wte", Text{}, norms, "norm after the embedding (the first model's)");
    std::optional<std::string>& norm_lm_head = flags.choice("--norm-lm-head", Text{}, norms, "norm before the head (the first model's)");
    std::optional<std::string>& head = flags.choice("--head", Text{}, {"first", "last"},
                                                    "the model whose head the stack gets (first where both are equal, else last). The head of a tied\n"
                                                    "model is its embedding: with the last model's head the stack is untied if the embeddings differ");
    bool& dry_run = flags.toggle("--dry-run", "print the layer map, check everything but the tensors' hashes, write nothing");
    bool& overwrite = flags.toggle("--overwrite", "replace the file of --out if it exists");

    bool parse(int argc, char** argv) {
        flags.require_given("--out");
        for (const char* whole : {"--use-first-layer", "--use-last-layer"}) flags.exclude("--layers", whole);
        for (const char* of_a_stack :
             {"--layers", "--use-first-layer", "--use-last-layer", "--norm-inter-model", "--norm-wte", "--norm-lm-head", "--head"})
            flags.exclude("--mix", of_a_stack);
        return flags.parse(argc, argv);
    }
};

static const TensorEntry& head_of(const Checkpoint& model) { return model.at(model.config.tied ? "wte" : "lm_head"); }

static std::string detail_of(const Arguments& a, const LayerMap& map, const std::string& head) {
    return concat(a.layers ? "--layers " + *a.layers + " " : "", a.use_first_layer ? "--use-first-layer " : "",
                  a.use_last_layer ? "--use-last-layer " : "", "--norm-inter-model ", a.norm_inter_model, " --norm-wte ",
                  name_of(map.config.norm_wte), " --norm-lm-head ", name_of(map.config.norm_lm_head), " --head ", head);
}

static int mix(const Arguments& a, const std::vector<const Checkpoint*>& models) {
    const Checkpoint& first = *models.front();
    const std::vector<double> weights = parse_weights(*a.mix, models.size());
    require_one_shape(models);
    for (size_t m = 0; m < models.size(); m++) std::cout << "weights <- " << weights[m] << " of " << models[m]->path << "\n";
    std::cout << (first.can_resume() ? concat("training state of ", first.path, ", at step ", first.header["progress"]["step"],
                                              "; train_gpt --resume continues its run")
                                     : concat("no training state, as in ", first.path))
              << "\nparameters: " << total_params(first.config) << "\n";
    const nlohmann::json header = mixed_header(models, weights);
    const std::vector<TensorSource> sources = mixed_tensors(models, weights);
    std::cout << "bytes: " << checkpoint_bytes(header, sources) << std::endl;
    if (!a.dry_run) verify_and_write(a.out, header, sources, models);
    return 0;
}

static int stack(int argc, char** argv) {
    Arguments a;
    if (!a.parse(argc, argv)) return 0;
    check_output(a.out, a.inputs, a.overwrite);

    std::deque<Checkpoint> files;   // a file that is given twice is opened and verified once
    std::vector<const Checkpoint*> models;
    for (const std::string& path : a.inputs) {
        auto same = std::find_if(files.begin(), files.end(), [&](const Checkpoint& file) { return file.path == path; });
        models.push_back(same != files.end() ? &*same : &files.emplace_back(open_checkpoint(path)));
    }
    if (a.mix) return mix(a, models);
    const Checkpoint &first = *models.front(), &last = *models.back();

    StackOptions options{a.use_first_layer,
                         a.use_last_layer,
                         norm_named(a.norm_inter_model),
                         a.norm_wte ? norm_named(*a.norm_wte) : first.config.norm_wte,
                         a.norm_lm_head ? norm_named(*a.norm_lm_head) : first.config.norm_lm_head,
                         a.layers.value_or("")};
    std::vector<GPTConfig> configs;
    for (const Checkpoint* model : models) configs.push_back(model->config);
    LayerMap map = stack_map(configs, a.inputs, options);

    bool equal_heads = head_of(first).xxh3 == head_of(last).xxh3;
    std::string head = a.head ? *a.head : equal_heads ? "first" : "last";
    bool untie = map.config.tied && head == "last" && !equal_heads;
    if (untie) map.config.tied = false;

    print_map(map, models);
    std::cout << "embedding of " << first.path << ", head of " << (head == "first" ? first : last).path
              << (untie ? ": its embedding, which differs from the first, so that the stack is not tied" : "") << "\n";
    nlohmann::json header{{"config", to_json(map.config)}, {"progress", no_progress()}, {"lineage", make_lineage("stack", detail_of(a, map, head), models)}};
    header["lineage"]["layers"] = layers_json(map);
    std::vector<TensorSource> sources = mapped_tensors(map, models, head == "first" ? first : last);
    std::cout << "bytes: " << checkpoint_bytes(header, sources) << std::endl;
    if (!a.dry_run) verify_and_write(a.out, header, sources, models);
    return 0;
}

int main(int argc, char** argv) {
    return run_to_its_file("stack", [&] { return stack(argc, argv); });
}
