// Text from a model: continues a prompt, one token at a time.
#pragma once
#include <csignal>
#include <iosfwd>
#include <string>
#include "llmc/gpt.h"
#include "llmc/text/sampler.h"
#include "llmc/text/tokenizer.h"

/// Prints `prompt` and up to `count` tokens that follow it, each as it is sampled; fewer when the model ends the document (bos), or
/// once `stop` is not 0. When the context is full, it continues from the last half of the context. Afterwards the cache holds this
/// sequence. Returns tokens per second. Throws std::invalid_argument in a build that cannot encode text.
double generate(GPT& model, KVCache& cache, Sampler& sampler, Tokenizer& tokenizer, const std::string& prompt, int count,
                std::ostream& out, const volatile std::sig_atomic_t& stop);
