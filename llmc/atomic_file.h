// A file that appears whole or not at all.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

/// Written as PATH.tmp, then synced and renamed to PATH by commit(): a reader never sees half a file, and a file that PATH
/// named before survives a full disk or a kill at any instant. Without commit() the temporary file is removed.
/// Every failure throws std::invalid_argument with the path and the system's reason.
class AtomicFile {
  public:
    explicit AtomicFile(std::string path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    /// Appends.
    void write(const void* data, size_t bytes);
    /// Overwrites from `offset` on, for a header that is known last; write() goes on where it was.
    void write_at(int64_t offset, const void* data, size_t bytes);
    void commit();

  private:
    std::string path_, temporary_;
    int file_ = -1;
    int64_t size_ = 0;
};
