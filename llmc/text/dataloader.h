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

/// How rows of tokens are cut out of the shards.
///
/// stream       A micro-batch is B x T + 1 consecutive tokens (inputs, and targets one on), then the position moves by B x T. A shard's
///              tail that cannot fill one is skipped. (The stacking study's order, and llm.c's on one process.)
/// bos_bestfit  A row is T + 1 tokens and starts with bos. From a buffer of 1000 documents (a document is bos and what
///              follows it, up to the next bos or the shard's end) the largest that fits the room left is taken until none
///              fits, then the shortest is cropped to fill the row; what is cropped away is not seen. Of equally long
///              documents the one read first is taken. Tokens before a shard's first bos are skipped. (The growth study's
///              order, nanochat's on one process.)
///
/// After the last shard either goes on with the first.
enum class Packing { stream, bos_bestfit };
const char* name_of(Packing packing);                    ///< stream, bos-bestfit
Packing packing_named(const std::string& name);          ///< throws std::invalid_argument with the names that exist

/// What one of several processes reads: there is one sequence of micro-batches, and of each `of` of them it takes `count`, from number `first` on.
struct Share {
    int64_t first = 0, count = 1, of = 1;
};

struct LoaderOptions {
    std::vector<std::string> patterns;                   ///< paths, and patterns of them (glob(7)): corpus/train_*.bin
    int B = 0, T = 0;                                    ///< rows of a micro-batch, tokens of a row
    int vocab_size = 0;                                  ///< a token of this id or above is an error
    Share share;
    bool following = false;                              ///< next() also gives the targets of the micro-batch that follows
    Packing packing = Packing::stream;
    std::optional<uint64_t> shuffle_seed;                ///< shuffles the shards' order, once; without it they are read sorted
    int bos = -1;                                        ///< of bos_bestfit; -1: the first token of the first (sorted) shard
};

/// Reads micro-batches. Two are kept read ahead by a thread of its own; what goes wrong in it is thrown by next(). One
/// caller at a time. Once the reading has begun, a micro-batch of stream packing allocates nothing.
///
/// The shards are those of all patterns, sorted by path byte by byte: neither the order of the patterns matters, nor whether the shell or
/// the loader expands them. A file that is named twice, by a link too, is read once, under the first of its paths.
///
/// Errors (std::invalid_argument) name the file, the position and the way out: a pattern without a match, a bad header (all are checked
/// at construction), shards too small, a token beyond the vocabulary, a shard that was cut short or removed meanwhile.
class DataLoader {
public:
    explicit DataLoader(LoaderOptions options);
    ~DataLoader();
    DataLoader(const DataLoader&) = delete;
    DataLoader& operator=(const DataLoader&) = delete;

    /// The next micro-batch of this share.
    /// inputs    (B, T)  =
    /// targets   (B, T)  =   the token after each input
    /// following (B, T)  =   targets of the micro-batch that follows in the sequence, whoever reads that; null, or with Options::following
    void next(int* inputs, int* targets, int* following = nullptr);

    /// The place of the micro-batch that next() will give, whatever has been read ahead, and what data it is a place in. Between the shares
    /// of two steps (Share::of micro-batches) it is the same on every process, whatever B, T and the shares.
    nlohmann::json position() const;

    /// Goes to a position(), of which a step begins. With the same B and T the micro-batches are those that would have followed; with
    /// others, reading goes on from the same token. Throws std::invalid_argument, and stays where it is, when the position
    /// is of other data (fingerprint), packing, shuffle_seed or bos, or is not a position.
    void restore(const nlohmann::json& position);

    /// Goes to the first token of the first shard.
    void rewind();

    int64_t total_tokens() const;                        ///< of all shards
    int shards() const;
    std::vector<std::string> paths() const;              ///< of the shards, sorted
    std::string first_shard() const;                     ///< path of the first of them
    std::string fingerprint() const;                     ///< of the data: 16 digits that stand for every shard's file name and count

    /// Micro-batches, of all shares, in one pass over the data, 1 at least. For bos_bestfit: those that are packed from no more
    /// documents than the shards hold; to count them, every shard is read through twice.
    int64_t batches_per_epoch() const;

private:
    struct Shard {
        std::string path;
        int64_t tokens;
    };
    /// A document of bos_bestfit: where its bos lies, and its tokens with it.
    struct Document {
        int shard;
        int64_t start, length;
    };
    /// All that decides which tokens come next.
    struct Place {
        int64_t epoch = 0;                               ///< passes completed
        int turn = 0;                                    ///< the shard being read is order[turn]
        int64_t token = 0;                               ///< of that shard, the next to be read
        std::vector<Document> buffer;                    ///< bos_bestfit: read, but not yet packed
        int64_t of_step = 0;                             ///< micro-batches of the step before it, of all shares
    };
    /// A micro-batch read ahead.
    struct Batch {
        std::vector<int> inputs, targets, following;
        Place after;                                     ///< the place of the one that follows
        std::exception_ptr error;                        ///< why there is none
    };
    class Reader;

    Place place_of(const nlohmann::json& position) const;
    void start();
    void stop();
    void read_ahead(Place place);
    Batch& front();

    LoaderOptions options;
    std::vector<Shard> files;                            ///< sorted by path
    std::vector<int> order;                              ///< of the files, in which they are read
    Place here;                                          ///< of the micro-batch that next() will give

    Batch batches[2];                                    ///< a ring: `filled` are the caller's, the others the thread's
    int first = 0, filled = 0;                           ///< batches[first] is the next; these and `stopping` under `mutex`
    bool stopping = false;
    std::mutex mutex;
    std::condition_variable changed;
    std::thread thread;
};
