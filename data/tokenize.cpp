// Text to shards of tokens: data/tokenize FILE_OR_FOLDER... --out DIR --train-tokenizer 4096
#include <CLI/CLI.hpp>
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
#include "llmc/error.h"
#include "llmc/file.h"
#include "llmc/shard.h"
#include "llmc/tokenizer.h"

namespace fs = std::filesystem;

/// A longer document is encoded in parts of about this many bytes.
static constexpr int64_t PART_BYTES = int64_t{8} << 20;
/// A tokenizer is trained on at most this many bytes; of more text, on the same share of every document.
static constexpr int64_t SAMPLE_BYTES = int64_t{32} << 20;

struct Options {
    std::vector<std::string> inputs, val_inputs;
    std::string out, tokenizer;
    int train_tokenizer = 0;
    int val_every = 20;
    int64_t shard_tokens = 100'000'000;
    bool overwrite = false;
};

static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Set by SIGINT and SIGTERM: the program then ends as it does on any error, and leaves nothing half-written.
static volatile std::sig_atomic_t stop_asked = 0;
static void check_stop() { require(!stop_asked, "stopped by a signal; nothing was changed"); }

// ----------------------------------------------------------------------------------------------------------- documents

/// A file of text. It is read when its turn comes, never all documents at once.
struct Document {
    std::string path;
    int64_t bytes;
};

/// Finds the documents under the inputs, sorted by path. A file or folder that can be reached by two ways, links too, is
/// taken once, so a link that leads back up ends there.
class DocumentFinder {
public:
    std::vector<Document> find(const std::vector<std::string>& inputs) {
        std::vector<Document> documents;
        for (const std::string& input : inputs) {
            require(fs::exists(input), "input '", input, "' is not there");
            require(fs::is_regular_file(input) || fs::is_directory(input), "input '", input, "' is neither a file nor a folder");
            visit(input, documents, true);
        }
        std::sort(documents.begin(), documents.end(), [](const Document& a, const Document& b) { return a.path < b.path; });
        return documents;
    }

    /// One line for each reason to skip files.
    void print_skipped() const {
        for (const auto& [reason, paths] : skipped)
            std::cerr << "tokenize: warning: skipped " << paths.size() << (paths.size() == 1 ? " file: " : " files: ") << reason << ": '"
                      << paths[0] << (paths.size() == 1 ? "'\n" : "' and others\n");
    }

private:
    /// named: by the user himself, not found in a folder.
    void visit(const fs::path& path, std::vector<Document>& documents, bool named) {
        check_stop();
        std::error_code unreadable;
        fs::path real = fs::canonical(path, unreadable);
        if (unreadable) return skip("a link that leads nowhere", path);
        if (!seen.insert(real).second) return;
        if (!fs::is_directory(real)) return visit_file(path, documents, named);

        std::vector<fs::path> entries;
        for (const fs::directory_entry& entry : fs::directory_iterator(path, unreadable)) entries.push_back(entry.path());
        if (unreadable) return skip("a folder that cannot be read", path);
        std::sort(entries.begin(), entries.end());
        for (const fs::path& entry : entries) visit(entry, documents, false);
    }

    void visit_file(const fs::path& path, std::vector<Document>& documents, bool named) {
        if (!fs::is_regular_file(path)) return skip("not a file", path);
        if (access(path.c_str(), R_OK) != 0) return skip("cannot be read", path);
        File file(path);
        if (file.size() == 0) return skip("empty", path);
        if (named) return documents.push_back({path, file.size()});
        std::string start(static_cast<size_t>(std::min<int64_t>(file.size(), 8192)), '\0');
        file.read(start.data(), static_cast<int64_t>(start.size()), 0);
        if (start.find('\0') != start.npos) return skip("binary (a NUL in the first 8 KiB)", path);
        documents.push_back({path, file.size()});
    }

    void skip(const std::string& reason, const fs::path& path) { skipped[reason].push_back(path); }

    std::set<fs::path> seen;
    std::map<std::string, std::vector<std::string>> skipped;
};

static int64_t total_bytes(const std::vector<Document>& documents) {
    int64_t bytes = 0;
    for (const Document& document : documents) bytes += document.bytes;
    return bytes;
}

/// Moves every n-th document, spread over the corpus, to the result.
static std::vector<Document> take_validation(std::vector<Document>& documents, int every) {
    std::vector<Document> train, val;
    for (size_t i = 0; i < documents.size(); i++) (every > 0 && i % every == every - size_t{1} ? val : train).push_back(documents[i]);
    documents = train;
    return val;
}

// ----------------------------------------------------------------------------------------------------------- tokenizer

static Tokenizer train_tokenizer(const std::vector<Document>& documents, int vocab_size) {
    double begin = seconds();
    double share = std::min(1.0, static_cast<double>(SAMPLE_BYTES) / static_cast<double>(total_bytes(documents)));
    std::vector<std::string> texts;
    int64_t bytes = 0;
    for (const Document& document : documents) {
        check_stop();
        std::string text(static_cast<size_t>(static_cast<double>(document.bytes) * share), '\0');
        File(document.path).read(text.data(), static_cast<int64_t>(text.size()), 0);
        if (share < 1)
            if (size_t border = last_border(text)) text.resize(border);
        bytes += static_cast<int64_t>(text.size());
        texts.push_back(std::move(text));
    }
    Tokenizer tokenizer = Tokenizer::train(texts, vocab_size);
    std::printf("tokenizer: %d tokens, trained on %s%s in %.1f s\n", vocab_size, human_bytes(bytes).c_str(),
                share < 1 ? " (the start of every document)" : "", seconds() - begin);
    return tokenizer;
}

// -------------------------------------------------------------------------------------------------------------- shards

/// A folder in --out where the files are made, so that all of them appear there or none. It goes away at the end, also of
/// a run that failed; that of a killed one stays, as tokenize.PROCESS.tmp, in nobody's way.
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

    /// Puts the finished files where `old` ones may lie.
    void publish(const std::vector<fs::path>& old) {
        for (const fs::path& file : old) fs::remove(file);
        for (const fs::directory_entry& entry : fs::directory_iterator(path)) fs::rename(entry.path(), out / entry.path().filename());
        published = true;
    }

private:
    fs::path out, path;
    bool made_out = false, published = false;
};

/// Tokens, one after another, into shards NAME_000000.bin, NAME_000001.bin, ... that are full but for the last.
class ShardSequence {
public:
    ShardSequence(const fs::path& out, const char* kind, int64_t shard_tokens) : folder(out), prefix(kind), limit(shard_tokens) {}

    void write(std::span<const uint16_t> ids) {
        while (!ids.empty()) {
            if (!shard) start();
            size_t count = std::min(ids.size(), static_cast<size_t>(limit - shard->tokens()));
            shard->write(ids.first(count));
            ids = ids.subspan(count);
            tokens += static_cast<int64_t>(count);
            if (shard->tokens() == limit) finish();
        }
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
    int64_t limit;
    std::optional<ShardWriter> shard;
};

/// Encodes a document in parts that begin and end where pieces of the text do, so that they give the tokens of the whole.
static void encode_document(const Document& document, Tokenizer& tokenizer, ShardSequence& shards) {
    uint16_t bos = static_cast<uint16_t>(tokenizer.bos());
    shards.write({&bos, 1});
    File file(document.path);
    std::string text;  // read, but not yet encoded
    for (int64_t at = 0; at < document.bytes;) {
        check_stop();
        int64_t more = std::min(PART_BYTES, document.bytes - at);
        size_t kept = text.size();
        text.resize(kept + static_cast<size_t>(more));
        file.read(text.data() + kept, more, at);
        at += more;
        size_t end = at == document.bytes ? text.size() : last_border(text);
        shards.write(tokenizer.encode(std::string_view(text).substr(0, end)));
        text.erase(0, end);
    }
}

static void encode(const char* kind, const std::vector<Document>& documents, Tokenizer& tokenizer, const fs::path& folder,
                   int64_t shard_tokens) {
    double begin = seconds();
    ShardSequence shards(folder, kind, shard_tokens);
    for (const Document& document : documents) encode_document(document, tokenizer, shards);
    shards.finish();
    double bytes = static_cast<double>(total_bytes(documents)), time = seconds() - begin;
    double text_tokens = static_cast<double>(shards.tokens) - static_cast<double>(documents.size());
    std::printf("%s: %zu documents, %.0f bytes, %lld tokens, %.3f bytes/token, %d shard%s, %.1f MB/s\n", kind, documents.size(), bytes,
                static_cast<long long>(shards.tokens), bytes / text_tokens, shards.shards, shards.shards == 1 ? "" : "s",
                bytes / 1e6 / std::max(time, 1e-9));
}

// ---------------------------------------------------------------------------------------------------------------- main

/// What an earlier run left in the folder: train_NNNNNN.bin, val_NNNNNN.bin and the tokenizer.
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
    DocumentFinder finder;
    std::vector<Document> val = finder.find(options.val_inputs), train = finder.find(options.inputs);
    finder.print_skipped();
    require(!train.empty(), "no text in '", options.inputs[0], "'", options.inputs.size() > 1 ? " and the other inputs" : "");
    if (options.val_inputs.empty())
        val = take_validation(train, options.val_every);
    else
        require(!val.empty(), "no text in '", options.val_inputs[0], "', which --val names");

    Tokenizer tokenizer = options.tokenizer.empty() ? train_tokenizer(train, options.train_tokenizer) : Tokenizer::load(options.tokenizer);

    Workplace workplace(options.out);
    tokenizer.save(tokenizer_beside(workplace.folder() / "shard"));
    encode("train", train, tokenizer, workplace.folder(), options.shard_tokens);
    if (!val.empty()) encode("val", val, tokenizer, workplace.folder(), options.shard_tokens);
    check_out(options);
    workplace.publish(finished_files(options.out));
    if (val.empty() && options.val_every > 0)
        std::printf("val: none, there are only %zu documents; name files for it with --val, or give a smaller --val-every\n", train.size());
    std::printf("written: %s\n", (fs::path(options.out) / "train_*.bin").c_str());
    return 0;
}

int main(int argc, char** argv) {
    return run_program("tokenize", [&] {
        Options o;
        CLI::App app("Text files and folders to shards of tokens, each document (file) begun by bos.\n"
                     "Writes DIR/train_000000.bin, ..., DIR/val_000000.bin and DIR/tokenizer.txt, all of them or none.", "tokenize");
        app.get_formatter()->column_width(28);
        app.add_option("inputs", o.inputs, "files of text and folders of them, taken in the order of their paths; in folders, binary files are left out")->required();
        app.add_option("--out", o.out, "folder for the shards; made if it is not there")->required();
        CLI::Option* train = app.add_option("--train-tokenizer", o.train_tokenizer,
                                            "train a tokenizer of this many tokens, 257 to 65536, on the training documents (on at most "
                                            "32 MiB: of more, on the start of each)");
        CLI::Option* given = app.add_option("--tokenizer", o.tokenizer, "or take this tokenizer's file, or GPT-2's vocab.bpe");
        CLI::Option* val = app.add_option("--val", o.val_inputs, "a file or folder of validation text; may be given again");
        val->allow_extra_args(false);
        app.add_option("--val-every", o.val_every, "without --val, every n-th document is validation; 0: none")
            ->excludes(val)
            ->capture_default_str();
        app.add_option("--shard-tokens", o.shard_tokens, "tokens in a shard, 1 to 2147483647")->capture_default_str();
        app.add_flag("--overwrite", o.overwrite, "replace the shards and the tokenizer that --out holds");
        try {
            app.parse(argc, argv);
        } catch (const CLI::CallForHelp&) {
            std::cout << app.help();
            return 0;
        } catch (const CLI::ParseError& error) {
            fail(error.what(), "; see data/tokenize --help");
        }
        require((train->count() > 0) != (given->count() > 0), "give one of --train-tokenizer and --tokenizer");
        require(!o.out.empty(), "--out is empty");
        require(given->count() > 0 || (o.train_tokenizer >= 257 && o.train_tokenizer <= 65536), "--train-tokenizer ", o.train_tokenizer,
                " is not in 257 to 65536");
        require(o.val_every == 0 || o.val_every >= 2, "--val-every ", o.val_every, " is neither 0 nor 2 or more");
        require(o.shard_tokens >= 1 && o.shard_tokens <= INT32_MAX, "--shard-tokens ", o.shard_tokens, " is not in 1 to ", INT32_MAX);
        std::signal(SIGINT, [](int) { stop_asked = 1; });
        std::signal(SIGTERM, [](int) { stop_asked = 1; });
        return tokenize(o);
    });
}
