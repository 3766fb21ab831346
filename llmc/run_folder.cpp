#include "llmc/run_folder.h"
#include <fcntl.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include "llmc/io/error.h"

namespace fs = std::filesystem;

static std::string checkpoint_name(int64_t step) {
    char name[32];
    std::snprintf(name, sizeof name, "step_%07ld.bin", step);
    return name;
}

fs::path RunFolder::checkpoint(int64_t step) const { return path / checkpoint_name(step); }

std::vector<fs::path> RunFolder::checkpoints() const {
    std::vector<std::pair<int64_t, fs::path>> found;
    if (fs::is_directory(path))
        for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
            std::string name = entry.path().filename();
            long step = 0;
            if (std::sscanf(name.c_str(), "step_%ld.bin", &step) == 1 && name == checkpoint_name(step))
                found.emplace_back(step, entry.path());
        }
    std::sort(found.begin(), found.end());
    std::vector<fs::path> paths;
    for (auto& [step, file] : found) paths.push_back(file);
    return paths;
}

void RunFolder::prepare(bool overwrite, const std::string& resumed, int64_t done, const std::vector<std::string>& sources) const {
    const std::string& name = path.native();
    std::error_code error;
    const bool there = fs::status(path, error).type() != fs::file_type::not_found;
    require(!there || access(path.c_str(), R_OK | W_OK) == 0, name, ": cannot be written to: ", std::strerror(errno),
            "; choose another --out");
    bool continues = !resumed.empty() && fs::equivalent(fs::canonical(resumed).parent_path(), path, error) && !error;
    bool holds_run = !checkpoints().empty() || fs::exists(log());
    require(!overwrite || !continues, "--overwrite would remove the run that --resume continues; leave one of them out");
    require(!holds_run || overwrite || continues, name,
            " already holds a run; choose another --out, --resume one of its checkpoints, or give --overwrite");
    const std::vector<fs::path> saved = checkpoints();
    const bool own = fs::path(resumed).filename() == checkpoint_name(done);
    require(!continues || own || saved.empty() || saved.back() <= checkpoint(done), name, " holds ", saved.empty() ? "" : saved.back().filename().string(),
            " of the run that ", resumed, " was made of, which this run would replace; choose another --out");
    fs::create_directories(path, error);
    require(!error && fs::is_directory(path), name, ": cannot be made a folder: ", error ? error.message() : "it is a file");
    std::string probe = (path / concat("probe.", getpid(), ".tmp")).string();
    int fd = open(probe.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0600);
    require(fd >= 0, name, ": cannot be written to: ", std::strerror(errno), "; choose another --out");
    close(fd);
    unlink(probe.c_str());
    for (const fs::path& file : checkpoints())
        for (const std::string& source : sources) {
            bool needed = overwrite && fs::equivalent(file, source, error);
            require(!needed, "--overwrite would remove ", source, ", which this run starts from; choose another --out");
        }
}

void RunFolder::clear() const {
    for (const fs::path& file : checkpoints()) fs::remove(file);
    fs::remove(log());
}

void RunFolder::keep(int64_t count, int64_t step) const {
    std::vector<fs::path> all = checkpoints();
    auto newest = std::find(all.begin(), all.end(), checkpoint(step));
    for (auto old = all.begin(); newest - old >= count; ++old) fs::remove(*old);
}
