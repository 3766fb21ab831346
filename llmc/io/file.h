// Files that are read in pieces, and files that are written atomically.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

/// Size of the pieces in which files are read and written, so that memory stays small whatever the size of a file.
inline constexpr int64_t FILE_CHUNK = int64_t{4} << 20;

/// A regular file, open for reading. All errors, I/O errors of the disk too, throw std::invalid_argument.
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

/// A file that is being written. It is `<path>.<process>.tmp`, in the same folder, until commit() syncs and renames it: a reader of
/// the path sees the old file or the new one, never a part of it. Without commit() the temporary file is removed; that of a killed
/// process stays until the next writer of the same path removes it. A full disk, a quota, an I/O error or a folder without write
/// permission throw std::invalid_argument.
class NewFile {
public:
    /// `bytes`: the size that it will have, or a lower bound of it; refused when the disk has less space.
    NewFile(const std::string& path, int64_t bytes);
    ~NewFile();
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;

    void write(const void* src, int64_t bytes, int64_t offset);
    /// Copies within the kernel where the file system supports it (copy_file_range), else through a small buffer.
    void copy(const File& from, int64_t from_offset, int64_t bytes, int64_t offset);
    /// Sets the size (bytes that were not written are zero), syncs, renames, syncs the folder.
    void commit(int64_t bytes);

private:
    std::string path_, temporary_;
    int fd_ = -1;
};

/// Throws std::invalid_argument unless writing `out` loses nothing: it is not one of `inputs` (links are followed), it does not exist yet
/// or `overwrite` is set, and it is not a folder or device.
void check_output(const std::string& out, const std::vector<std::string>& inputs, bool overwrite);

/// 1234567 as "1.2 MB".
std::string human_bytes(int64_t bytes);
