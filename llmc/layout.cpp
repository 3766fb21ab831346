// The layout of tensors in memory, and their owners.
#include "llmc/layout.h"
#include <algorithm>
#include <map>
#include <numeric>
#include "llmc/io/error.h"
#include "llmc/recipe.h"

static int64_t aligned(int64_t n) { return (n + TENSOR_ALIGNMENT - 1) / TENSOR_ALIGNMENT * TENSOR_ALIGNMENT; }
static bool power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }

void validate(const Job& job) {
    require(power_of_two(job.parts) && job.parts <= MAX_PROCESSES, "--parts is ", job.parts, ", but must be a power of two up to ", MAX_PROCESSES,
            ": gradients are summed in a binary tree over the parts");
    if (power_of_two(job.processes) && job.parts % job.processes == 0) return;
    std::string fit = "1";
    for (int p = 2; p <= job.parts; p *= 2) fit += concat(p == job.parts ? " or " : ", ", p);
    fail(job.processes, " processes cannot share ", job.parts, job.parts == 1 ? " part" : " parts", " of a step (--parts); start ", fit,
         ", or give --parts a power of two that is a multiple of the processes");
}

bool is_of_qkv(const Tensor& tensor) {
    const std::string name = tensor.spec->name;
    return name == "q" || name == "k" || name == "v";
}

/// Contiguous tensors with one owner: q, k and v of a layer, or a single tensor.
struct Unit {
    size_t first, count;
    int64_t size;       // in elements, aligned
    double flops;       // of its update
};

static std::vector<Unit> units_of(const GPTConfig& config, const std::vector<Tensor>& tensors) {
    std::vector<Unit> units;
    for (size_t i = 0; i < tensors.size(); i++) {
        const Tensor& tensor = tensors[i];
        const bool joins = i > 0 && is_of_qkv(tensor) && is_of_qkv(tensors[i - 1]) && tensor.layer == tensors[i - 1].layer;
        if (!joins) units.push_back({i, 0, 0, 0});
        units.back().count++;
        units.back().size += aligned(tensor.numel);
        units.back().flops += rule_of(*config.recipe, tensor.spec->group).update_flops(tensor.shape);
    }
    return units;
}

/// Assigns units to processes greedily: units in order of falling update FLOPs, each to the process with the fewest FLOPs so far; ties go by
/// elements, larger units first, to the process with the fewest elements.
static std::vector<int> owners_of(const std::vector<Unit>& units, int processes) {
    std::vector<size_t> order(units.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return std::pair(units[a].flops, units[a].size) > std::pair(units[b].flops, units[b].size); });
    std::vector<std::pair<double, int64_t>> load(static_cast<size_t>(processes));   // FLOPs, elements
    std::vector<int> owners(units.size());
    for (size_t unit : order) {
        const auto least = std::min_element(load.begin(), load.end());
        least->first += units[unit].flops;
        least->second += units[unit].size;
        owners[unit] = static_cast<int>(least - load.begin());
    }
    return owners;
}

static constexpr int SLICE_TERMS = MAX_PROCESSES;   // so that the segment of a process is a whole number of terms

Layout::Layout(const GPTConfig& config, const std::vector<Tensor>& tensors, const Trained& trained, const Job& of) : job(of), places(tensors.size()) {
    validate(job);
    auto kind_of = [&](const Unit& unit) {
        const Tensor& tensor = tensors[unit.first];
        if (tensor.spec->has == Has::lambdas) return Kind::replicated;
        const auto first = tensors.begin() + static_cast<int64_t>(unit.first);
        if (std::none_of(first, first + static_cast<int64_t>(unit.count), trained)) return Kind::frozen;
        return rule_of(*config.recipe, tensor.spec->group).by_element() ? Kind::sliced : Kind::whole;
    };
    std::map<Kind, std::vector<Unit>> units;
    for (const Unit& unit : units_of(config, tensors)) units[kind_of(unit)].push_back(unit);

    int64_t end = 0;
    auto place = [&](const Unit& unit, Kind kind, int owner) {
        for (size_t i = unit.first; i < unit.first + unit.count; i++) {
            places[i] = {kind, end, tensors[i].numel, owner};
            end += aligned(tensors[i].numel);
        }
    };
    auto place_all = [&](Block& block, Kind kind) {
        block.begin = end;
        for (const Unit& unit : units[kind]) place(unit, kind, 0);
        return end - block.begin;
    };
    replicated.segment = place_all(replicated, Kind::replicated);
    for (const Unit& unit : units[Kind::replicated])
        if (trained(tensors[unit.first])) squares.push_back({offset(unit.first), tensors[unit.first].numel, -1});

    if (const int64_t used = place_all(sliced, Kind::sliced); used > 0) {
        const int64_t term = aligned((used + SLICE_TERMS - 1) / SLICE_TERMS);
        sliced.segment = term * (SLICE_TERMS / job.processes);
        for (int64_t i = 0; i * term < used; i++)
            squares.push_back({sliced.begin + i * term, std::min(term, used - i * term), static_cast<int>(i * term / sliced.segment)});
        end = sliced.begin + (job.processes == 1 ? used : sliced.segment * job.processes);
        if (job.processes == 1) sliced.segment = used;
    }

    whole.begin = end;
    const std::vector<Unit>& matrices = units[Kind::whole];
    const std::vector<int> owners = owners_of(matrices, job.processes);
    std::vector<int64_t> owned_elements(static_cast<size_t>(job.processes));
    for (size_t i = 0; i < matrices.size(); i++) owned_elements[owners[i]] += matrices[i].size;
    whole.segment = *std::max_element(owned_elements.begin(), owned_elements.end());
    for (int rank = 0; rank < job.processes; rank++) {
        end = whole.begin + rank * whole.segment;
        for (size_t i = 0; i < matrices.size(); i++)
            if (owners[i] == rank) place(matrices[i], Kind::whole, rank);
    }
    for (size_t i = 0; i < tensors.size(); i++)
        if (places[i].kind == Kind::whole) squares.push_back({offset(i), tensors[i].numel, places[i].owner});
    end = whole.begin + job.processes * whole.segment;

    const int64_t kept = place_all(frozen, Kind::frozen);
    frozen.segment = aligned((kept + job.processes - 1) / job.processes);
    all = frozen.begin + job.processes * frozen.segment;
}

const Layout::Block& Layout::block(Kind kind) const {
    return kind == Kind::replicated ? replicated : kind == Kind::sliced ? sliced : kind == Kind::whole ? whole : frozen;
}

int64_t Layout::owned_size() const { return replicated.segment + sliced.segment + whole.segment + frozen.segment; }

Piece Layout::owned(size_t tensor, int rank) const {
    const Place& p = places[tensor];
    if (p.kind == Kind::replicated) return {0, p.numel};
    if (p.kind == Kind::whole) return {0, p.owner == rank ? p.numel : 0};
    const Block& cut = block(p.kind);
    const int64_t from = cut.begin + rank * cut.segment - p.offset;   // where the segment begins, in elements of the tensor
    const int64_t begin = std::clamp<int64_t>(from, 0, p.numel), end = std::clamp<int64_t>(from + cut.segment, 0, p.numel);
    return {begin, end - begin};
}

int64_t Layout::owned_offset(size_t tensor) const {
    const Place& p = places[tensor];
    int64_t before = 0;   // blocks of what this process owns
    for (Kind kind : {Kind::replicated, Kind::sliced, Kind::whole, Kind::frozen}) {
        if (kind == p.kind) break;
        before += block(kind).segment;
    }
    const int64_t segment = p.kind == Kind::replicated ? 0 : job.rank * block(p.kind).segment;
    return before + p.offset + owned(tensor).begin - block(p.kind).begin - segment;
}
