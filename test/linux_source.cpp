// data/linux_source.sh, with a tar of a few files in place of the Linux source, and scripts in place of apt-get.
#include <doctest/doctest.h>
#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>
#include "llmc/text/tokenizer.h"
#include "test/needs.h"
#include "test/program.h"
#include "test/shards.h"

namespace fs = std::filesystem;

static bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }
static bool one_line(const std::string& text) { return std::count(text.begin(), text.end(), '\n') == 1; }

/// A small Linux source: 250 wanted texts in folders, and unwanted files; options that fit its size, and calls of the script with it.
struct Source {
    TempDir dir;
    Names texts;
    const std::string few = "--vocab-size 257 --val-tokens 0 ";

    Source() {
        for (int i = 0; i < 240; i++) add("drivers/d" + std::to_string(i % 7) + "/file" + std::to_string(i) + ".c", "int f" + std::to_string(i) + ";\n");
        for (std::string name : {"include/linux/list.h", "arch/x86/entry.S", "Documentation/index.rst", "Documentation/notes.txt", "Kconfig", "mm/Kconfig.debug",
                                 "Documentation/ABI/testing/sysfs-bus", "drivers/gpu/drm/amd/amdgpu/a.c", "asic_reg.c", "tools/json.c"})
            add(name, "the text of " + name + "\n");
        texts = written;
        add("kernel/copy.c", "int f7;\n");                             // a duplicate of drivers/d0/file7.c
        add("binary.c", std::string("int\0x", 5));
        add("empty.h", "");
        add("large.c", std::string(256 * 1024, 'x') + "\n");
        for (std::string name : {"drivers/misc/asic_reg/regs.h", "drivers/gpu/drm/amd/include/asic.h", "tools/events.json", "board.dts", "board.dtsi", "logo.svg",
                                 "Makefile", "run.py", "README"})
            add(name, "left out: " + name + "\n");
        fs::create_symlink("Kconfig", dir / "linux-9.9/link.c");
        fs::create_symlink("nowhere", dir / "linux-9.9/broken.h");
        pack();
    }
    void add(const std::string& name, const std::string& text) {
        const std::string path = dir / ("linux-9.9/" + name);
        fs::create_directories(fs::path(path).parent_path());
        write_file(path, text);
        written.push_back(text);
    }
    void pack() const { REQUIRE(run("cd " + dir.path + " && tar -cJf linux-source-9.9.tar.xz linux-9.9").code == 0); }
    std::string tar() const { return dir / "linux-source-9.9.tar.xz"; }
    std::string command(const std::string& arguments) const { return "LINUX_SOURCE=" + tar() + " data/linux_source.sh " + arguments; }
    Result make(const std::string& out, const std::string& arguments = "") const { return run(command(few + arguments + " --out " + dir / out)); }
    /// A stand-in for a command, in a folder that `path()` puts first.
    void stand_in(const std::string& name, const std::string& body) const {
        fs::create_directories(dir / "bin");
        write_file(dir / ("bin/" + name), "#!/bin/sh\n" + body + "\n");
        fs::permissions(dir / ("bin/" + name), fs::perms::owner_all);
    }
    std::string path() const { return "PATH=" + dir / "bin:$PATH "; }
    /// One line of error, exit code 2, and neither the corpus nor its temporary folder exists.
    void check_failed(const Result& result, const std::string& words, const std::string& out = "out") const {
        CAPTURE(result.err);
        CHECK(result.code == 2);
        CHECK(one_line(result.err));
        CHECK(result.err.starts_with("linux_source.sh: "));
        CHECK(contains(result.err, words));
        CHECK(!fs::exists(dir / out));
        CHECK(!fs::exists(dir / out + ".tmp"));
    }

private:
    Names written;
};

static Names sorted(Names names) {
    std::sort(names.begin(), names.end());
    return names;
}

/// The files of a folder and their contents.
static std::map<std::string, std::string> files_of(const std::string& folder) {
    std::map<std::string, std::string> files;
    for (const std::string& name : names_in(folder)) files[name] = read_file(folder + "/" + name);
    return files;
}

TEST_SUITE_BEGIN("linux_source" * doctest::skip(!can_split()));

TEST_CASE("linux_source.sh: every wanted text is a document, once; validation is whole files; the order is shuffled") {
    Source source;
    Result result = source.make("out");
    REQUIRE_MESSAGE(result.code == 0, result.err);
    CHECK(names_in(source.dir / "out") == Names{"source.txt", "tokenizer.txt", "train_000000.bin", "val_000000.bin"});
    CHECK(!fs::exists(source.dir / "out.tmp"));
    const Names train = documents_in(source.dir / "out/train_000000.bin"), val = documents_in(source.dir / "out/val_000000.bin");
    CHECK(val.size() == 2);
    CHECK(train.size() == 248);
    Names all = train;
    all.insert(all.end(), val.begin(), val.end());
    CHECK(sorted(all) == sorted(source.texts));
    CHECK(train != sorted(train));
    CHECK(one_line(result.err));   // no warnings about files that the script itself leaves out
    CHECK_MESSAGE(contains(result.err, "skipped 1 file: binary (a NUL in the first 8 KiB): "), result.err);
    CHECK(contains(result.out, "next: ./train_gpt --data '" + source.dir / "out/train_*.bin'"));
}

TEST_CASE("linux_source.sh: --piece-bytes splits files at line ends, and no file is in both training and validation") {
    Source source;
    for (int i = 0; i < 60; i++) {
        const std::string name = "file" + std::to_string(i);
        source.add("fs/" + name + ".c", name + " 1\n\n" + name + " 2\n\n" + name + " 3\n");
    }
    source.pack();
    Result result = source.make("out", "--piece-bytes 12");
    REQUIRE_MESSAGE(result.code == 0, result.err);
    const Names train = documents_in(source.dir / "out/train_000000.bin"), val = documents_in(source.dir / "out/val_000000.bin");
    auto pieces = [](const Names& documents, const std::string& name) {
        return std::count_if(documents.begin(), documents.end(), [&](const std::string& text) { return text.rfind(name + " ", 0) == 0; });
    };
    int held_out = 0;
    for (int i = 0; i < 60; i++) {
        const std::string name = "file" + std::to_string(i);
        CAPTURE(name);
        const auto in_val = pieces(val, name);
        CHECK(pieces(train, name) + in_val == 2);   // 1 and 2 in one, 3
        CHECK((in_val == 0 || in_val == 2));
        held_out += in_val == 2;
    }
    CHECK(held_out >= 1);
}

TEST_CASE("linux_source.sh: the same text gives the same bytes in any folder, and source.txt names its origin") {
    Source source;
    for (std::string out : {"a", "deeper/folder/b", "with space/c"})
        REQUIRE(run(source.command("--vocab-size 260 --tokens 1.5e3 --val-tokens 10 --out '" + source.dir / out + "///'")).code == 0);
    const auto files = files_of(source.dir / "a");
    CHECK(files == files_of(source.dir / "deeper/folder/b"));
    CHECK(files == files_of(source.dir / "with space/c"));
    CHECK(files.at("source.txt") == "data/linux_source.sh --vocab-size 260 --tokens 1500 --val-tokens 10 --piece-bytes 0\ntext linux-source-9.9.tar.xz\nSHA-256 " +
                                        run("sha256sum <" + source.tar()).out.substr(0, 64) + "\n");
    CHECK(Tokenizer::load(source.dir / "a/tokenizer.txt").vocab_size() == 260);
    CHECK(read_shard_header(source.dir / "a/train_000000.bin") == 1500);
    CHECK(read_shard_header(source.dir / "a/val_000000.bin") == 10);
    // An empty folder may be used.
    fs::create_directory(source.dir / "empty");
    REQUIRE(source.make("empty").code == 0);
    CHECK(fs::exists(source.dir / "empty/source.txt"));
}

TEST_CASE("linux_source.sh: shards have a million tokens, so that --data-seed can change their order") {
    Source source;
    for (int i = 0; i < 5; i++) source.add("fs/" + std::to_string(i) + ".c", std::string(262000, static_cast<char>('a' + i)) + "\n");
    source.pack();
    REQUIRE(source.make("out").code == 0);
    CHECK(names_in(source.dir / "out") == Names{"source.txt", "tokenizer.txt", "train_000000.bin", "train_000001.bin", "val_000000.bin"});
    CHECK(read_shard_header(source.dir / "out/train_000000.bin") == 1'000'000);
}

TEST_CASE("linux_source.sh: a second call does nothing, and a corpus made otherwise is left alone") {
    Source source;
    const std::string out = source.dir / "out";
    REQUIRE(source.make("out").code == 0);
    const auto files = files_of(out);
    const fs::file_time_type time = fs::last_write_time(out + "/train_000000.bin");
    Result result;
    std::string found;
    SUBCASE("the same") {
        result = source.make("out");
        CHECK(result.code == 0);
        CHECK(result.out == out + ": already there\n");
        // Its source need not exist any more.
        CHECK(run("data/linux_source.sh " + source.few + "--out " + out).out == result.out);
    }
    SUBCASE("other options") { result = source.make("out", "--tokens 100"), found = "has what data/linux_source.sh --vocab-size 257 --tokens 0 --val-tokens 0 --piece-bytes 0 made"; }
    SUBCASE("another text") {
        source.add("new.c", "int x;\n");
        source.pack();
        result = source.make("out"), found = "was made of another text than LINUX_SOURCE=" + source.tar();
    }
    CHECK(files_of(out) == files);
    CHECK(fs::last_write_time(out + "/train_000000.bin") == time);
    if (found.empty()) return;
    CHECK(result.code == 2);
    CHECK(one_line(result.err));
    CHECK_MESSAGE(contains(result.err, found), result.err);
}

TEST_CASE("linux_source.sh: a folder or file that it did not make is left alone") {
    Source source;
    fs::create_directory(source.dir / "folder");
    write_file(source.dir / "folder/train_000000.bin", "mine");
    write_file(source.dir / "file", "mine");
    for (std::string out : {"folder", "file"}) {
        Result result = source.make(out);
        CHECK(result.code == 2);
        CHECK(one_line(result.err));
        CHECK_MESSAGE(contains(result.err, "was not made by this script"), result.err);
    }
    CHECK(read_file(source.dir / "folder/train_000000.bin") == "mine");
    CHECK(read_file(source.dir / "file") == "mine");
}

TEST_CASE("linux_source.sh: a damaged or too small source, or none, gives one line of error, and nothing is made") {
    Source source;
    const std::string whole = read_file(source.tar());
    auto with = [&](const std::string& bytes) {
        write_file(source.tar(), bytes);
        return source.make("out");
    };
    source.check_failed(with(whole.substr(0, whole.size() / 2)), "cannot unpack '" + source.tar());
    std::string damaged = whole;
    for (size_t i = 0; i < 20; i++) damaged[damaged.size() / 2 + i] ^= 0x55;
    source.check_failed(with(damaged), "cannot unpack '" + source.tar());
    source.check_failed(with("<html>please sign in</html>"), "cannot unpack '" + source.tar());
    source.check_failed(with(""), "cannot unpack '" + source.tar());
    write_file(source.tar(), whole);
    source.check_failed(source.make("out", "--tokens 1e6"), "--tokens is 1000000, but the documents give only ");
    source.check_failed(source.make("out", "--val-tokens 1e6"), "--val-tokens is 1000000, but the documents give only ");
    fs::remove_all(source.dir / "linux-9.9");
    fs::create_directory(source.dir / "linux-9.9");
    source.pack();
    source.check_failed(source.make("out"), "no text in");
    fs::remove(source.tar());
    source.check_failed(source.make("out"), "LINUX_SOURCE is '" + source.tar() + "', which is not a file");
}

TEST_CASE("linux_source.sh: a full disk leaves nothing incomplete") {
    Source source;
    source.add("fs/some.c", std::string(200'000, 'x'));
    source.pack();
    // A limit on file sizes takes the place of a full disk: first for tar, then for the shards.
    source.check_failed(run("trap '' XFSZ; ulimit -f 100; " + source.command(source.few + "--out " + source.dir / "out")), "cannot unpack '" + source.tar());
    source.check_failed(run("trap '' XFSZ; ulimit -f 600; " + source.command(source.few + "--out " + source.dir / "out")), "train_000000.bin");
    CHECK(source.make("out").code == 0);
    source.check_failed(run(source.command(source.few + "--out /proc/out")), "cannot make the folder '/proc/out.tmp'", "none");
    source.check_failed(run(source.command(source.few + "--out " + source.tar() + "/out")), "cannot make the folder", "none");
}

TEST_CASE("linux_source.sh: stopped, it leaves nothing; killed, it leaves what the next call removes") {
    Source source;
    // A tar that unpacks a little, prints its process id, and never ends.
    source.stand_in("tar", "touch " + source.dir / "out.tmp/text/half.c; echo $$ >" + source.dir / "pid.tmp; mv " + source.dir / "pid.tmp " + source.dir / "pid; exec sleep 1000");
    const std::string begin = source.path() + source.command(source.few + "--out " + source.dir / "out") + " & script=$!; while [ ! -e " + source.dir / "pid ]; do sleep 0.01; done; ";
    const std::string gone = "; for i in 1 2 3 4 5 6 7 8 9; do kill -0 $(cat " + source.dir / "pid) 2>/dev/null || exit 7; sleep 0.1; done";
    SUBCASE("stopped") {
        source.check_failed(run(begin + "kill -TERM $script; wait $script"), "stopped by a signal; '" + source.dir / "out' was not made");
        CHECK(run("true" + gone).code == 7);   // the tar that it started has ended
    }
    SUBCASE("killed") {
        run(begin + "kill -KILL $script; wait $script");
        CHECK(fs::exists(source.dir / "out.tmp/text/half.c"));
        CHECK(!fs::exists(source.dir / "out"));
        // The tar that it started is still running there.
        Result second = source.make("out");
        CHECK(second.code == 2);
        CHECK_MESSAGE(contains(second.err, "is going into '" + source.dir / "out.tmp'"), second.err);
        CHECK(fs::exists(source.dir / "out.tmp/text/half.c"));
        run("kill -KILL $(cat " + source.dir / "pid)" + gone);
    }
    Result result = source.make("out");
    REQUIRE_MESSAGE(result.code == 0, result.err);
    CHECK(documents_in(source.dir / "out/train_000000.bin").size() == 248);
    CHECK(!fs::exists(source.dir / "out.tmp"));
}

TEST_CASE("linux_source.sh refuses wrong arguments before it unpacks anything") {
    Source source;
    struct {
        std::string arguments, found;
    } cases[] = {
        {"--vocab-size 256", "--vocab-size is '256', but must be 257"},
        {"--vocab-size 65537", "--vocab-size is '65537'"},
        {"--vocab-size 99999999999999999999", "--vocab-size is '99999999999999999999'"},
        {"--vocab-size many", "--vocab-size is 'many'"},
        {"--vocab-size ''", "--vocab-size is ''"},
        {"--tokens -1", "--tokens is '-1', but must be a number like 60e6"},
        {"--tokens 1e10", "--tokens is '1e10'"},
        {"--tokens 60M", "--tokens is '60M'"},
        {"--val-tokens 1e", "--val-tokens is '1e'"},
        {"--piece-bytes 1e3", "--piece-bytes is '1e3'"},
        {"--tokens", "'--tokens' is no option, or lacks its value"},
        {"--frobnicate 3", "'--frobnicate' is no option"},
        {"--help", "expected data/linux_source.sh [--vocab-size V]"},
        {"--out ''", "--out is empty"},
    };
    for (auto& [arguments, found] : cases) {
        CAPTURE(arguments);
        source.check_failed(run(source.command("--out " + source.dir / "out " + arguments)), found);
    }
    // The programs are not built.
    fs::create_directory(source.dir / "data");
    for (std::string name : {"linux_source.sh", "download.sh"}) fs::copy(fs::path("data") / name, source.dir / "data");
    source.check_failed(run("LINUX_SOURCE=" + source.tar() + " " + source.dir / "data/linux_source.sh --out " + source.dir / "out"), "data/tokenize is not built; run make");
}

// ------------------------------------------------------------------------------------------------------------- the package

/// These tests need a machine without the package: where it is installed, the script does not call apt-get.
static Needs needs_packages() {
    return {run("command -v dpkg-deb").code == 0 && run("ls /usr/src/linux-source-*.tar.*").code != 0, "packages of Debian (or linux-source is installed)"};
}

/// The text as a package, and an apt-get that knows it.
struct Package : Source {
    Package() {
        fs::create_directories(dir / "deb/DEBIAN");
        fs::create_directories(dir / "deb/usr/src");
        fs::create_directories(dir / "deb/usr/share/doc");
        write_file(dir / "deb/DEBIAN/control", "Package: linux-source-9.9\nVersion: 2:9.9.1-3\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: a stand-in\n");
        fs::copy(tar(), dir / "deb/usr/src");
        REQUIRE(run("dpkg-deb --root-owner-group --build " + dir / "deb " + dir / "archive.deb").code == 0);
        stand_in("apt-cache", "case \"$*\" in\n'depends linux-source') [ ! -e " + dir / "unknown ] || exit 100; echo linux-source; echo '  Depends: linux-source-9.9' ;;\n"
                              "'show --no-all-versions linux-source-9.9') echo 'Package: linux-source-9.9'; echo 'Version: 2:9.9.1-3'; echo 'SHA256: " +
                                  run("sha256sum <" + dir / "archive.deb").out.substr(0, 64) + "' ;;\n*) exit 1 ;; esac");
        stand_in("apt-get", "echo \"$*\" >>" + dir / "calls; [ ! -e " + dir / "offline ] || { echo 'E: Failed to fetch http://nowhere/linux' >&2; exit 100; }\n"
                            "cp " + dir / "archive.deb ./linux-source-9.9_2%3a9.9.1-3_all.deb");
    }
    Result make(const std::string& out) const { return run("unset LINUX_SOURCE; " + path() + "data/linux_source.sh " + few + "--out " + dir / out); }
    std::string file() const { return dir / "corpora/linux-source-9.9_2%3a9.9.1-3_all.deb"; }
    int64_t calls() const {
        const std::string lines = fs::exists(dir / "calls") ? read_file(dir / "calls") : "";
        return std::count(lines.begin(), lines.end(), '\n');
    }
};

TEST_CASE("linux_source.sh fetches Debian's package, once for all corpora" * needs_packages()) {
    Package package;
    Result result = package.make("corpora/a");
    REQUIRE_MESSAGE(result.code == 0, result.err);
    CHECK(read_file(package.dir / "calls").ends_with("download linux-source-9.9=2:9.9.1-3\n"));
    CHECK(names_in(package.dir / "corpora") == Names{"a", "linux-source-9.9_2%3a9.9.1-3_all.deb"});
    REQUIRE(package.Source::make("b").code == 0);   // from the tar itself
    CHECK(read_file(package.dir / "corpora/a/train_000000.bin") == read_file(package.dir / "b/train_000000.bin"));
    CHECK(contains(read_file(package.dir / "corpora/a/source.txt"), "\ntext linux-source-9.9_2%3a9.9.1-3_all.deb\n"));

    REQUIRE(package.make("corpora/c").code == 0);
    CHECK(package.calls() == 1);
    // An incomplete or damaged package is fetched again.
    write_file(package.file(), "half");
    REQUIRE(package.make("corpora/d").code == 0);
    CHECK(package.calls() == 2);
    CHECK(read_file(package.file()) == read_file(package.dir / "archive.deb"));
}

TEST_CASE("linux_source.sh: a failure of apt-get gives one line of error with the way out" * needs_packages()) {
    Package package;
    SUBCASE("no network") {
        write_file(package.dir / "offline", "");
        package.check_failed(package.make("corpora/a"), "cannot fetch linux-source-9.9 2:9.9.1-3: E: Failed to fetch http://nowhere/linux; ", "corpora/a");
    }
    SUBCASE("no such package") {
        write_file(package.dir / "unknown", "");
        package.check_failed(package.make("corpora/a"), "apt-cache knows no package linux-source; run apt-get update", "corpora/a");
    }
    SUBCASE("another file than was announced") {
        write_file(package.dir / "archive.deb", "something else");
        package.check_failed(package.make("corpora/a"), "does not have the SHA-256 that apt-cache lists for it", "corpora/a");
        CHECK(!fs::exists(package.file()));
    }
    SUBCASE("no apt-get, as elsewhere than on Debian") {
        for (std::string tool : {"bash", "basename", "cat", "cut", "dirname", "find", "flock", "grep", "head", "ls", "mkdir", "rm", "sed", "sort", "tail", "tr"}) {
            const std::string where = run("command -v " + tool).out;
            fs::create_directories(package.dir / "few");
            fs::create_symlink(where.substr(0, where.find('\n')), package.dir / ("few/" + tool));
        }
        package.check_failed(run("unset LINUX_SOURCE; PATH=" + package.dir / "few data/linux_source.sh --out " + package.dir / "corpora/a"),
                             "apt-get is missing, so there is no package linux-source; get a tar from kernel.org", "corpora/a");
    }
}

TEST_SUITE_END();
