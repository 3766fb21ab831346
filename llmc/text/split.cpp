// Splitting text into the pieces that byte-pair encoding works on.
#include "llmc/text/split.h"

#include <algorithm>
#include <new>
#include <string>

#ifndef NO_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#endif

#include "llmc/io/error.h"

#ifdef NO_PCRE2

bool can_split() { return false; }

struct Splitter::Pattern {};

Splitter::Splitter(SplitKind) {}

void Splitter::split(std::string_view, const std::function<void(std::string_view)>&) {
    fail("split: this program was built without PCRE2, which encoding text needs; install it (make deps) and make again");
}

#else

bool can_split() { return true; }

// Unicode's White_Space. PCRE2's \s also has U+180E, which lost that property in 2013.
#define SPACE "\\t-\\r\\x{85}\\p{Z}"

static const char* pattern_text(SplitKind kind) {
    switch (kind) {
        case SplitKind::nanochat:
            return "'(?i:[sdmt]|ll|ve|re)"
                   "|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+"
                   "|\\p{N}{1,2}"
                   "| ?[^" SPACE "\\p{L}\\p{N}]++[\\r\\n]*"
                   "|[" SPACE "]*[\\r\\n]"
                   "|[" SPACE "]+(?![^" SPACE "])"
                   "|[" SPACE "]+";
        case SplitKind::gpt2:
            return "'s|'t|'re|'ve|'m|'ll|'d"
                   "| ?\\p{L}+"
                   "| ?\\p{N}+"
                   "| ?[^" SPACE "\\p{L}\\p{N}]+"
                   "|[" SPACE "]+(?![^" SPACE "])"
                   "|[" SPACE "]+";
    }
    fail("split: unknown kind of pattern");
}

static std::string pcre2_message(int error) {
    char text[256];
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
    return text;
}

struct Splitter::Pattern {
    pcre2_code* code;
    pcre2_match_data* match;
    pcre2_match_context* context;

    explicit Pattern(SplitKind kind) {
        int error;
        size_t where;
        code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern_text(kind)), PCRE2_ZERO_TERMINATED,
                             PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &where, nullptr);
        require(code, "split: PCRE2 refuses the pattern at ", where, ": ", pcre2_message(error));
        error = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
        if (error) pcre2_code_free(code);
        require(error == 0, "split: PCRE2 cannot compile to machine code on this machine (", pcre2_message(error),
                "); install a libpcre2-8 with JIT, on a system that lets programs make memory executable");
        match = pcre2_match_data_create(1, nullptr);
        context = pcre2_match_context_create(nullptr);
        if (!match || !context) throw std::bad_alloc();
        pcre2_set_match_limit(context, UINT32_MAX);  // a piece of a million spaces backtracks a million steps
    }
    ~Pattern() {
        pcre2_match_context_free(context);
        pcre2_match_data_free(match);
        pcre2_code_free(code);
    }
    Pattern(const Pattern&) = delete;
    Pattern& operator=(const Pattern&) = delete;
};

Splitter::Splitter(SplitKind kind) : pattern_(std::make_unique<Pattern>(kind)) {}

/// Length of the UTF-8 character at the start of `text`, 0 if there is none (RFC 3629).
static size_t character_bytes(std::string_view text) {
    auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    unsigned char first = byte(0);
    if (first < 0x80) return 1;
    size_t bytes = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || text.size() < bytes) return 0;
    for (size_t i = 1; i < bytes; i++)
        if ((byte(i) & 0xc0) != 0x80) return 0;
    bool too_long = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xf0 && byte(1) < 0x90);
    bool no_character = (first == 0xed && byte(1) > 0x9f) || (first == 0xf4 && byte(1) > 0x8f);
    return too_long || no_character ? 0 : bytes;
}

/// The text itself if it is valid UTF-8, else a copy in which a control character replaces every invalid byte.
static std::string_view make_utf8(std::string_view text, std::string& copy) {
    for (size_t at = 0; at < text.size();) {
        size_t bytes = character_bytes(text.substr(at));
        if (bytes == 0) {
            if (copy.empty()) copy = text;
            copy[at] = '\1';
        }
        at += std::max<size_t>(bytes, 1);
    }
    return copy.empty() ? text : copy;
}

void Splitter::split(std::string_view text, const std::function<void(std::string_view)>& take) {
    std::string copy;
    std::string_view subject = make_utf8(text, copy);
    const size_t* match = pcre2_get_ovector_pointer(pattern_->match);
    for (size_t begin = 0; begin < text.size(); begin = match[1]) {
        int found = pcre2_jit_match(pattern_->code, reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), begin, 0,
                                    pattern_->match, pattern_->context);
        require(found > 0, "split: PCRE2 failed: ", pcre2_message(found));
        take(text.substr(begin, match[1] - begin));
    }
}

#endif

Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;
Splitter::~Splitter() = default;

size_t last_border(std::string_view text) {
    auto word = [](unsigned char c) { return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'); };
    auto space = [](unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
    for (size_t i = text.size(); i-- > 1;)
        if (word(text[i - 1]) && space(text[i])) return i;
    return 0;
}
