// Splitting text into the pieces within which byte-pair encoding merges (pre-tokenization): words with the space before them, digits, runs of
// punctuation.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>

/// nanochat: the pattern of GPT-4, but with numbers in pieces of at most two digits.
/// gpt2:     the pattern of GPT-2 (Radford et al. 2019).
enum class SplitKind { nanochat, gpt2 };

/// False in a build without PCRE2 (make PCRE2=no, or if it was not found); everything but split() works there.
bool can_split();

/// Splits with a compiled pattern. Every byte of the text is in exactly one piece. A byte that is not part of a UTF-8 character is
/// split like punctuation (neither letter nor number nor white space), so that any bytes can be encoded; the pieces are those that
/// Python's decode("utf-8", "surrogateescape") leads to.
class Splitter {
public:
    /// Throws std::invalid_argument when PCRE2 cannot compile patterns to machine code here.
    explicit Splitter(SplitKind kind);
    Splitter(Splitter&&) noexcept;
    Splitter& operator=(Splitter&&) noexcept;
    ~Splitter();

    /// Calls take(piece) for each piece of the text, in order; the pieces are views into `text`. Not thread-safe.
    /// Throws std::invalid_argument unless can_split().
    void split(std::string_view text, const std::function<void(std::string_view)>& take);

private:
    struct Pattern;
    std::unique_ptr<Pattern> pattern_;
};

/// The last position where a text can be cut in two such that the parts give the same pieces as the whole: between an ASCII letter or
/// digit and an ASCII white space (no piece contains both, and no pattern looks ahead across them); 0 if there is none.
size_t last_border(std::string_view text);
