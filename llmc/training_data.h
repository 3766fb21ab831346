// Opens the shards of a run and their tokenizer, as the flags and the checkpoint say.
#pragma once
#include <memory>
#include <optional>
#include <vector>
#include "llmc/settings.h"
#include "llmc/text/dataloader.h"
#include "llmc/text/tokenizer.h"

struct TrainingData {
    std::unique_ptr<DataLoader> train, val;   ///< val: null without --val-data
    std::optional<Tokenizer> tokenizer;
};

/// Opens --data at the position of the checkpoint of --resume or --init; for --init it warns where that position does not fit the
/// shards. The packing and shard order of an --init checkpoint go into the settings. All three functions throw std::invalid_argument
/// for an invalid file. samples: a tokenizer is needed that can encode --sample; job: the process whose share of the micro_batches of
/// a step is read
TrainingData open_data(Settings& s, const std::optional<Checkpoint>& parent, const GPTConfig& config, bool samples, const Job& job,
                       int64_t micro_batches);

/// Opens --val-data, to read every `processes`-th micro-batch from number `rank` on; null without --val-data.
std::unique_ptr<DataLoader> open_validation(const Settings& s, const GPTConfig& config, int rank, int processes);

/// The tokenizer of --tokenizer, else the one beside the shards of the loaders (null loaders are skipped), else the checkpoint's,
/// else none.
std::optional<Tokenizer> find_tokenizer(const Settings& s, const std::optional<Checkpoint>& parent, const GPTConfig& config,
                                        const std::vector<const DataLoader*>& loaders);
