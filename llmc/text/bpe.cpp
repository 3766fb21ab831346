// Byte-pair encoding: learning the merges.
#include "llmc/text/bpe.h"

#include <limits>
#include <queue>
#include <utility>

#include "llmc/io/error.h"

// All pieces lie one after another in one array of positions, linked within a piece. A merge happens at the position of its left
// token; the position of the right token is unlinked. Each pair keeps its count and a list of its positions, so that the cost of a
// merge is proportional to its number of occurrences.

static constexpr uint32_t NONE = std::numeric_limits<uint32_t>::max();

struct Position {
    uint32_t previous, next;  ///< in the same piece, or NONE
    uint32_t piece;
    uint16_t token;
};

struct PairOccurrences {
    int64_t count = 0;
    std::vector<uint32_t> positions;  ///< ascending; some may be out of date
};

struct Candidate {
    int64_t count;
    uint32_t pair;
    /// Order of the heap: the larger candidate is merged first.
    bool operator<(const Candidate& other) const { return count != other.count ? count < other.count : pair > other.pair; }
};

class BpeTrainer {
public:
    explicit BpeTrainer(const std::unordered_map<std::string_view, int64_t>& pieces) : lengths_(256, 1) {
        for (const auto& [piece, count] : pieces) add_piece(piece, count);
        push_new_candidates();
    }

    std::vector<Merge> run(int merges) {
        std::vector<Merge> done;
        while (static_cast<int>(done.size()) < merges && !candidates_.empty()) {
            Candidate best = candidates_.top();
            candidates_.pop();
            auto found = pairs_.find(best.pair);
            if (found->second.count < best.count) {  // other merges have reduced its count since it was pushed
                if (found->second.count > 0) candidates_.push({found->second.count, best.pair});
                continue;
            }
            Merge merge{static_cast<uint16_t>(best.pair >> 16), static_cast<uint16_t>(best.pair)};
            int length = lengths_[merge.left] + lengths_[merge.right];
            if (length > MAX_TOKEN_BYTES) continue;

            std::vector<uint32_t> positions = std::move(found->second.positions);
            lengths_.push_back(length);
            for (uint32_t at : positions) merge_at(at, merge, static_cast<uint16_t>(256 + done.size()));
            push_new_candidates();
            done.push_back(merge);
        }
        return done;
    }

private:
    void add_piece(std::string_view piece, int64_t count) {
        require(positions_.size() + piece.size() < NONE, "train_bpe: the different pieces have more than ", NONE,
                " bytes; train on less text");
        size_t first = positions_.size();
        for (size_t i = 0; i < piece.size(); i++) {
            uint32_t at = static_cast<uint32_t>(first + i);
            positions_.push_back({i == 0 ? NONE : at - 1, i + 1 == piece.size() ? NONE : at + 1,
                                  static_cast<uint32_t>(counts_.size()), static_cast<unsigned char>(piece[i])});
        }
        counts_.push_back(count);
        for (size_t at = first; at + 1 < positions_.size(); at++) add_pair(static_cast<uint32_t>(at));
    }

    uint32_t pair_at(uint32_t left) const {
        return static_cast<uint32_t>(positions_[left].token) << 16 | positions_[positions_[left].next].token;
    }

    void add_pair(uint32_t left) {
        auto [found, is_new] = pairs_.try_emplace(pair_at(left));
        if (is_new) new_pairs_.push_back(found->first);
        found->second.count += counts_[positions_[left].piece];
        found->second.positions.push_back(left);
    }

    void remove_pair(uint32_t left) { pairs_[pair_at(left)].count -= counts_[positions_[left].piece]; }

    /// A merge creates only pairs with its new token, so the count of a new pair is complete after the merge, and later only falls.
    void push_new_candidates() {
        for (uint32_t pair : new_pairs_) candidates_.push({pairs_[pair].count, pair});
        new_pairs_.clear();
    }

    void merge_at(uint32_t left, Merge merge, uint16_t token) {
        uint32_t right = positions_[left].next;
        if (positions_[left].token != merge.left || right == NONE || positions_[right].token != merge.right) return;
        uint32_t before = positions_[left].previous, after = positions_[right].next;

        remove_pair(left);
        if (before != NONE) remove_pair(before);
        if (after != NONE) remove_pair(right);
        positions_[left].token = token;
        positions_[left].next = after;
        positions_[right].next = NONE;  // marks the position of the right token as unlinked
        if (after != NONE) positions_[after].previous = left;
        if (before != NONE) add_pair(before);
        if (after != NONE) add_pair(left);
    }

    std::vector<int> lengths_;     ///< of each token, in bytes
    std::vector<int64_t> counts_;  ///< of each piece
    std::vector<Position> positions_;
    std::unordered_map<uint32_t, PairOccurrences> pairs_;
    std::vector<uint32_t> new_pairs_;
    std::priority_queue<Candidate> candidates_;
};

std::vector<Merge> train_bpe(const std::unordered_map<std::string_view, int64_t>& pieces, int merges) {
    return BpeTrainer(pieces).run(merges);
}
