// Turns text into shards of tokens: data/tokenize FILE_OR_FOLDER... --out DIR --train-tokenizer 4096
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unistd.h>
#include <vector>
#include "llmc/io/error.h"
#include "llmc/io/file.h"
#include "llmc/io/flags.h"
#include "llmc/io/hash.h"
#include "llmc/io/json.h"
#include "llmc/text/shard.h"
#include "llmc/text/shuffle.h"
#include "llmc/text/tokenizer.h"

namespace fs = std::filesystem;

/// A longer document is encoded in parts of about this many bytes.
static constexpr int64_t PART_BYTES = int64_t{8} << 20;
/// A tokenizer is trained on at most this many bytes; from a larger corpus it takes the same share of every document.
static constexpr int64_t SAMPLE_BYTES = int64_t{32} << 20;
/// If a larger corpus has more documents than this, only every n-th document is used.
static constexpr size_t SAMPLE_DOCUMENTS = 8192;

struct Options {
    Flags flags{"data/tokenize", "Turns text files, and folders of them, into shards of tokens. A document is a file, or with --separator a piece of a file;\n"
                                 "in a .jsonl file every line is a document, a JSON object with its text under the key \"text\". Every document begins\n"
                                 "with the token bos. Writes DIR/train_000000.bin, ..., DIR/val_000000.bin and DIR/tokenizer.txt, all of them or none."};
    std::vector<std::string>& inputs = flags.arguments("inputs", "text files and folders; binary files in folders are skipped");
    std::string& out = flags.text("--out", "", "folder for the shards; created if it does not exist");
    std::optional<int>& train_tokenizer = flags.number("--train-tokenizer", Nothing<int>{}, 257, 65536,
                                                       "train a tokenizer of this many tokens, 257 to 65536, on the training documents (on at most\n"
                                                       "32 MiB: of a larger corpus, on the start of each document)");
    std::optional<std::string>& tokenizer =
        flags.text("--tokenizer", Nothing<std::string>{}, "use this tokenizer file, or GPT-2's vocab.bpe, instead of training one");
    std::vector<std::string>& val_inputs = flags.repeated("--val", "a file or folder of validation text; can be given several times");
    int& val_every = flags.at_least("--val-every", 20, 0, "without --val, every n-th document is for validation; 0: none (20)");
    std::string& separator =
        flags.text("--separator", "", "the text that separates documents within a file, like '<|endoftext|>'; it belongs to no document");
    int64_t& piece_bytes = flags.at_least("--piece-bytes", int64_t{0}, int64_t{0},
                                          "with --separator: join pieces, with the separators between them, until they have this many bytes (0)");
    int64_t& shuffle_seed = flags.at_least("--shuffle-seed", int64_t{1}, int64_t{0},
                                           "seed that shuffles the documents before they are written to shards (1)");
    bool& no_shuffle = flags.toggle("--no-shuffle", "keep the order of the inputs; files of a folder are sorted by path");
    int64_t& shard_tokens = flags.number("--shard-tokens", int64_t{100'000'000}, 1, INT32_MAX, "tokens per shard, 1 to 2147483647 (100000000)");
    int64_t& train_tokens = flags.at_least("--train-tokens", int64_t{0}, int64_t{0},
                                           "write exactly this many training tokens, cutting the last document; 0: all (0)");
    int64_t& val_tokens = flags.at_least("--val-tokens", int64_t{0}, int64_t{0}, "the same for validation tokens; 0: all (0)");
    bool& unique = flags.toggle("--unique", "drop duplicate documents, and training documents that are in --val too");
    bool& overwrite = flags.toggle("--overwrite", "replace the shards and the tokenizer that --out holds");

    bool parse(int argc, char** argv) {
        flags.require_given("--out");
        flags.exclude("--val-every", "--val");
        flags.exclude("--no-shuffle", "--shuffle-seed");
        flags.need("--piece-bytes", "--separator");
        if (!flags.parse(argc, argv)) return false;
        require(train_tokenizer.has_value() != tokenizer.has_value(), "give one of --train-tokenizer and --tokenizer");
        require(val_every != 1, "--val-every is 1, but must be 0, or 2 or more");
        return true;
    }
};

static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Set by SIGINT and SIGTERM: the program then ends as on any error, and leaves nothing half-written.
static volatile std::sig_atomic_t stop_asked = 0;
static void check_stop() { require(!stop_asked, "stopped by a signal; nothing was changed"); }

// ----------------------------------------------------------------------------------------------------------- documents

/// Where the text of a document is: the whole file, a piece of it, or a line of a .jsonl file. The text is read only when it is needed.
struct Document {
    int file;        ///< index in Corpus::files
    int64_t offset;  ///< in the file
    int64_t bytes;   ///< in the file; the text of a JSON line has at most this many
};

/// The documents of both splits; the texts themselves are not kept in memory.
struct Corpus {
    std::vector<std::string> files;
    std::vector<Document> train, val;
};

static bool is_jsonl(const fs::path& path) { return path.extension() == ".jsonl"; }

/// The text of a line of a .jsonl file.
static std::string text_of_line(std::string_view line, const std::string& where) {
    const nlohmann::json object = parse_json(line, where);
    return json_string(json_member(object, "text", where), concat(where, ": 'text'"));
}

/// Finds the documents under the inputs: input by input, and sorted by path within a folder. (So their order does not depend on where
/// the folder lies.) A file or folder that is reachable by two paths or links is taken once, so that a cyclic link ends.
class DocumentFinder {
public:
    DocumentFinder(std::vector<std::string>& file_list, const std::string& separator_text, int64_t least_bytes)
        : files(file_list), separator(separator_text), piece_bytes(least_bytes) {}

    std::vector<Document> find(const std::vector<std::string>& inputs) {
        std::vector<Document> documents;
        for (const std::string& input : inputs) {
            require(fs::exists(input), "input '", input, "' does not exist; give files or folders of text");
            require(fs::is_regular_file(input) || fs::is_directory(input), "input '", input, "' is neither a file nor a folder");
            std::vector<std::string> paths;
            visit(input, paths, true);
            std::sort(paths.begin(), paths.end());
            for (const std::string& path : paths) list_documents(path, documents);
        }
        return documents;
    }

    /// Prints one line for each reason to skip files.
    void print_skipped() const {
        auto warn = [](size_t count, const std::string& one, const std::string& several, const std::string& first) {
            std::cerr << readable(concat("tokenize: warning: skipped ", count, count == 1 ? one : several, ": '", first, count == 1 ? "'" : "' and others")) << std::endl;
        };
        for (const auto& [reason, paths] : skipped) warn(paths.size(), " file: " + reason, " files: " + reason, paths[0]);
        if (empty_lines > 0) warn(static_cast<size_t>(empty_lines), " line whose 'text' is empty", " lines whose 'text' is empty", first_empty_line);
    }

private:
    /// named: given on the command line, not found in a folder.
    void visit(const fs::path& path, std::vector<std::string>& paths, bool named) {
        check_stop();
        std::error_code unreadable;
        fs::path real = fs::canonical(path, unreadable);
        if (unreadable) return skip("a link that leads nowhere", path);
        if (!seen.insert(real).second) return;
        if (!fs::is_directory(real)) return visit_file(path, paths, named);

        std::vector<fs::path> entries;
        for (const fs::directory_entry& entry : fs::directory_iterator(path, unreadable)) entries.push_back(entry.path());
        if (unreadable) return skip("a folder that cannot be read", path);
        std::sort(entries.begin(), entries.end());
        for (const fs::path& entry : entries) visit(entry, paths, false);
    }

    void visit_file(const fs::path& path, std::vector<std::string>& paths, bool named) {
        if (!fs::is_regular_file(path)) return skip("not a file", path);
        if (access(path.c_str(), R_OK) != 0) return skip("cannot be read", path);
        File file(path);
        if (file.size() == 0) return skip("empty", path);
        if (named) return paths.push_back(path);
        std::string start(static_cast<size_t>(std::min<int64_t>(file.size(), 8192)), '\0');
        file.read(start.data(), static_cast<int64_t>(start.size()), 0);
        if (start.find('\0') != start.npos) return skip("binary (a NUL in the first 8 KiB)", path);
        paths.push_back(path);
    }

    void skip(const std::string& reason, const fs::path& path) { skipped[reason].push_back(path); }

    void list_documents(const std::string& path, std::vector<Document>& documents) {
        files.push_back(path);
        const File file(path);
        const int number = static_cast<int>(files.size()) - 1;
        if (is_jsonl(path))
            list_lines(file, number, documents);
        else if (!separator.empty())
            list_pieces(file, number, documents);
        else
            documents.push_back({number, 0, file.size()});
    }

    /// Parses every line once, so that a bad line is an error before anything is written.
    void list_lines(const File& file, int number, std::vector<Document>& documents) {
        int64_t line = 0;
        for_each_piece(file, "\n", [&](std::string_view text, int64_t offset, bool last) {
            if (last && text.empty()) return;   // after the final line break
            const std::string where = concat(file.path(), ": line ", ++line);
            if (!text_of_line(text, where).empty())
                documents.push_back({number, offset, static_cast<int64_t>(text.size())});
            else if (empty_lines++ == 0)
                first_empty_line = where;
        });
    }

    /// Joins pieces to documents of at least piece_bytes bytes. Pieces of white space alone neither begin nor end a document.
    void list_pieces(const File& file, int number, std::vector<Document>& documents) {
        Document joined{number, 0, 0};   // bytes 0: no document has begun
        const auto end = [&] {
            if (joined.bytes > 0) documents.push_back(joined);
            joined.bytes = 0;
        };
        for_each_piece(file, separator, [&](std::string_view text, int64_t offset, bool) {
            if (text.find_first_not_of(" \t\r\n\v\f") == text.npos) return;
            if (joined.bytes == 0) joined.offset = offset;
            joined.bytes = offset + static_cast<int64_t>(text.size()) - joined.offset;
            if (joined.bytes >= piece_bytes) end();
        });
        end();
    }

    /// Calls take(text, offset, last) for each piece of text between two occurrences of `end`. Uses as much memory as the longest piece.
    template <class Take>
    static void for_each_piece(const File& file, std::string_view end, Take take) {
        std::string text;        // the file from `offset` on: the piece that has not ended yet
        int64_t offset = 0;
        size_t searched = 0;     // no `end` begins in the first `searched` bytes of `text`
        for (int64_t read = 0;;) {
            check_stop();
            size_t begin = 0;
            for (size_t at; (at = text.find(end, std::max(searched, begin))) != text.npos; begin = at + end.size())
                take(std::string_view(text).substr(begin, at - begin), offset + static_cast<int64_t>(begin), false);
            text.erase(0, begin);
            offset += static_cast<int64_t>(begin);
            if (read == file.size()) break;
            searched = text.size() - std::min(text.size(), end.size() - 1);
            const int64_t more = std::min(FILE_CHUNK, file.size() - read);
            const size_t kept = text.size();
            text.resize(kept + static_cast<size_t>(more));
            file.read(text.data() + kept, more, read);
            read += more;
        }
        take(text, offset, true);
    }

    std::vector<std::string>& files;
    std::string separator;
    int64_t piece_bytes;
    std::set<fs::path> seen;
    std::map<std::string, std::vector<std::string>> skipped;
    int64_t empty_lines = 0;
    std::string first_empty_line;
};

static int64_t stored_bytes(const std::vector<Document>& documents) {
    int64_t bytes = 0;
    for (const Document& document : documents) bytes += document.bytes;
    return bytes;
}

/// Removes every n-th document and returns them.
static std::vector<Document> take_validation(std::vector<Document>& documents, int every) {
    std::vector<Document> train, val;
    for (size_t i = 0; i < documents.size(); i++) (every > 0 && i % every == every - size_t{1} ? val : train).push_back(documents[i]);
    documents = train;
    return val;
}

/// Reads the text of documents in parts.
class Reader {
public:
    explicit Reader(const Corpus& texts) : corpus(texts) {}

    void open(const Document& next) {
        document = next;
        at = 0;
        const std::string& path = corpus.files[static_cast<size_t>(next.file)];
        if (!file || file->path() != path) file.emplace(path);
    }
    /// Appends the next part of the text, about `bytes` bytes (of a JSON line: all of it). False when it was the last part.
    bool append(std::string& text, int64_t bytes) {
        const bool line = is_jsonl(file->path());
        const int64_t more = line ? document.bytes : std::min(bytes, document.bytes - at);
        const size_t kept = text.size();
        text.resize(kept + static_cast<size_t>(more));
        file->read(text.data() + kept, more, document.offset + at);
        if (line) text.replace(kept, text.npos, text_of_line(std::string_view(text).substr(kept), concat(file->path(), ": at byte ", document.offset)));
        at += more;
        return at < document.bytes;
    }

private:
    const Corpus& corpus;
    std::optional<File> file;
    Document document{};
    int64_t at = 0;   // bytes of the document that have been read
};

/// Length and hash of a text: texts with equal ones count as duplicates.
using Fingerprint = std::pair<int64_t, uint64_t>;

/// Removes the documents whose text is in `seen`, and adds the texts of the others to it.
static void drop_duplicates(const Corpus& corpus, std::vector<Document>& documents, std::set<Fingerprint>& seen) {
    Reader reader(corpus);
    std::string text;
    std::erase_if(documents, [&](const Document& document) {
        reader.open(document);
        Xxh3 hash;
        int64_t bytes = 0;
        for (bool more = true; more;) {
            check_stop();
            text.clear();
            more = reader.append(text, PART_BYTES);
            hash.add(text.data(), std::ssize(text));
            bytes += std::ssize(text);
        }
        return !seen.insert({bytes, hash.value()}).second;
    });
}

// ----------------------------------------------------------------------------------------------------------- tokenizer

/// Trains on the corpus, or if it is larger than the sample on the start of every document; of very many documents, of every n-th.
static Tokenizer train_tokenizer(const Corpus& corpus, int vocab_size) {
    double begin = seconds();
    std::vector<Document> sample = corpus.train;
    if (stored_bytes(sample) > SAMPLE_BYTES && sample.size() > SAMPLE_DOCUMENTS) {
        const size_t every = (sample.size() + SAMPLE_DOCUMENTS - 1) / SAMPLE_DOCUMENTS;
        sample.clear();
        for (size_t i = 0; i < corpus.train.size(); i += every) sample.push_back(corpus.train[i]);
    }
    double share = std::min(1.0, static_cast<double>(SAMPLE_BYTES) / static_cast<double>(stored_bytes(sample)));
    std::vector<std::string> texts;
    Reader reader(corpus);
    int64_t bytes = 0;
    for (const Document& document : sample) {
        check_stop();
        const int64_t wanted = static_cast<int64_t>(static_cast<double>(document.bytes) * share);
        std::string text;
        reader.open(document);
        reader.append(text, wanted);
        if (share < 1) {
            text.resize(std::min(text.size(), static_cast<size_t>(wanted)));
            if (size_t border = last_border(text)) text.resize(border);
        }
        bytes += static_cast<int64_t>(text.size());
        texts.push_back(std::move(text));
    }
    Tokenizer tokenizer = Tokenizer::train(texts, vocab_size);
    std::printf("tokenizer: %d tokens, trained on %s%s in %.1f s\n", vocab_size, human_bytes(bytes).c_str(),
                bytes == stored_bytes(corpus.train) ? "" : share < 1 ? " (the start of documents)" : sample.size() < corpus.train.size() ? " (of some documents)" : "",
                seconds() - begin);
    return tokenizer;
}

// -------------------------------------------------------------------------------------------------------------- shards

/// A temporary folder in --out in which the files are written, so that all of them appear in --out or none. It is removed at the end, also
/// after an error; that of a killed process stays, as tokenize.PROCESS.tmp.
class Workplace {
public:
    explicit Workplace(const fs::path& out_folder) : out(out_folder), path(out / concat("tokenize.", getpid(), ".tmp")) {
        std::error_code error;
        made_out = fs::create_directories(out, error);
        if (!error) fs::create_directory(path, error);
        require(!error, "--out '", out.string(), "' cannot be written: ", error.message(), "; name another folder");
    }
    ~Workplace() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
        if (made_out && !published) fs::remove(out, ignored);
    }
    Workplace(const Workplace&) = delete;
    Workplace& operator=(const Workplace&) = delete;

    const fs::path& folder() const { return path; }

    /// Removes the `old` files, and moves the finished ones to --out.
    void publish(const std::vector<fs::path>& old) {
        for (const fs::path& file : old) fs::remove(file);
        for (const fs::directory_entry& entry : fs::directory_iterator(path)) fs::rename(entry.path(), out / entry.path().filename());
        published = true;
    }

private:
    fs::path out, path;
    bool made_out = false, published = false;
};

/// Writes a stream of tokens to shards NAME_000000.bin, NAME_000001.bin, ..., all full but the last. Tokens beyond `most_tokens` are dropped.
class ShardSequence {
public:
    ShardSequence(const fs::path& out, const char* kind, int64_t shard_tokens, int64_t most_tokens)
        : folder(out), prefix(kind), limit(shard_tokens), most(most_tokens) {}

    bool full() const { return tokens == most; }
    /// Returns the tokens that it wrote.
    std::span<const uint16_t> write(std::span<const uint16_t> ids) {
        ids = ids.first(static_cast<size_t>(std::min<int64_t>(std::ssize(ids), most - tokens)));
        const std::span<const uint16_t> written = ids;
        while (!ids.empty()) {
            if (!shard) start();
            size_t count = std::min(ids.size(), static_cast<size_t>(limit - shard->tokens()));
            shard->write(ids.first(count));
            ids = ids.subspan(count);
            tokens += static_cast<int64_t>(count);
            if (shard->tokens() == limit) finish();
        }
        return written;
    }
    void finish() {
        if (!shard) return;
        shard->finish();
        std::printf("shard: %s, %lld tokens\n", name.c_str(), static_cast<long long>(shard->tokens()));
        std::fflush(stdout);
        shard.reset();
    }

    int64_t tokens = 0;
    int shards = 0;

private:
    void start() {
        require(shards < 1'000'000, "more than 1000000 shards; give a larger --shard-tokens");
        std::string number = std::to_string(1'000'000 + shards++).substr(1);
        name = prefix + "_" + number + ".bin";
        shard.emplace((folder / name).string());
    }

    fs::path folder;
    std::string prefix, name;
    int64_t limit, most;
    std::optional<ShardWriter> shard;
};

/// Encodes a document in parts that are cut at borders of pieces, so that the tokens are those of the whole text. Returns the number of
/// bytes of text that were written.
static int64_t encode_document(Reader& reader, const Document& document, Tokenizer& tokenizer, ShardSequence& shards) {
    uint16_t bos = static_cast<uint16_t>(tokenizer.bos());
    shards.write({&bos, 1});
    reader.open(document);
    std::string text;  // read, but not yet encoded
    int64_t bytes = 0;
    for (bool more = true; more && !shards.full();) {
        check_stop();
        more = reader.append(text, PART_BYTES);
        size_t end = more ? last_border(text) : text.size();
        const std::vector<uint16_t> ids = tokenizer.encode(std::string_view(text).substr(0, end));
        const std::span<const uint16_t> written = shards.write(ids);
        bytes += written.size() == ids.size() ? static_cast<int64_t>(end) : std::ssize(tokenizer.decode(written));
        text.erase(0, end);
    }
    return bytes;
}

/// most_tokens: number of tokens to write; 0: all.
static void encode(const char* kind, const Corpus& corpus, const std::vector<Document>& documents, Tokenizer& tokenizer, const fs::path& folder,
                   int64_t shard_tokens, int64_t most_tokens) {
    double begin = seconds(), bytes = 0;
    ShardSequence shards(folder, kind, shard_tokens, most_tokens > 0 ? most_tokens : INT64_MAX);
    Reader reader(corpus);
    size_t used = 0;
    for (; used < documents.size() && !shards.full(); used++) bytes += static_cast<double>(encode_document(reader, documents[used], tokenizer, shards));
    shards.finish();
    require(most_tokens == 0 || shards.full(), "--", kind, "-tokens is ", most_tokens, ", but the documents give only ", shards.tokens,
            "; give at most that, or more text");
    double time = seconds() - begin;
    double text_tokens = static_cast<double>(shards.tokens) - static_cast<double>(used);
    std::printf("%s: %zu documents, %.0f bytes, %lld tokens, %.3f bytes/token, %d shard%s, %.1f MB/s\n", kind, used, bytes,
                static_cast<long long>(shards.tokens), bytes / std::max(text_tokens, 1.0), shards.shards, shards.shards == 1 ? "" : "s",
                bytes / 1e6 / std::max(time, 1e-9));
}

// ---------------------------------------------------------------------------------------------------------------- main

/// The files of an earlier run in the folder: train_NNNNNN.bin, val_NNNNNN.bin and the tokenizer.
static std::vector<fs::path> finished_files(const fs::path& out) {
    std::vector<fs::path> found;
    if (!fs::is_directory(out)) return found;
    for (const fs::directory_entry& entry : fs::directory_iterator(out)) {
        std::string name = entry.path().filename();
        size_t digits = name.starts_with("train_") ? 6 : name.starts_with("val_") ? 4 : 0;
        bool shard = digits > 0 && name.size() == digits + 10 && name.ends_with(".bin") &&
                     name.find_first_not_of("0123456789", digits) == digits + 6;
        if (shard || entry.path() == tokenizer_beside(out / "shard")) found.push_back(entry.path());
    }
    return found;
}

static void check_out(const Options& options) {
    require(!fs::exists(options.out) || fs::is_directory(options.out), "--out '", options.out, "' is not a folder");
    std::vector<fs::path> found = finished_files(options.out);
    require(found.empty() || options.overwrite, "--out '", options.out, "' already holds ", found.empty() ? "" : found[0].filename().string(),
            "; give another folder, or --overwrite to replace its shards and tokenizer");
}

static int tokenize(const Options& options) {
    check_out(options);
    Corpus corpus;
    DocumentFinder finder(corpus.files, options.separator, options.piece_bytes);
    corpus.val = finder.find(options.val_inputs), corpus.train = finder.find(options.inputs);
    finder.print_skipped();
    require(!corpus.train.empty(), "no text in '", options.inputs[0], "'", options.inputs.size() > 1 ? " and the other inputs" : "", "; give files with text");
    if (options.unique) {
        const size_t before = corpus.val.size() + corpus.train.size();
        std::set<Fingerprint> seen;
        for (std::vector<Document>* documents : {&corpus.val, &corpus.train}) drop_duplicates(corpus, *documents, seen);
        require(!corpus.train.empty(), "every text in '", options.inputs[0], "' is also in the text of --val, and --unique drops it; give other text");
        std::printf("unique: %zu of %zu documents\n", corpus.val.size() + corpus.train.size(), before);
    }
    // The validation documents and the tokenizer are determined before the shuffle, so that they do not depend on its seed.
    if (options.val_inputs.empty())
        corpus.val = take_validation(corpus.train, options.val_every);
    else
        require(!corpus.val.empty(), "no text in '", options.val_inputs[0], "', which --val names; give files with text");

    require(options.val_tokens == 0 || !corpus.val.empty(), "--val-tokens is ", options.val_tokens, ", but of ", corpus.train.size(),
            " documents none is for validation; give --val, or a smaller --val-every");

    Tokenizer tokenizer = options.tokenizer ? Tokenizer::load(*options.tokenizer) : train_tokenizer(corpus, *options.train_tokenizer);
    if (!options.no_shuffle)
        for (std::vector<Document>* documents : {&corpus.train, &corpus.val}) shuffle(*documents, static_cast<uint64_t>(options.shuffle_seed));

    Workplace workplace(options.out);
    tokenizer.save(tokenizer_beside(workplace.folder() / "shard"));
    encode("train", corpus, corpus.train, tokenizer, workplace.folder(), options.shard_tokens, options.train_tokens);
    if (!corpus.val.empty()) encode("val", corpus, corpus.val, tokenizer, workplace.folder(), options.shard_tokens, options.val_tokens);
    check_out(options);
    workplace.publish(finished_files(options.out));
    if (corpus.val.empty() && options.val_every > 0)
        std::printf("val: none, there are only %zu documents; give validation files with --val, or a smaller --val-every\n", corpus.train.size());
    std::printf("written: %s\n", (fs::path(options.out) / "train_*.bin").c_str());
    return 0;
}

int main(int argc, char** argv) {
    return run_program("tokenize", [&] {
        Options o;
        if (!o.parse(argc, argv)) return 0;
        std::signal(SIGINT, [](int) { stop_asked = 1; });
        std::signal(SIGTERM, [](int) { stop_asked = 1; });
        return tokenize(o);
    });
}
