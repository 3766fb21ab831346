// The data loader: which tokens make the next micro-batch, and the thread that prefetches them.
#include "llmc/text/dataloader.h"
#include <glob.h>
#include <sys/stat.h>
#include <algorithm>
#include <filesystem>
#include <iomanip>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include "llmc/io/error.h"
#include "llmc/io/file.h"
#include "llmc/io/json.h"
#include "llmc/text/shard.h"
#include "llmc/text/shuffle.h"

using nlohmann::json;

static constexpr size_t BUFFERED_DOCUMENTS = 1000;      // of bos_bestfit, as in nanochat
static constexpr int64_t SCANNED_TOKENS = 1 << 16;      // searched for bos at a time

const char* name_of(Packing packing) { return packing == Packing::stream ? "stream" : "bos-bestfit"; }

Packing packing_named(const std::string& name) {
    for (Packing packing : {Packing::stream, Packing::bos_bestfit})
        if (name == name_of(packing)) return packing;
    fail("packing is '", name, "', but must be one of: stream, bos-bestfit");
}

/// The patterns in an error: the first one, and how many more there are.
static std::string patterns_text(const std::vector<std::string>& patterns) {
    return concat("'", patterns.front(), "'", patterns.size() > 1 ? concat(" and ", patterns.size() - 1, " more") : "");
}

// ------------------------------------------------------------------------------------------ the order of tokens

/// Reads the micro-batch at a place. The place alone is the state of the order; everything else here (an open file, a piece of it in
/// memory) is only a cache.
class DataLoader::Reader {
public:
    Reader(const LoaderOptions& what, const std::vector<Shard>& all, const std::vector<int>& turns)
        : options(what), files(all), order(turns) {}

    /// Fills the next micro-batch of this share from `place` on, and moves the place past it; after the last one of a step, to the next step.
    void read(Batch& batch, Place& place) {
        const Share& share = options.share;
        for (; place.of_step < share.first; place.of_step++) take(nullptr, nullptr, place);
        take(batch.inputs.data(), batch.targets.data(), place);
        if (options.following) {
            Place behind = place;
            take(nullptr, batch.following.data(), behind);
        }
        if (++place.of_step < share.first + share.count) return;
        for (; place.of_step < share.of; place.of_step++) take(nullptr, nullptr, place);
        place.of_step = 0;
    }

    /// Number of micro-batches that use no more documents than one pass has.
    int64_t count_batches() {
        Place reading;
        int64_t documents = 0;
        for (next_document(reading); reading.epoch == 0; next_document(reading)) documents++;

        Place packing;
        for (int64_t taken = 0, count = 0;; count++) {
            for (int row = 0; row < options.B; row++) taken += pack_row(nullptr, packing);
            if (taken > documents) return std::max(count, int64_t{1});
        }
    }

private:
    /// Takes the micro-batch at `place`, and moves the place past it; if inputs and targets are both null, it is skipped without reading.
    void take(int* inputs, int* targets, Place& place) {
        if (options.packing == Packing::stream) take_stream(inputs, targets, place);
        else take_rows(inputs, targets, place);
    }

    void take_stream(int* inputs, int* targets, Place& place) {
        const int64_t n = int64_t{options.B} * options.T;
        while (place.token + n + 1 > files[order[place.turn]].tokens) next_shard(place);
        if (targets) {
            tokens.resize(n + 1);
            read_tokens(tokens.data(), order[place.turn], place.token, n + 1);
            give(inputs, targets, n);
        }
        place.token += n;
    }

    void take_rows(int* inputs, int* targets, Place& place) {
        const int T = options.T;
        tokens.resize(T + 1);
        for (int64_t at = 0; at < int64_t{options.B} * T; at += T) {
            pack_row(targets ? tokens.data() : nullptr, place);
            if (targets) give(inputs ? inputs + at : nullptr, targets + at, T);
        }
    }

    /// Copies n + 1 tokens to n inputs (unless null) and n targets.
    void give(int* inputs, int* targets, int64_t n) const {
        if (inputs) std::copy_n(tokens.begin(), n, inputs);
        std::copy_n(tokens.begin() + 1, n, targets);
    }

    /// Packs one row of T + 1 tokens, and returns the number of documents in it. row null: the row belongs to another process, and its tokens are
    /// not read.
    int pack_row(uint16_t* row, Place& place) {
        int documents = 0;
        for (int64_t room = options.T + 1; room > 0; documents++) {
            while (place.buffer.size() < BUFFERED_DOCUMENTS) place.buffer.push_back(next_document(place));
            auto chosen = best_fit(place.buffer, room);
            Document document = *chosen;
            place.buffer.erase(chosen);
            int64_t n = std::min(document.length, room);
            if (row) read_tokens(row + options.T + 1 - room, document.shard, document.start, n);
            room -= n;
        }
        return documents;
    }

    /// The largest document that fits, or the shortest one if none fits; the first of ties.
    static std::vector<Document>::iterator best_fit(std::vector<Document>& buffer, int64_t room) {
        auto largest = buffer.end(), shortest = buffer.begin();
        for (auto d = buffer.begin(); d != buffer.end(); ++d) {
            if (d->length <= room && (largest == buffer.end() || d->length > largest->length)) largest = d;
            if (d->length < shortest->length) shortest = d;
        }
        return largest != buffer.end() ? largest : shortest;
    }

    Document next_document(Place& place) {
        for (size_t tried = 0; tried <= files.size(); tried++, next_shard(place)) {
            int shard = order[place.turn];
            int64_t start = find_bos(shard, place.token);
            if (start == files[shard].tokens) continue;
            place.token = find_bos(shard, start + 1);
            return {shard, start, place.token - start};
        }
        fail("no shard of ", patterns_text(options.patterns), " holds the token ", options.bos, " that begins a document, which rows of --packing ",
             name_of(options.packing), " start with; use --packing stream, or make the shards again with data/tokenize");
    }

    /// Position of the first bos at or after `from`; the number of tokens if there is none.
    int64_t find_bos(int shard, int64_t from) {
        while (from < files[shard].tokens) {
            int64_t offset = from - scanned_start;
            if (shard != scanned_shard || offset < 0 || offset >= static_cast<int64_t>(scanned.size())) {
                scanned.resize(std::min(SCANNED_TOKENS, files[shard].tokens - from));
                scanned_shard = -1;                     // in case reading throws
                read_raw(scanned.data(), shard, from, static_cast<int64_t>(scanned.size()));
                scanned_shard = shard;
                scanned_start = from;
                offset = 0;
            }
            auto found = std::find(scanned.begin() + offset, scanned.end(), options.bos);
            from = scanned_start + (found - scanned.begin());
            if (found != scanned.end()) break;
        }
        return from;
    }

    void next_shard(Place& place) const {
        place.token = 0;
        if (++place.turn == static_cast<int>(order.size())) {
            place.turn = 0;
            place.epoch++;
        }
    }

    /// Reads tokens for the model, and checks that they are in its vocabulary.
    void read_tokens(uint16_t* dst, int shard, int64_t start, int64_t count) {
        read_raw(dst, shard, start, count);
        uint16_t largest = 0;
        for (int64_t i = 0; i < count; i++) largest = std::max(largest, dst[i]);
        if (largest < options.vocab_size) return;
        auto bad = std::find_if(dst, dst + count, [&](uint16_t token) { return token >= options.vocab_size; });
        fail("shard '", files[shard].path, "' holds token ", *bad, " at position ", start + (bad - dst), ", but the vocabulary has ",
             options.vocab_size, " (0 to ", options.vocab_size - 1, "); use shards of this model's tokenizer, or a model with --vocab-size ",
             (*bad / 8 + 1) * 8, " or more");
    }

    void read_raw(uint16_t* dst, int shard, int64_t start, int64_t count) {
        if (shard != open_shard) {
            open_shard = -1;                            // in case opening throws
            file = std::make_unique<File>(files[shard].path);
            int64_t bytes = static_cast<int64_t>(sizeof(ShardHeader)) + 2 * files[shard].tokens;
            require(file->size() == bytes, "shard '", files[shard].path, "' has changed since the start: it had ", bytes, " bytes, now ",
                    file->size(), "; restore it, or start again with the new one");
            open_shard = shard;
        }
        file->read(dst, 2 * count, static_cast<int64_t>(sizeof(ShardHeader)) + 2 * start);
    }

    const LoaderOptions& options;
    const std::vector<Shard>& files;
    const std::vector<int>& order;

    std::unique_ptr<File> file;
    int open_shard = -1;
    std::vector<uint16_t> tokens;                       // a micro-batch, or a row
    std::vector<uint16_t> scanned;                      // tokens of scanned_shard, from scanned_start on
    int scanned_shard = -1;
    int64_t scanned_start = 0;
};

// ------------------------------------------------------------------------------------------ the shards

/// The path itself if such a file exists, else the files that match the pattern.
static std::vector<std::string> matching_paths(const std::string& pattern) {
    if (std::error_code ignored; std::filesystem::exists(pattern, ignored)) return {pattern};
    std::vector<std::string> paths;
    glob_t found{};
    if (glob(pattern.c_str(), GLOB_TILDE | GLOB_NOSORT, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    globfree(&found);
    require(!paths.empty(), "no file matches '", pattern, "'; give paths of shards, or a pattern like 'corpus/train_*.bin' ",
            "(data/tokenize makes shards from text)");
    return paths;
}

/// The files of all patterns, sorted by the bytes of their paths, each file once.
static std::vector<std::string> matching_paths(const std::vector<std::string>& patterns) {
    std::vector<std::string> paths, once;
    for (const std::string& pattern : patterns)
        for (std::string& path : matching_paths(pattern)) paths.push_back(std::move(path));
    std::sort(paths.begin(), paths.end());
    std::set<std::pair<dev_t, ino_t>> seen;
    for (std::string& path : paths) {
        struct stat file;
        // A file that stat() cannot read is reported when it is opened.
        if (stat(path.c_str(), &file) != 0 || seen.emplace(file.st_dev, file.st_ino).second) once.push_back(std::move(path));
    }
    return once;
}

/// The first token of a shard.
static int first_token(const std::string& path) {
    uint16_t token;
    File(path).read(&token, sizeof token, sizeof(ShardHeader));
    return token;
}

DataLoader::DataLoader(LoaderOptions given) : options(std::move(given)) {
    const LoaderOptions& o = options;
    require(o.B >= 1 && o.T >= 1, "a micro-batch is ", o.B, " x ", o.T, " tokens, but --device-batch and --seq-len must be 1 or more");
    const Share& share = o.share;
    require(share.first >= 0 && share.count >= 1 && share.count <= share.of - share.first, "a share of the micro-batches is ", share.count, " from ",
            share.first, " of ", share.of, ", but must be 1 or more of them");
    require(o.vocab_size >= 1, "vocabulary is ", o.vocab_size, ", but must be 1 or more");
    require(!o.patterns.empty(), "no shards were named; give their paths, or a pattern like 'corpus/train_*.bin'");
    for (const std::string& path : matching_paths(o.patterns)) files.push_back({path, read_shard_header(path)});

    // stream needs consecutive tokens of one shard, bos_bestfit rows of T + 1 tokens from anywhere.
    const bool stream = o.packing == Packing::stream;
    const double need = stream ? 1.0 * o.B * o.T + 1 : (o.T + 1.0) * o.B;
    int64_t have = total_tokens();
    if (stream) have = std::max_element(files.begin(), files.end(), [](auto& a, auto& b) { return a.tokens < b.tokens; })->tokens;
    require(have >= need, "a micro-batch of ", o.B, " x ", o.T, " tokens (device_batch x seq_len) takes ", std::fixed, std::setprecision(0), need, " tokens", stream ? " of one shard" : "", ", but the ",
            stream ? "largest of " : "", shards(), " shards of ", patterns_text(o.patterns), " ", stream ? "has " : "have ", have,
            "; use a smaller --device-batch or --seq-len, or more text");

    order.resize(files.size());
    std::iota(order.begin(), order.end(), 0);
    if (o.shuffle_seed) shuffle(order, *o.shuffle_seed);
    if (!stream && o.bos < 0) options.bos = first_token(first_shard());
    for (Batch& batch : batches) {
        batch.inputs.resize(size_t(o.B) * o.T);
        batch.targets.resize(size_t(o.B) * o.T);
        if (o.following) batch.following.resize(size_t(o.B) * o.T);
    }
}

DataLoader::~DataLoader() { stop(); }

int64_t DataLoader::total_tokens() const {
    return std::accumulate(files.begin(), files.end(), int64_t{0}, [](int64_t sum, const Shard& shard) { return sum + shard.tokens; });
}

int DataLoader::shards() const { return static_cast<int>(files.size()); }
std::string DataLoader::first_shard() const { return files.front().path; }

std::vector<std::string> DataLoader::paths() const {
    std::vector<std::string> paths;
    for (const Shard& shard : files) paths.push_back(shard.path);
    return paths;
}

std::string DataLoader::fingerprint() const {
    std::ostringstream text, digits;
    for (const Shard& shard : files) text << std::filesystem::path(shard.path).filename().string() << '\n' << shard.tokens << '\n';
    digits << std::hex << std::setw(16) << std::setfill('0') << XXH64(text.str().data(), text.str().size(), 0);
    return digits.str();
}

int64_t DataLoader::batches_per_epoch() const {
    if (options.packing == Packing::bos_bestfit) return Reader(options, files, order).count_batches();
    const int64_t step = int64_t{options.B} * options.T;
    return std::accumulate(files.begin(), files.end(), int64_t{0}, [&](int64_t sum, const Shard& shard) { return sum + (shard.tokens - 1) / step; });
}

// ------------------------------------------------------------------------------------------ the position

json DataLoader::position() const {
    json position{{"fingerprint", fingerprint()}, {"shards", shards()}, {"tokens", total_tokens()}, {"packing", name_of(options.packing)},
                  {"shuffle_seed", nullptr}, {"epoch", here.epoch}, {"shard", order[here.turn]}, {"token", here.token}};
    if (options.shuffle_seed) position["shuffle_seed"] = *options.shuffle_seed;
    if (options.packing == Packing::stream) return position;
    position["bos"] = options.bos;
    json& buffer = position["buffer"] = json::array();
    for (const Document& d : here.buffer) buffer.push_back({d.shard, d.start, d.length});
    return position;
}

DataLoader::Place DataLoader::place_of(const json& position) const {
    const std::string where = "position in the data";
    const std::string& print = json_string(json_member(position, "fingerprint", where), where + ": fingerprint");
    require(print == fingerprint(), where, ": it belongs to other shards (", json_member(position, "shards", where), " with ",
            json_member(position, "tokens", where), " tokens) than those of ", patterns_text(options.patterns), " (", shards(), " with ", total_tokens(),
            " tokens, or other file names); give the same shards as before");
    const std::string& packing = json_string(json_member(position, "packing", where), where + ": packing");
    require(packing == name_of(options.packing), where, ": it belongs to --packing ", packing, ", but now it is ", name_of(options.packing),
            "; give the same packing as before");
    const json& before = json_member(position, "shuffle_seed", where);
    const json now = options.shuffle_seed ? json(*options.shuffle_seed) : json();
    require(before == now, where, ": it belongs to --data-seed ", before, ", but now it is ", now, " (null: none); give the same seed as before");

    auto integer = [&](const json& value, int64_t max) { return json_integer(value, 0, max, where); };
    Place place;
    place.epoch = integer(json_member(position, "epoch", where), std::numeric_limits<int64_t>::max());
    const int64_t shard = integer(json_member(position, "shard", where), shards() - 1);
    place.token = integer(json_member(position, "token", where), files[shard].tokens);
    place.turn = static_cast<int>(std::find(order.begin(), order.end(), shard) - order.begin());
    if (options.packing == Packing::stream) return place;

    const json& bos = json_member(position, "bos", where);
    require(bos == options.bos, where, ": documents began with token ", bos, ", but now with ", options.bos, "; use the same tokenizer as before");
    const json& buffer = json_array(json_member(position, "buffer", where), where + ": buffer");
    require(buffer.size() <= BUFFERED_DOCUMENTS, where, ": buffer has ", buffer.size(), " documents, but can have ", BUFFERED_DOCUMENTS);
    for (const json& entry : buffer) {
        require(entry.is_array() && entry.size() == 3, where, ": a document of the buffer must be [shard, start, length], not ", entry);
        Document d;
        d.shard = static_cast<int>(integer(entry[0], shards() - 1));
        d.start = integer(entry[1], files[d.shard].tokens - 1);
        d.length = json_integer(entry[2], 1, files[d.shard].tokens - d.start, where);
        place.buffer.push_back(d);
    }
    return place;
}

void DataLoader::restore(const json& position) {
    Place place = place_of(position);
    stop();
    here = std::move(place);
}

void DataLoader::rewind() {
    stop();
    here = Place{};
}

// ------------------------------------------------------------------------------------------ prefetching

void DataLoader::next(int* inputs, int* targets, int* following) {
    require(!following || options.following, "targets of the following micro-batch need LoaderOptions::following");
    Batch& batch = front();
    std::copy(batch.inputs.begin(), batch.inputs.end(), inputs);
    std::copy(batch.targets.begin(), batch.targets.end(), targets);
    if (following) std::copy(batch.following.begin(), batch.following.end(), following);
    std::swap(here, batch.after);
    {
        std::lock_guard lock(mutex);
        first = 1 - first;
        filled--;
    }
    changed.notify_one();
}

/// Waits for the next micro-batch.
DataLoader::Batch& DataLoader::front() {
    if (!thread.joinable()) start();
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return filled > 0; });
    Batch& batch = batches[first];
    if (batch.error) std::rethrow_exception(batch.error);
    return batch;
}

void DataLoader::start() {
    first = filled = 0;
    stopping = false;
    thread = std::thread(&DataLoader::read_ahead, this, here);
}

void DataLoader::stop() {
    if (!thread.joinable()) return;
    {
        std::lock_guard lock(mutex);
        stopping = true;
    }
    changed.notify_one();
    thread.join();
}

/// The thread: fills whichever of the two batches is free, until it is stopped or reading fails.
void DataLoader::read_ahead(Place place) {
    Reader reader(options, files, order);
    for (int i = 0;; i = 1 - i) {
        {
            std::unique_lock lock(mutex);
            changed.wait(lock, [&] { return stopping || filled < 2; });
            if (stopping) return;
        }
        Batch& batch = batches[i];
        batch.error = nullptr;
        try {
            reader.read(batch, place);
            batch.after = place;
        } catch (...) {
            batch.error = std::current_exception();
        }
        const bool failed = batch.error != nullptr;
        {
            std::lock_guard lock(mutex);
            filled++;
        }
        changed.notify_one();
        if (failed) return;
    }
}
