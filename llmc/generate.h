// Text from a model: a prompt, and what it makes of it, a token at a time.
#pragma once
#include <csignal>
#include <iosfwd>
#include <string>
#include "llmc/gpt.h"
#include "llmc/text/sampler.h"
#include "llmc/text/tokenizer.h"

/// Prints `prompt` and up to `count` tokens that follow it, each as it is drawn; fewer when the document ends, or once `stop` is
/// not 0. Where the model sees no further, it goes on from the last half of what it has seen. The cache's sequence is this one
/// afterwards. Returns tokens a second. Throws std::invalid_argument in a build that cannot encode text.
double generate(GPT& model, KVCache& cache, Sampler& sampler, Tokenizer& tokenizer, const std::string& prompt, int count,
                std::ostream& out, const volatile std::sig_atomic_t& stop);
