#include "llmc/generate.h"
#include <algorithm>
#include <chrono>
#include <ostream>

double generate(GPT& model, KVCache& cache, Sampler& sampler, Tokenizer& tokenizer, const std::string& prompt, int count,
                std::ostream& out, const volatile std::sig_atomic_t& stop) {
    const int seq_len = model.config.seq_len;
    std::vector<int> sequence{tokenizer.bos()};
    for (uint16_t token : tokenizer.encode(prompt)) sequence.push_back(token);
    Utf8Printer printer(out);
    printer.print(prompt);
    std::vector<float> logits(model.config.vocab_size);
    auto start = std::chrono::steady_clock::now();
    size_t fed = 0;   // tokens of the sequence that are in the cache
    cache.length = 0;
    int drawn = 0;
    for (; drawn < count && !stop; drawn++) {
        if (cache.length + static_cast<int64_t>(sequence.size() - fed) > seq_len) {
            size_t kept = std::max(seq_len / 2, 1);
            fed = sequence.size() - std::min(kept, sequence.size());
            cache.length = 0;
        }
        model.extend(cache, sequence.data() + fed, static_cast<int>(sequence.size() - fed));
        fed = sequence.size();
        model.next_logits(logits.data());
        int token = sampler.pick(logits.data(), tokenizer.vocab_size());
        if (token == tokenizer.bos()) break;   // the document ends here
        sequence.push_back(token);
        uint16_t id = static_cast<uint16_t>(token);
        printer.print(tokenizer.decode({&id, 1}));
        out.flush();
    }
    printer.finish();
    out << std::endl;
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::max(drawn, 1) / seconds;
}
