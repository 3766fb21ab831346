// Reading and writing files, with errors that name the file and say what to do.
#include "llmc/io/file.h"
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "llmc/io/error.h"

namespace fs = std::filesystem;

File::File(const std::string& path) : path_(path) {
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);   // O_NONBLOCK: opening a pipe without a writer would block
    require(fd_ >= 0, path, ": cannot be read: ", std::strerror(errno));
    struct stat info;
    bool regular = fstat(fd_, &info) == 0 && S_ISREG(info.st_mode);
    if (!regular) close(fd_);
    require(regular, path, ": is a folder, pipe or device, but must be a file");
    size_ = info.st_size;
}

File::~File() { close(fd_); }

void File::read(void* dst, int64_t bytes, int64_t offset) const {
    char* to = static_cast<char*>(dst);
    while (bytes > 0) {
        ssize_t got = pread(fd_, to, static_cast<size_t>(bytes), offset);
        if (got < 0 && errno == EINTR) continue;
        require(got >= 0, path_, ": cannot be read at byte ", offset, ": ", std::strerror(errno), "; restore it from a copy");
        require(got > 0, path_, ": was cut short: it ends at byte ", offset, ", where ", bytes, " more are needed; restore it from a copy");
        to += got;
        bytes -= got;
        offset += got;
    }
}

// ------------------------------------------------------------------------------------------------------------- writing

/// The path to rename() to: a link is resolved, so that it stays a link; folders and devices are refused.
static std::string target_of(const std::string& path) {
    struct stat link, info;
    if (lstat(path.c_str(), &link) != 0) return path;
    require(stat(path.c_str(), &info) == 0, path, ": is a link that leads nowhere; remove it, or name another file");
    require(S_ISREG(info.st_mode), path, ": is a folder, pipe or device; name a file to write");
    return S_ISLNK(link.st_mode) ? fs::canonical(path).string() : path;
}

static std::string folder_of(const std::string& path) {
    std::string folder = fs::path(path).parent_path().string();
    return folder.empty() ? "." : folder;
}

/// Removes temporary files of `path` whose writer is dead: a living writer holds a lock on its own.
static void remove_leftovers(const std::string& path) {
    std::string prefix = fs::path(path).filename().string() + ".", suffix = ".tmp";
    std::error_code ignored;
    for (fs::directory_iterator entry(folder_of(path), ignored), end; !ignored && entry != end; entry.increment(ignored)) {
        std::string name = entry->path().filename().string();
        if (name.size() <= prefix.size() + suffix.size() || !name.starts_with(prefix) || !name.ends_with(suffix)) continue;
        std::string process = name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
        if (process.find_first_not_of("0123456789-") != std::string::npos) continue;
        int fd = open(entry->path().c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
        if (fd < 0) continue;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlink(entry->path().c_str());
        close(fd);
    }
}

/// Creates and locks `name`, the temporary file of `path`; -1 if it exists already. Another writer may take it for a leftover and remove it
/// before it is locked; then the caller tries again with a new name.
static int create_locked(const std::string& name, const std::string& path) {
    int fd = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    require(fd >= 0 || errno == EEXIST, path, ": cannot be written: ", std::strerror(errno), "; name a file in an existing folder with write permission");
    if (fd < 0) return -1;
    flock(fd, LOCK_EX);   // on a file system without locks leftovers stay
    struct stat info;
    if (fstat(fd, &info) == 0 && info.st_nlink > 0) return fd;
    close(fd);
    return -1;
}

NewFile::NewFile(const std::string& path, int64_t bytes) : path_(target_of(path)) {
    std::signal(SIGXFSZ, SIG_IGN);   // above `ulimit -f`, write() then fails and says so, instead of ending the process
    remove_leftovers(path_);
    struct statvfs disk;
    if (statvfs(folder_of(path_).c_str(), &disk) == 0) {
        double free = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
        require(static_cast<double>(bytes) <= free, path_, ": needs ", human_bytes(bytes), ", but its disk has ",
                human_bytes(static_cast<int64_t>(free)), " free; make room, or write to another disk");
    }
    for (int n = 0; fd_ < 0; n++) {
        require(n < 1000, path_, ": has too many temporary files beside it; remove ", path_, ".*.tmp");
        temporary_ = concat(path_, ".", getpid(), n == 0 ? "" : concat("-", n), ".tmp");
        fd_ = create_locked(temporary_, path_);
    }
}

NewFile::~NewFile() {
    if (fd_ < 0) return;
    unlink(temporary_.c_str());
    close(fd_);
}

static void require_written(bool done, const std::string& path) {
    require(done, path, ": cannot be written: ", std::strerror(errno), "; nothing was changed: make room or name another disk, and try again");
}

void NewFile::write(const void* src, int64_t bytes, int64_t offset) {
    const char* from = static_cast<const char*>(src);
    while (bytes > 0) {
        ssize_t put = pwrite(fd_, from, static_cast<size_t>(bytes), offset);
        if (put < 0 && errno == EINTR) continue;
        require_written(put > 0, path_);
        from += put;
        bytes -= put;
        offset += put;
    }
}

/// Whether copy_file_range() failed for a reason that does not concern read() and write(): another file system, an old kernel.
static bool cannot_copy_inside() {
    return errno == EXDEV || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP || errno == EPERM;
}

void NewFile::copy(const File& from, int64_t from_offset, int64_t bytes, int64_t offset) {
    while (bytes > 0) {
        ssize_t put = copy_file_range(from.fd(), &from_offset, fd_, &offset, static_cast<size_t>(bytes), 0);
        if (put < 0 && errno == EINTR) continue;
        if (put == 0 || (put < 0 && cannot_copy_inside())) break;
        require_written(put > 0, path_);
        bytes -= put;
    }
    std::vector<char> buffer(static_cast<size_t>(std::min(bytes, FILE_CHUNK)));
    while (bytes > 0) {
        int64_t piece = std::min(bytes, FILE_CHUNK);
        from.read(buffer.data(), piece, from_offset);
        write(buffer.data(), piece, offset);
        bytes -= piece;
        from_offset += piece;
        offset += piece;
    }
}

void NewFile::commit(int64_t bytes) {
    require_written(ftruncate(fd_, bytes) == 0 && fsync(fd_) == 0 && rename(temporary_.c_str(), path_.c_str()) == 0, path_);
    close(fd_);
    fd_ = -1;
    // The new name reaches the disk with its folder. Not every file system can sync a folder, so its result is ignored.
    int folder = open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return;
    fsync(folder);
    close(folder);
}

// -------------------------------------------------------------------------------------------------------- for programs

void check_output(const std::string& out, const std::vector<std::string>& inputs, bool overwrite) {
    struct stat there, input;
    require(!out.empty(), "the file to write has no name");
    if (stat(out.c_str(), &there) != 0) return;
    for (const std::string& path : inputs)
        require(stat(path.c_str(), &input) != 0 || input.st_dev != there.st_dev || input.st_ino != there.st_ino, out,
                ": is also an input (", path, "); write to another file");
    require(S_ISREG(there.st_mode), out, ": is a folder, pipe or device; name a file to write");
    require(overwrite, out, ": exists already; name another file, or give --overwrite to replace it");
}

std::string human_bytes(int64_t bytes) {
    const char* units[] = {"bytes", "kB", "MB", "GB", "TB", "PB", "EB"};
    double value = static_cast<double>(bytes);
    int unit = 0;
    for (; value >= 1000; value /= 1000) unit++;
    char text[32];
    std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}
