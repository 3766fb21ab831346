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

    /// Makes the folder if it is not there; removes nothing. Throws std::invalid_argument where this run must not write to it (it
    /// holds another run, and overwrite is false) or cannot.
    ///
    /// resumed: the checkpoint that --resume names, at step `done`, or "". When it lies in this folder, the folder's run is this run;
    ///          but a file of another name (a mix) is refused where the run would replace later checkpoints
    /// sources: other checkpoints that the run starts from, which overwrite must not remove
    void prepare(bool overwrite, const std::string& resumed, int64_t done, const std::vector<std::string>& sources) const;

    /// Removes the run that the folder holds.
    void clear() const;
    /// Removes the oldest checkpoints up to `step` until `count` of them are left.
    void keep(int64_t count, int64_t step) const;
};
