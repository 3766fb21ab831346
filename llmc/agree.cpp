#include "llmc/agree.h"
#include <algorithm>

std::vector<std::string> collect_texts(Comm& comm, const std::string& mine) {
    const size_t count = static_cast<size_t>(comm.count());
    const int64_t length = static_cast<int64_t>(mine.size());
    std::vector<int64_t> lengths(count);
    comm.collect(lengths.data(), &length, sizeof length);
    const size_t longest = static_cast<size_t>(*std::max_element(lengths.begin(), lengths.end()));
    std::vector<std::string> texts(count);
    if (longest == 0) return texts;
    std::string all(count * longest, '\0'), padded = mine;
    padded.resize(longest);
    comm.collect(all.data(), padded.data(), static_cast<int64_t>(longest));
    for (size_t rank = 0; rank < count; rank++) texts[rank] = all.substr(rank * longest, static_cast<size_t>(lengths[rank]));
    return texts;
}

std::string name_of(const Comm& comm) { return comm.count() == 1 ? "" : concat("rank ", comm.rank(), " on host ", comm.host()); }

void fail_together(Comm& comm, const std::string& error) {
    if (comm.count() == 1) {
        if (!error.empty()) fail(error);
        return;
    }
    const std::vector<std::string> errors = collect_texts(comm, error);
    const auto first = std::find_if(errors.begin(), errors.end(), [](const std::string& text) { return !text.empty(); });
    if (first == errors.end()) return;
    const bool of_all = std::all_of(errors.begin(), errors.end(), [&](const std::string& text) { return text == *first; });
    const std::vector<std::string> names = collect_texts(comm, name_of(comm));
    const size_t rank = static_cast<size_t>(first - errors.begin());
    if (of_all || rank == 0) fail(*first);
    fail(names[rank], ": ", *first);
}

void require_alike(Comm& comm, const std::vector<std::pair<std::string, std::string>>& facts) {
    if (comm.count() == 1) return;
    const std::vector<std::string> names = collect_texts(comm, name_of(comm));
    for (const auto& [what, mine] : facts) {
        const std::vector<std::string> values = collect_texts(comm, mine);
        for (size_t rank = 1; rank < values.size(); rank++)
            require(values[rank] == values[0], what, " differs between the processes of this job: ", values[0], " at ", names[0], ", ", values[rank], " at ",
                    names[rank], "; start all of them alike");
    }
}
