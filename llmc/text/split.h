// Splitting text into the pieces that byte-pair encoding works on: words with the space before them, digits, runs of signs.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>

/// nanochat: the pattern of GPT-4, with numbers in pieces of at most two digits.
/// gpt2:     the pattern of GPT-2 (Radford et al. 2019).
enum class SplitKind { nanochat, gpt2 };

/// False in a build without PCRE2 (make PCRE2=no, or where it was not found): everything but split() works there.
bool can_split();

/// Splits with a compiled pattern. The pieces, one after another, are the text: every byte is in exactly one.
/// A byte that is not part of a UTF-8 character is split as a sign would be, neither letter nor number nor white space:
/// the pieces are those that Python's decode("utf-8", "surrogateescape") gives, so that any bytes can be encoded.
class Splitter {
public:
    /// Throws std::invalid_argument when PCRE2 cannot compile patterns to machine code here.
    explicit Splitter(SplitKind kind);
    Splitter(Splitter&&) noexcept;
    Splitter& operator=(Splitter&&) noexcept;
    ~Splitter();

    /// Calls take(piece) for each piece of the text, in order; the pieces lie in `text`. Not for two threads at once.
    /// Throws std::invalid_argument unless can_split().
    void split(std::string_view text, const std::function<void(std::string_view)>& take);

private:
    struct Pattern;
    std::unique_ptr<Pattern> pattern_;
};

/// Where a long text can be cut so that its two parts are split as the whole would be: the last place where an ASCII
/// letter or digit stands before an ASCII white space (no piece has both, and none looks ahead over the two); 0 if there is none.
size_t last_border(std::string_view text);
