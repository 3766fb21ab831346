// The loader: shards of tokens -> micro-batches of inputs and targets, read ahead in a thread.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

/// How rows of tokens are made from the shards.
///
/// stream       A micro-batch is B x T + 1 consecutive tokens (targets are the inputs shifted by one), then the position moves by B x T.
///              The tail of a shard that is too short for a micro-batch is skipped. (As in the stacking study, and in llm.c on one
///              process.)
/// bos_bestfit  A row is T + 1 tokens and starts with bos. From a buffer of 1000 documents (a document is bos and the tokens up to the
///              next bos or the end of the shard) the largest one that fits the rest of the row is taken, until none fits; then the
///              shortest one is cropped to fill the row, and the rest of it is dropped. Ties go to the document that was read
///              first. Tokens before the first bos of a shard are skipped. (As in the growth study, and in nanochat on one process.)
///
/// Both start again with the first shard after the last one.
enum class Packing { stream, bos_bestfit };
const char* name_of(Packing packing);                    ///< stream, bos-bestfit
Packing packing_named(const std::string& name);          ///< throws std::invalid_argument, listing the valid names

/// The micro-batches that one of several processes reads: of every `of` micro-batches of the common sequence, numbers first to first + count - 1.
struct Share {
    int64_t first = 0, count = 1, of = 1;
};

struct LoaderOptions {
    std::vector<std::string> patterns;                   ///< paths and glob patterns (glob(7)): corpus/train_*.bin
    int B = 0, T = 0;                                    ///< rows of a micro-batch, tokens of a row
    int vocab_size = 0;                                  ///< a token of this id or above is an error
    Share share;
    bool following = false;                              ///< next() also returns the targets of the following micro-batch
    Packing packing = Packing::stream;
    std::optional<uint64_t> shuffle_seed;                ///< shuffles the order of the shards, once; without it they are read in sorted order
    int bos = -1;                                        ///< for bos_bestfit; -1: the first token of the first (sorted) shard
};

/// Reads micro-batches. A thread prefetches two of them; its errors are thrown by next(). Not thread-safe. After the first call next()
/// allocates nothing with stream packing.
///
/// The shards are those of all patterns, sorted by the bytes of their paths: neither the order of the patterns matters, nor whether the
/// shell or the loader expands them. A file that is named twice, also through a link, is read once, under the first of its paths.
///
/// Errors (std::invalid_argument) name the file, the position and the way out: a pattern without a match, a bad header (all headers are
/// checked by the constructor), shards that are too small, a token beyond the vocabulary, a shard that was truncated or removed meanwhile.
class DataLoader {
public:
    explicit DataLoader(LoaderOptions options);
    ~DataLoader();
    DataLoader(const DataLoader&) = delete;
    DataLoader& operator=(const DataLoader&) = delete;

    /// The next micro-batch of this share.
    /// inputs    (B, T)  =
    /// targets   (B, T)  =   the token after each input
    /// following (B, T)  =   targets of the next micro-batch of the sequence, whichever process reads it; needs LoaderOptions::following, or null
    void next(int* inputs, int* targets, int* following = nullptr);

    /// The position of the micro-batch that next() will return (prefetched ones are not counted), with a fingerprint of the data. Between two
    /// steps (of Share::of micro-batches) it is the same on every process, whatever B, T and the shares.
    nlohmann::json position() const;

    /// Moves to a position() between two steps. With the same B and T the same micro-batches follow as before; with others, reading
    /// continues at the same token. Throws std::invalid_argument, and does not move, when the position is invalid, or belongs to other
    /// data (fingerprint), packing, shuffle_seed or bos.
    void restore(const nlohmann::json& position);

    /// Moves to the first token of the first shard.
    void rewind();

    int64_t total_tokens() const;                        ///< of all shards
    int shards() const;
    std::vector<std::string> paths() const;              ///< of the shards, sorted
    std::string first_shard() const;                     ///< path of the first of them
    std::string fingerprint() const;                     ///< of the data: a hash of every shard's file name and number of tokens, 16 digits

    /// Number of micro-batches of all shares in one pass over the data, at least 1. With bos_bestfit: those that use no more documents than
    /// the shards hold; counting them reads every shard twice.
    int64_t batches_per_epoch() const;

private:
    struct Shard {
        std::string path;
        int64_t tokens;
    };
    /// A document of bos_bestfit: the position of its bos, and its length with bos.
    struct Document {
        int shard;
        int64_t start, length;
    };
    /// The complete state of the order of tokens.
    struct Place {
        int64_t epoch = 0;                               ///< passes completed
        int turn = 0;                                    ///< order[turn] is the current shard
        int64_t token = 0;                               ///< the next token of that shard
        std::vector<Document> buffer;                    ///< bos_bestfit: documents that are read, but not yet packed
        int64_t of_step = 0;                             ///< micro-batches of the current step so far, of all shares
    };
    /// A prefetched micro-batch.
    struct Batch {
        std::vector<int> inputs, targets, following;
        Place after;                                     ///< the place of the following micro-batch
        std::exception_ptr error;                        ///< set if reading failed
    };
    class Reader;

    Place place_of(const nlohmann::json& position) const;
    void start();
    void stop();
    void read_ahead(Place place);
    Batch& front();

    LoaderOptions options;
    std::vector<Shard> files;                            ///< sorted by path
    std::vector<int> order;                              ///< indices of files, in the order of reading
    Place here;                                          ///< place of the micro-batch that next() will return

    Batch batches[2];                                    ///< a ring buffer: `filled` of them belong to the caller, the others to the thread
    int first = 0, filled = 0;                           ///< batches[first] is the next one; `mutex` guards these and `stopping`
    bool stopping = false;
    std::mutex mutex;
    std::condition_variable changed;
    std::thread thread;
};
