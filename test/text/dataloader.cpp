// The loader against simple versions of both packings, which hold all data in memory; positions, errors, shutdown.
#include "llmc/text/dataloader.h"
#include <doctest/doctest.h>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <tuple>
#include "llmc/text/shard.h"
#include "test/program.h"

using nlohmann::json;
using Tokens = std::vector<int>;

namespace {

constexpr int BOS = 7;

void write_shard(const std::string& path, const Tokens& tokens) {
    std::string bytes(sizeof(ShardHeader), '\0');
    const int32_t header[3] = {SHARD_MAGIC, SHARD_VERSION, static_cast<int32_t>(tokens.size())};
    std::memcpy(bytes.data(), header, sizeof header);
    for (int token : tokens) {
        bytes += static_cast<char>(token & 255);
        bytes += static_cast<char>(token >> 8);
    }
    write_file(path, bytes);
}

struct Micro {
    Tokens inputs, targets;
    bool operator==(const Micro&) const = default;
};

/// Inputs and targets from rows of T + 1 tokens.
Micro micro_of(const std::vector<Tokens>& rows) {
    Micro micro;
    for (const Tokens& row : rows) {
        micro.inputs.insert(micro.inputs.end(), row.begin(), row.end() - 1);
        micro.targets.insert(micro.targets.end(), row.begin() + 1, row.end());
    }
    return micro;
}

Micro next(DataLoader& loader, const LoaderOptions& o) {
    Micro micro{Tokens(o.B * o.T, -1), Tokens(o.B * o.T, -1)};
    loader.next(micro.inputs.data(), micro.targets.data());
    return micro;
}

std::vector<Micro> next(DataLoader& loader, const LoaderOptions& o, int count) {
    std::vector<Micro> micros;
    for (int i = 0; i < count; i++) micros.push_back(next(loader, o));
    return micros;
}

/// Stream packing in its simplest form: all micro-batches of one pass over the data.
std::vector<Micro> stream_pass(const std::vector<Tokens>& shards, const LoaderOptions& o) {
    std::vector<Micro> micros;
    const size_t n = o.B * o.T;
    for (const Tokens& shard : shards)
        for (size_t at = 0; at + n + 1 <= shard.size(); at += n) {
            Tokens piece(shard.begin() + at, shard.begin() + at + n + 1);
            micros.push_back({Tokens(piece.begin(), piece.end() - 1), Tokens(piece.begin() + 1, piece.end())});
        }
    return micros;
}

std::vector<Tokens> documents_of(const std::vector<Tokens>& shards) {
    std::vector<Tokens> documents;
    for (const Tokens& shard : shards) {
        bool begun = false;
        for (int token : shard) {
            if (token == BOS) documents.emplace_back();
            begun |= token == BOS;
            if (begun) documents.back().push_back(token);
        }
    }
    return documents;
}

/// nanochat's best-fit packing, on documents in memory: `count` rows.
std::vector<Tokens> bestfit_rows(const std::vector<Tokens>& documents, size_t row_capacity, int count) {
    std::vector<Tokens> rows, buffer;
    size_t next_document = 0;
    for (int r = 0; r < count; r++) {
        Tokens row;
        while (row.size() < row_capacity) {
            while (buffer.size() < 1000) buffer.push_back(documents[next_document++ % documents.size()]);
            const size_t remaining = row_capacity - row.size();
            int best = -1, shortest = 0;
            for (int i = 0; i < int(buffer.size()); i++) {
                if (buffer[i].size() <= remaining && (best < 0 || buffer[i].size() > buffer[best].size())) best = i;
                if (buffer[i].size() < buffer[shortest].size()) shortest = i;
            }
            const int taken = best >= 0 ? best : shortest;
            const Tokens document = buffer[taken];
            buffer.erase(buffer.begin() + taken);
            row.insert(row.end(), document.begin(), document.begin() + std::min(document.size(), remaining));
        }
        rows.push_back(row);
    }
    return rows;
}

/// Micro-batch number i of the sequence.
Micro bestfit_micro(const std::vector<Tokens>& rows, const LoaderOptions& o, int i) {
    return micro_of({rows.begin() + i * o.B, rows.begin() + (i + 1) * o.B});
}

/// The shares of 1, 2, ... processes in steps of `of` micro-batches.
std::vector<Share> shares_of(int64_t of) {
    std::vector<Share> shares;
    for (int64_t processes = 1; processes <= of; processes++)
        if (of % processes == 0)
            for (int64_t r = 0; r < processes; r++) shares.push_back({r * of / processes, of / processes, of});
    return shares;
}

bool is_of(const Share& share, int64_t i) { return i % share.of >= share.first && i % share.of < share.first + share.count; }

/// Shards in a folder of their own.
struct Data {
    TempDir dir;
    std::vector<Tokens> shards;

    void add(const Tokens& tokens) {
        write_shard(dir / ("train_" + std::to_string(shards.size()) + ".bin"), tokens);
        shards.push_back(tokens);
    }
    LoaderOptions options(int B, int T, Packing packing = Packing::stream) const {
        LoaderOptions o;
        o.patterns = {dir / "train_*.bin"};
        o.B = B;
        o.T = T;
        o.vocab_size = 65536;
        o.packing = packing;
        return o;
    }
};

/// Shards with these numbers of tokens. All tokens differ, so that every mistake shows.
struct CountingData : Data {
    explicit CountingData(const std::vector<int>& counts) {
        int token = 0;
        for (int count : counts) {
            Tokens tokens(count);
            for (int& t : tokens) t = token++;
            add(tokens);
        }
    }
};

/// Documents of 1 to 40 tokens; shards that begin within a document; a shard without a document start; and one document that is longer
/// than the block in which the loader scans.
struct DocumentData : Data {
    DocumentData() {
        std::mt19937 random(3);
        auto some = [&](int n) {
            Tokens tokens(n);
            for (int& t : tokens) t = 100 + int(random() % 60000);
            return tokens;
        };
        auto append = [](Tokens& to, const Tokens& from) { to.insert(to.end(), from.begin(), from.end()); };
        for (int s = 0; s < 3; s++) {
            Tokens shard = s == 0 ? Tokens{} : some(5);         // the loader takes the bos token from the first shard
            for (int d = 0; d < 700; d++) {
                shard.push_back(BOS);
                append(shard, some(d == 300 && s == 1 ? 140000 : int(random() % 40)));
            }
            add(shard);
            if (s == 0) add(some(50));
        }
    }
};

template <class Call>
std::string error_of(Call call) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("stream: every micro-batch of two passes, for several B and T") {
    CountingData data({97, 12, 64, 65, 200, 33});
    for (int B : {1, 2, 3})
        for (int T : {1, 4, 7, 16}) {
            LoaderOptions o = data.options(B, T);
            CAPTURE(B); CAPTURE(T);
            const std::vector<Micro> pass = stream_pass(data.shards, o);
            REQUIRE(!pass.empty());
            DataLoader loader(o);
            CHECK(loader.batches_per_epoch() == int64_t(pass.size()));
            for (int epoch = 0; epoch < 2; epoch++) {
                for (const Micro& expected : pass) REQUIRE(next(loader, o) == expected);
                CHECK(loader.position()["epoch"] == epoch);     // the rest of the last shard is skipped when the next micro-batch is read
            }
        }
}

TEST_CASE("shares: together they are the whole sequence, in order, and their steps begin at the same positions") {
    CountingData counting({97, 12, 64, 65, 200, 33});
    DocumentData documents;
    for (auto& [data, packing] : {std::tuple<Data&, Packing>{counting, Packing::stream}, std::tuple<Data&, Packing>{documents, Packing::bos_bestfit}})
        for (int64_t of : {1, 4, 6}) {
            constexpr int STEPS = 11;                                   // enough to wrap around the end of the data
            LoaderOptions o = data.options(2, 5, packing);
            DataLoader whole(o);
            std::vector<Micro> all;
            std::vector<std::string> places;                            // where the steps begin
            for (int64_t i = 0; i < STEPS * of + 1; i++) {
                if (i % of == 0) places.push_back(whole.position().dump());
                all.push_back(next(whole, o));
            }
            for (const Share& share : shares_of(of)) {
                CAPTURE(of); CAPTURE(share.first); CAPTURE(share.count);
                o.share = share;
                o.following = true;
                DataLoader loader(o);
                CHECK(loader.batches_per_epoch() == whole.batches_per_epoch());
                int64_t read = 0;
                for (int64_t i = 0; i < STEPS * of; i++) {
                    if (!is_of(share, i)) continue;
                    if (read++ % share.count == 0) REQUIRE(loader.position().dump() == places[static_cast<size_t>(i / of)]);
                    Micro micro{Tokens(10), Tokens(10)};
                    Tokens following(10);
                    loader.next(micro.inputs.data(), micro.targets.data(), following.data());
                    REQUIRE(micro == all[static_cast<size_t>(i)]);
                    REQUIRE(following == all[static_cast<size_t>(i) + 1].targets);
                }
                CHECK(loader.position().dump() == places.back());
                DataLoader other(o);                                    // resumes at the beginning of a step
                other.restore(json::parse(places[3]));
                CHECK(next(other, o) == all[static_cast<size_t>(3 * of + share.first)]);
            }
        }
}

TEST_CASE("stream: a shard that exactly fills its micro-batches, and one that is a single target short") {
    CountingData data({16, 17});
    LoaderOptions o = data.options(2, 4);
    DataLoader loader(o);
    CHECK(loader.batches_per_epoch() == 1 + 2);
    std::vector<Micro> micros = next(loader, o, 3);
    CHECK(micros[0].inputs.front() == 0);
    CHECK(micros[1].inputs.front() == 16);
    CHECK(micros[2].targets.back() == 32);
}

TEST_CASE("bos-bestfit: the rows of nanochat, for several B and T") {
    DocumentData data;
    const std::vector<Tokens> documents = documents_of(data.shards);
    REQUIRE(documents.size() == 2100);
    for (int T : {1, 16, 29})
        for (int B : {1, 3}) {
            const int micros = 6000 / (T + 1) / B + 3;                  // for T >= 16 this reaches the second pass
            const std::vector<Tokens> rows = bestfit_rows(documents, T + 1, micros * B);
            LoaderOptions o = data.options(B, T, Packing::bos_bestfit);
            CAPTURE(B); CAPTURE(T);
            DataLoader loader(o);
            for (int i = 0; i < micros; i++) {
                Micro micro = next(loader, o);
                REQUIRE(micro == bestfit_micro(rows, o, i));
                for (int b = 0; b < B; b++) REQUIRE(micro.inputs[b * T] == BOS);
            }
        }
}

TEST_CASE("bos-bestfit: wraps around, also with the long document") {
    Data data;
    Tokens tokens;
    for (int length : {65535, 65536, 65537, 3, 1, 131072, 2})       // ends at, before and after a block boundary
        for (int i = 0; i < length; i++) tokens.push_back(i == 0 ? BOS : 10 + i % 1000);
    data.add(tokens);
    LoaderOptions o = data.options(2, 70000, Packing::bos_bestfit);
    const std::vector<Tokens> rows = bestfit_rows(documents_of(data.shards), o.T + 1, 12);
    DataLoader loader(o);
    for (int i = 0; i < 6; i++) CHECK(next(loader, o) == bestfit_micro(rows, o, i));
}

TEST_CASE("bos-bestfit: one pass") {
    // 50 documents of 4 tokens, rows of 8: two documents a row, 25 rows; 12 whole micro-batches of 2 rows.
    Data data;
    Tokens tokens;
    for (int i = 0; i < 200; i++) tokens.push_back(i % 4 == 0 ? BOS : 20);
    data.add(tokens);
    CHECK(DataLoader(data.options(2, 7, Packing::bos_bestfit)).batches_per_epoch() == 12);
    CHECK(DataLoader(data.options(5, 7, Packing::bos_bestfit)).batches_per_epoch() == 5);
    CHECK(DataLoader(data.options(25, 6, Packing::bos_bestfit)).batches_per_epoch() == 1);    // rows of 7: one is cropped
}

TEST_CASE("a position resumes exactly, from every micro-batch, whatever has been read ahead") {
    CountingData counting({97, 12, 64, 65});
    DocumentData documents;
    for (auto& [data, packing, T, count] : {std::tuple<Data&, Packing, int, int>{counting, Packing::stream, 4, 70},
                                            std::tuple<Data&, Packing, int, int>{documents, Packing::bos_bestfit, 64, 70}})
        for (bool shuffled : {false, true}) {
            LoaderOptions o = data.options(2, T, packing);
            if (shuffled) o.shuffle_seed = 5;
            DataLoader straight(o), other(o);
            std::vector<std::string> positions;
            std::vector<Micro> micros;
            for (int i = 0; i < count; i++) {
                positions.push_back(straight.position().dump());
                micros.push_back(next(straight, o));
            }
            for (int i = count - 1; i >= 0; i--) {
                CAPTURE(i);
                other.restore(json::parse(positions[i]));
                CHECK(other.position().dump() == positions[i]);
                for (int k = i; k < std::min(i + 3, count); k++) REQUIRE(next(other, o) == micros[k]);
            }
            other.rewind();
            CHECK(next(other, o, count) == micros);
        }
}

TEST_CASE("a position resumes from the same token with another B or T") {
    CountingData data({101, 57});
    LoaderOptions o = data.options(2, 5), other = data.options(3, 2);
    DataLoader before(o);
    next(before, o, 4);                                             // 40 tokens of the first shard
    DataLoader after(other);
    after.restore(before.position());
    CHECK(next(after, other).inputs == Tokens{40, 41, 42, 43, 44, 45});

    // A rest that cannot fill the larger micro-batch is skipped.
    other = data.options(4, 8);
    next(before, o, 3);                                             // 70 tokens
    DataLoader large(other);
    large.restore(before.position());
    CHECK(next(large, other).inputs.front() == 101);

    // Best-fit rows: the documents in the buffer are part of the position.
    DocumentData documents;
    LoaderOptions rows = documents.options(3, 16, Packing::bos_bestfit), single = documents.options(1, 16, Packing::bos_bestfit);
    const std::vector<Tokens> expected = bestfit_rows(documents_of(documents.shards), 17, 8);
    DataLoader three(rows), one(single);
    next(three, rows, 2);
    one.restore(three.position());
    CHECK(next(one, single) == micro_of({expected[6]}));
    CHECK(next(one, single) == micro_of({expected[7]}));
}

TEST_CASE("the order of the shards: sorted, or shuffled once by a seed, the same on every machine") {
    CountingData data(std::vector<int>(8, 5));
    LoaderOptions o = data.options(1, 4);
    auto order = [&] {
        DataLoader loader(o);
        std::vector<int> shards;
        for (const Micro& micro : next(loader, o, 16)) shards.push_back(micro.inputs[0] / 5);
        CHECK(std::equal(shards.begin(), shards.begin() + 8, shards.begin() + 8));      // the second pass has the same order
        shards.resize(8);
        return shards;
    };
    CHECK(order() == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7});
    // Computed by another implementation of mt19937_64 and of the shuffle.
    o.shuffle_seed = 0;
    CHECK(order() == std::vector<int>{4, 5, 2, 0, 7, 1, 3, 6});
    o.shuffle_seed = 42;
    CHECK(order() == std::vector<int>{7, 0, 5, 1, 2, 4, 3, 6});
}

TEST_CASE("total_tokens, shards, first_shard and the fingerprint") {
    CountingData data({30, 20, 10});
    DataLoader loader(data.options(1, 4));
    CHECK(loader.total_tokens() == 60);
    CHECK(loader.shards() == 3);
    CHECK(loader.first_shard() == data.dir / "train_0.bin");
    LoaderOptions shuffled = data.options(1, 4);
    shuffled.shuffle_seed = 42;
    CHECK(DataLoader(shuffled).first_shard() == loader.first_shard());

    // The fingerprint depends on names and token counts, but not on the folder or on the reading order.
    CountingData same({30, 20, 10}), moved({30, 10, 20}), fewer({30, 20});
    CHECK(loader.fingerprint().size() == 16);
    CHECK(DataLoader(same.options(2, 2)).fingerprint() == loader.fingerprint());
    CHECK(DataLoader(shuffled).fingerprint() == loader.fingerprint());
    CHECK(DataLoader(moved.options(1, 4)).fingerprint() != loader.fingerprint());
    CHECK(DataLoader(fewer.options(1, 4)).fingerprint() != loader.fingerprint());

    // An existing path is taken literally, also with characters that are special in patterns.
    LoaderOptions o = data.options(1, 4);
    o.patterns = {data.dir / "odd[1]*.bin"};
    write_shard(o.patterns[0], {1, 2, 3, 4, 5});
    CHECK(DataLoader(o).total_tokens() == 5);
}

TEST_CASE("many paths and patterns give the same shards in the same order as one pattern, each file once") {
    CountingData data({30, 20, 10, 40});
    const LoaderOptions o = data.options(2, 4);
    DataLoader one(o);
    const std::vector<Micro> expected = next(one, o, 20);
    auto path = [&](int i) { return data.dir / ("train_" + std::to_string(i) + ".bin"); };
    auto same = [&](const std::vector<std::string>& patterns) {
        LoaderOptions many = o;
        many.patterns = patterns;
        DataLoader loader(many);
        CHECK(loader.paths() == one.paths());
        CHECK(loader.fingerprint() == one.fingerprint());
        CHECK(next(loader, many, 20) == expected);
        loader.restore(json::parse(one.position().dump()));
        one.rewind();
    };
    same({path(0), path(1), path(2), path(3)});                     // as the shell expands an unquoted pattern
    same({path(3), path(1), path(0), path(2)});
    same({data.dir / "train_[01].bin", data.dir / "train_[23].bin"});
    same({path(2), data.dir / "train_*.bin", path(2), data.dir / "train_3*"});
    std::filesystem::create_symlink(path(1), data.dir / "train_link.bin");
    std::filesystem::create_hard_link(path(2), data.dir / "train_other.bin");
    std::filesystem::create_directory_symlink(data.dir.path, data.dir / "zone");
    same({data.dir / "train_*.bin"});                               // symbolic and hard links are duplicates
    same({data.dir / "train_link.bin", data.dir / "train_*.bin", data.dir / "zone/train_0.bin"});

    LoaderOptions links = o;                                        // a link alone keeps its own name
    links.patterns = {data.dir / "train_link.bin"};
    CHECK(DataLoader(links).first_shard() == data.dir / "train_link.bin");

    LoaderOptions wrong = o;
    auto refusal = [&] { return error_of([&] { DataLoader loader(wrong); }); };
    wrong.patterns = {path(0), data.dir / "none_*.bin", path(1)};   // the pattern that matches nothing is reported, even if others match
    CHECK(has(refusal(), "no file matches '" + data.dir / "none_*.bin'"));
    wrong.patterns = {path(0), path(7)};
    CHECK(has(refusal(), "no file matches '" + path(7) + "'"));
    wrong.patterns = {};
    CHECK(has(refusal(), "no shards were named"));
    wrong.patterns = {path(0), path(1), path(2)};
    wrong.B = 400;
    CHECK(has(refusal(), "of 3 shards of '" + path(0) + "' and 2 more has 30"));
}

TEST_CASE("wrong options and bad shards are refused at the start, with the file and the way out") {
    CountingData data({30, 20, 10});
    LoaderOptions o = data.options(1, 4);
    auto refusal = [&] { return error_of([&] { DataLoader loader(o); }); };
    CHECK(refusal().empty());

    o.patterns = {data.dir / "none_*.bin"};
    CHECK(has(refusal(), "no file matches '" + o.patterns[0] + "'"));
    o.patterns = {data.dir.path};
    CHECK(has(refusal(), data.dir.path));
    o.patterns = {""};
    CHECK(has(refusal(), "no file matches ''"));

    o = data.options(4, 8);
    std::string error = refusal();
    CHECK(has(error, "4 x 8"));
    CHECK(has(error, "takes 33 tokens of one shard"));
    CHECK(has(error, "has 30"));
    CHECK(has(error, "--device-batch"));
    o.B = o.T = 1 << 30;                                            // nothing overflows, and nothing is allocated
    CHECK(has(refusal(), "takes 1152921504606846976 tokens"));
    o = data.options(6, 9, Packing::bos_bestfit);                   // 6 rows of 10 tokens: all of the data
    CHECK(refusal().empty());
    o.B = 7;
    CHECK(has(refusal(), "takes 70 tokens, but the 3 shards"));

    for (auto [B, T, vocab] : {std::tuple{0, 4, 8}, {4, 0, 8}, {1, 1, 0}}) {
        o = data.options(B, T);
        o.vocab_size = vocab;
        CHECK(has(refusal(), "must be"));
    }
    for (Share share : {Share{1, 1, 1}, {-1, 1, 1}, {0, 0, 1}, {0, 2, 1}, {1, 3, 3}}) {
        o = data.options(1, 4);
        o.share = share;
        CHECK(has(refusal(), "a share of the micro-batches is"));
    }

    // Every shard is checked, not only the first.
    o = data.options(1, 4);
    const std::string bad = data.dir / "train_2.bin", good = read_file(bad);
    write_file(bad, good.substr(0, good.size() - 1));
    CHECK(has(refusal(), bad));
    write_file(bad, good + "x");
    CHECK(has(refusal(), bad));
    write_file(bad, "text" + good.substr(4));
    CHECK(has(refusal(), bad));
    write_file(bad, "");
    CHECK(has(refusal(), bad));
    CHECK_THROWS_AS(packing_named("best"), std::invalid_argument);
    CHECK(packing_named(name_of(Packing::bos_bestfit)) == Packing::bos_bestfit);
    CHECK(packing_named(name_of(Packing::stream)) == Packing::stream);
}

TEST_CASE("a token beyond the vocabulary is an error when it is reached, and not before") {
    CountingData data({40, 40});
    LoaderOptions o = data.options(1, 9);
    o.vocab_size = 56;                                              // the second shard, tokens 40 to 79, has it at 16
    DataLoader loader(o);
    next(loader, o, 4 + 1);                                         // the micro-batch before it
    const std::string error = error_of([&] { next(loader, o); });
    CHECK(has(error, "train_1.bin' holds token 56 at position 16, but the vocabulary has 56"));
    CHECK(has(error, "--vocab-size 64"));
    CHECK(error_of([&] { next(loader, o); }) == error);             // the error is repeated
    loader.rewind();                                                // until the position changes
    CHECK(next(loader, o).inputs.front() == 0);

    Data documents;
    documents.add({BOS, 1, 2, 900, BOS, 3});
    o = documents.options(1, 3, Packing::bos_bestfit);
    o.vocab_size = 16;
    DataLoader rows(o);
    CHECK(has(error_of([&] { next(rows, o); }), "holds token 900 at position 3"));
}

TEST_CASE("bos-bestfit without any document") {
    CountingData data({40, 40});
    LoaderOptions o = data.options(1, 9, Packing::bos_bestfit);
    o.bos = 1000;
    DataLoader loader(o);
    CHECK(has(error_of([&] { next(loader, o); }), "token 1000 that begins a document"));
    CHECK(has(error_of([&] { loader.batches_per_epoch(); }), "--packing stream"));
}

TEST_CASE("a shard that is cut short, removed or replaced after the start is an error with its name") {
    CountingData data({41, 4000, 41});
    LoaderOptions o = data.options(1, 10);
    const std::string path = data.dir / "train_1.bin", whole = read_file(path);
    auto first_error = [&](auto change) {
        DataLoader loader(o);
        change();
        std::string error = error_of([&] { next(loader, o, 300); });
        write_file(path, whole);
        loader.rewind();
        CHECK(next(loader, o, 300).size() == 300);                  // when the file is put back, it continues
        return error;
    };
    CHECK(has(first_error([&] { std::filesystem::resize_file(path, 5000); }), path));
    CHECK(has(first_error([&] { std::filesystem::remove(path); }), path));
    CHECK(has(first_error([&] { write_file(path, whole + whole); }), path));

    // While the shard is open and being read.
    DataLoader loader(o);
    next(loader, o, 10);
    std::filesystem::resize_file(path, 5000);
    CHECK(has(error_of([&] { next(loader, o, 300); }), path));
}

TEST_CASE("a position that does not fit the data is refused, and changes nothing") {
    DocumentData data;
    LoaderOptions o = data.options(2, 16, Packing::bos_bestfit);
    DataLoader loader(o);
    next(loader, o, 5);
    const json good = loader.position();
    auto refused = [&](const std::string& text, auto change) {
        json position = good;
        change(position);
        std::string error = error_of([&] { loader.restore(position); });
        CAPTURE(error);
        CHECK(has(error, text));
        CHECK(loader.position() == good);
    };
    refused("other shards", [](json& p) { p["fingerprint"] = "0123456789abcdef"; });
    refused("--packing stream", [](json& p) { p["packing"] = "stream"; });
    refused("--data-seed 3", [](json& p) { p["shuffle_seed"] = 3; });
    refused("documents began with token 8", [](json& p) { p["bos"] = 8; });
    refused("position in the data", [](json& p) { p.erase("token"); });
    refused("position in the data", [](json& p) { p["token"] = "12"; });
    refused("position in the data", [](json& p) { p["token"] = -1; });
    refused("position in the data", [](json& p) { p["token"] = 1 << 30; });
    refused("position in the data", [](json& p) { p["shard"] = 4; });
    refused("position in the data", [](json& p) { p["epoch"] = 0.5; });
    refused("position in the data", [](json& p) { p = nullptr; });
    refused("position in the data", [](json& p) { p["buffer"] = 1; });
    refused("[shard, start, length]", [](json& p) { p["buffer"][3] = json::array({1, 2}); });
    refused("position in the data", [](json& p) { p["buffer"][3] = {0, 0, 0}; });
    refused("position in the data", [](json& p) { p["buffer"][3] = {0, 1 << 20, 1}; });
    refused("position in the data", [](json& p) { p["buffer"][3] = {0, 5, 1 << 20}; });
    refused("1000", [](json& p) { for (int i = 0; i < 1000; i++) p["buffer"].push_back({0, 0, 1}); });
    loader.restore(good);
}

TEST_CASE("the loader can be destroyed at any moment") {
    CountingData data({97, 64});
    LoaderOptions o = data.options(1, 4);
    for (int reads = 0; reads < 5; reads++)
        for (int i = 0; i < 20; i++) {
            DataLoader loader(o);
            next(loader, o, reads);
            if (i % 2) loader.rewind();
            if (i % 3) next(loader, o);
        }
}
