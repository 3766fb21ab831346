// The shards of a run and the tokenizer that they were made with, opened as the flags and the file it starts from say.
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

/// At the place where the run that is resumed was, or the model of --init; it warns where that is not possible for the latter. The
/// order of the shards of --init goes into the settings. All three throw std::invalid_argument for what is not right in a file.
/// samples: a tokenizer is needed that encodes --sample; job: whose share of the micro_batches of a step is read
TrainingData open_data(Settings& s, const std::optional<Checkpoint>& parent, const GPTConfig& config, bool samples, const Job& job,
                       int64_t micro_batches);

/// --val-data alone, every `processes`-th micro-batch from number `rank` on; null without.
std::unique_ptr<DataLoader> open_validation(const Settings& s, const GPTConfig& config, int rank, int processes);

/// The one that was named, else the one beside the shards of the loaders (those that are not null), else the checkpoint's, else
/// none.
std::optional<Tokenizer> find_tokenizer(const Settings& s, const std::optional<Checkpoint>& parent, const GPTConfig& config,
                                        const std::vector<const DataLoader*>& loaders);
