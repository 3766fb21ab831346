// A file that appears whole or not at all.
#include "llmc/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "llmc/error.h"

static void require_system(bool holds, const char* what, const std::string& path) {
    require(holds, "cannot ", what, " '", path, "': ", std::strerror(errno));
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)), temporary_(path_ + ".tmp") {
    file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    require_system(file_ >= 0, "write", temporary_);
}

AtomicFile::~AtomicFile() {
    if (file_ < 0) return;
    close(file_);
    unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
    write_at(size_, data, bytes);
    size_ += static_cast<int64_t>(bytes);
}

void AtomicFile::write_at(int64_t offset, const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
        ssize_t written = pwrite(file_, from, bytes, offset);
        if (written < 0 && errno == EINTR) continue;
        require_system(written > 0, "write", temporary_);
        from += written;
        offset += written;
        bytes -= static_cast<size_t>(written);
    }
}

void AtomicFile::commit() {
    require_system(fsync(file_) == 0, "write", temporary_);
    require_system(std::rename(temporary_.c_str(), path_.c_str()) == 0, "write", path_);
    close(std::exchange(file_, -1));

    // The new name itself reaches the disk with its folder. Some file systems cannot sync a folder; the file is whole there too.
    std::filesystem::path folder = std::filesystem::path(path_).parent_path();
    int directory = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return;
    fsync(directory);
    close(directory);
}
