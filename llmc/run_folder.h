// A run's folder: its checkpoints, step_NNNNNNN.bin, and log.jsonl.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

struct RunFolder {
    std::filesystem::path path;

    std::filesystem::path checkpoint(int64_t step) const;
    std::filesystem::path log() const { return path / "log.jsonl"; }
    /// Oldest step first.
    std::vector<std::filesystem::path> checkpoints() const;

    /// Makes the folder if it is not there. A run that it holds stays. Throws std::invalid_argument where this run may not write to
    /// it (it holds another run, and overwrite is false) or cannot.
    ///
    /// resumed: the checkpoint that the run goes on from, at step `done`, or ""; in this folder, the run that it holds is this one,
    ///          but a file of another name there (a mix) may not take the place of later checkpoints
    /// sources: further checkpoints that the run starts from; overwrite must not remove them
    void prepare(bool overwrite, const std::string& resumed, int64_t done, const std::vector<std::string>& sources) const;

    /// Removes the run that the folder holds.
    void clear() const;
    /// Removes checkpoints until there are `count` no newer than that of `step`.
    void keep(int64_t count, int64_t step) const;
};
