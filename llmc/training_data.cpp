#include "llmc/training_data.h"
#include <filesystem>
#include <set>
#include "llmc/io/error.h"
#include "llmc/io/json.h"
#include "llmc/io/log.h"
#include "llmc/text/shard.h"

namespace fs = std::filesystem;
using nlohmann::json;

std::optional<Tokenizer> find_tokenizer(const Settings& s, const std::optional<Checkpoint>& parent, const GPTConfig& config,
                                        const std::vector<const DataLoader*>& loaders) {
    std::optional<Tokenizer> tokenizer;
    if (s.tokenizer) tokenizer = Tokenizer::load(*s.tokenizer);
    for (const DataLoader* loader : loaders) {
        const std::string beside = loader ? tokenizer_beside(loader->first_shard()).string() : "";
        if (!tokenizer && !beside.empty() && fs::exists(beside)) tokenizer = Tokenizer::load(beside);
    }
    if (const TensorEntry* kept = parent ? parent->find("tokenizer") : nullptr) {
        std::string bytes(kept->bytes, '\0');
        read_tensor(*parent, *kept, bytes.data());
        if (!tokenizer)
            tokenizer = Tokenizer::parse(bytes, parent->path + ": tokenizer");
        else if (tokenizer->serialize() != bytes)
            warn("train_gpt", "the tokenizer of the data is not the one that ", parent->path, " was trained with");
    }
    if (tokenizer)
        require(tokenizer->vocab_size() <= config.vocab_size, "the tokenizer has ", tokenizer->vocab_size(),
                " tokens, but --vocab-size is ", config.vocab_size, ": give one that is at least as large, or another --tokenizer");
    return tokenizer;
}

static LoaderOptions loader_options(const Settings& s, const GPTConfig& config, const std::vector<std::string>& patterns) {
    LoaderOptions options;
    options.B = *s.device_batch;
    options.T = config.seq_len;
    options.vocab_size = config.vocab_size;
    options.patterns = patterns;
    return options;
}

std::unique_ptr<DataLoader> open_validation(const Settings& s, const GPTConfig& config, int rank, int processes) {
    if (s.val_data.empty()) return nullptr;
    LoaderOptions options = loader_options(s, config, s.val_data);
    options.share = {.first = rank, .count = 1, .of = processes};
    return std::make_unique<DataLoader>(options);
}

/// --init on the same shards keeps the checkpoint's packing and order, unless flags ask for others. True when that changed the settings.
static bool takes_data_order(Settings& s, const std::optional<Checkpoint>& parent, const DataLoader& data) {
    if (!s.init || !parent->header.contains("data")) return false;
    const json& place = json_object(parent->header["data"], *s.init + ": position in the data");
    if (!place.contains("fingerprint") || place["fingerprint"] != data.fingerprint()) return false;
    const json before = s.flags.values(FlagKind::training);
    s.flags.restore(FlagKind::training,
                    {{"packing", place.value("packing", json())}, {"data-seed", place.value("shuffle_seed", json())}});
    return s.flags.values(FlagKind::training) != before;
}

/// Training and evaluating on the same file is allowed.
static void warn_of_shared_shards(const TrainingData& data) {
    if (!data.val) return;
    std::set<fs::path> trained;
    for (const std::string& path : data.train->paths()) trained.insert(fs::canonical(path));
    for (const std::string& path : data.val->paths())
        if (trained.contains(fs::canonical(path)))
            return warn("train_gpt", "--val-data shares ", path, " with --data: its loss does not measure unseen text");
}

TrainingData open_data(Settings& s, const std::optional<Checkpoint>& parent, const GPTConfig& config, bool samples, const Job& job,
                       int64_t micro_batches) {
    TrainingData data;
    data.val = open_validation(s, config, job.rank, job.processes);
    LoaderOptions options = loader_options(s, config, s.data);
    const int64_t own = micro_batches / job.processes;
    options.share = {.first = job.rank * own, .count = own, .of = micro_batches};
    options.following = s.coconut_every > 0 && s.coconut_targets == "next";
    auto open = [&] {
        options.packing = packing_named(s.packing);
        if (s.data_seed) options.shuffle_seed = static_cast<uint64_t>(*s.data_seed);
        data.train = std::make_unique<DataLoader>(options);
    };
    open();
    if (takes_data_order(s, parent, *data.train)) open();
    data.tokenizer = find_tokenizer(s, parent, config, {data.train.get(), data.val.get()});
    if (options.packing == Packing::bos_bestfit && data.tokenizer) {
        options.bos = data.tokenizer->bos();
        data.train = std::make_unique<DataLoader>(options);
    }
    warn_of_shared_shards(data);
    if (parent && parent->header.contains("data")) {
        try {
            data.train->restore(parent->header["data"]);
        } catch (const std::invalid_argument& error) {
            if (s.resume) throw;
            warn("train_gpt", "the data starts at its first token: ", error.what());
        }
    }
    require(!samples || data.tokenizer,
            "samples need a tokenizer: none lies beside the shards or in the checkpoint; give --tokenizer, or --sample-every 0");
    if (samples) data.tokenizer->encode(s.sample.value_or(""));   // a build without the encoder fails here, not in the middle of the run
    return data;
}
