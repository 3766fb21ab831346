// Log lines and the progress bar.
#include "llmc/io/log.h"
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include "llmc/io/error.h"

Log::Log(const std::string& file) : path(file), stream(std::fopen(file.c_str(), "a+")) {
    std::signal(SIGXFSZ, SIG_IGN);   // above `ulimit -f`, a write then fails and says so, instead of ending the process
    require(stream, path, ": cannot be written: ", std::strerror(errno));
    if (std::fseek(stream, -1, SEEK_END) == 0 && std::fgetc(stream) != '\n') std::fputc('\n', stream);
}

Log::~Log() { std::fclose(stream); }

void Log::write(const nlohmann::json& line) {
    std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    bool written = std::fwrite(text.data(), 1, text.size(), stream) == text.size() && std::fflush(stream) == 0;
    require(written, path, ": cannot be written: ", std::strerror(errno), "; make room and --resume from the last checkpoint");
}

nlohmann::json or_null(double x) { return std::isfinite(x) ? nlohmann::json(x) : nlohmann::json(); }

std::string clock_text(double seconds) {
    char text[32];
    long s = seconds < 1e9 ? static_cast<long>(seconds + 0.5) : 999999999;
    std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    return text;
}

ProgressBar::ProgressBar(bool wanted) : terminal(wanted && isatty(STDOUT_FILENO)) {}

void ProgressBar::show(int64_t step, int64_t steps, double seconds_left) {
    if (!terminal) return;
    const int width = 40;
    int filled = static_cast<int>(width * step / std::max<int64_t>(steps, 1));
    std::printf("[%s%s] %ld/%ld  %s left\r", std::string(filled, '#').c_str(), std::string(width - filled, '.').c_str(),
                step, steps, clock_text(seconds_left).c_str());
    std::fflush(stdout);
}

void ProgressBar::clear() {
    if (terminal) std::printf("\r\033[K");
}
