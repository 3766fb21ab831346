// Files that are read in pieces, and files that appear whole or not at all.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

/// Pieces in which big files are read and written: memory stays small whatever the size of a file.
inline constexpr int64_t FILE_CHUNK = int64_t{4} << 20;

/// A regular file, open for reading. What goes wrong throws std::invalid_argument, a fault of the disk too.
class File {
public:
    explicit File(const std::string& path);
    ~File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    /// Reads exactly `bytes` bytes at `offset`.
    void read(void* dst, int64_t bytes, int64_t offset) const;
    int64_t size() const { return size_; }
    int fd() const { return fd_; }
    const std::string& path() const { return path_; }

private:
    std::string path_;
    int fd_ = -1;
    int64_t size_ = 0;
};

/// A file that is being written. It lies beside its path as `<path>.<process>.tmp` until commit() has synced and renamed it:
/// whoever reads the path sees the old file or the new one, never a part. Without commit() the temporary is removed; that of a
/// killed process ends in .tmp, stands in nobody's way, and is removed by the next writer of the same path.
/// A full disk, a quota, a fault of the disk or a folder that cannot be written throw std::invalid_argument.
class NewFile {
public:
    /// `bytes`: the size it will have, or a part of it; refused when the disk has less free.
    NewFile(const std::string& path, int64_t bytes);
    ~NewFile();
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;

    void write(const void* src, int64_t bytes, int64_t offset);
    /// Copies inside the kernel where the file system can (copy_file_range), else through a small buffer.
    void copy(const File& from, int64_t from_offset, int64_t bytes, int64_t offset);
    /// Sets the size (what was not written is zero), syncs, renames, syncs the folder.
    void commit(int64_t bytes);

private:
    std::string path_, temporary_;
    int fd_ = -1;
};

/// Throws std::invalid_argument unless `out` can be written without loss: it is none of `inputs` (by a link neither), it is
/// not there yet or `overwrite` is set, and it is no folder or device.
void check_output(const std::string& out, const std::vector<std::string>& inputs, bool overwrite);

/// 1234567 as "1.2 MB".
std::string human_bytes(int64_t bytes);
