// What Python makes of a run's log.jsonl: dev/plot.py --watch, dev/to_tensorboard.py and dev/to_wandb.py, read back with the packages' own
// protocol. LOGS_PYTHON names a Python that has tensorboard and wandb, such as that of a virtual environment.
#include <doctest/doctest.h>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include "test/expect.h"
#include "test/python.h"
#include "test/small_run.h"

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const std::string LOGS_PYTHON = std::getenv("LOGS_PYTHON") ? std::getenv("LOGS_PYTHON") : PYTHON;

/// Looked for and not imported, which takes W&B a second; and not in this folder.
Needs needs_package(const char* name) {
    return {run(LOGS_PYTHON + " -I -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec(\"" + name + "\"))'").code == 0, name};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

std::string start(int steps, int eval_every = 0) {
    json line{{"event", "start"}, {"argv", {"./train_gpt", "--depth", "2"}}, {"steps", steps}, {"config", {{"n_layer", 2}, {"windows", {8, 16}}}},
              {"flags", {{"eval-every", eval_every}, {"val-data", eval_every ? "val.bin" : ""}, {"seed", 42}}}};
    return line.dump() + "\n";
}
/// loss = 8 - step / 16 and 250 ms a step: numbers that fp32 holds.
std::string step(int n) {
    json line{{"event", "step"}, {"step", n}, {"loss", 8 - n / 16.0}, {"smooth_loss", 8.5 - n / 16.0}, {"lr", 0.5}, {"norm", nullptr}, {"ms", 250.0},
              {"tok_s", 64.0}, {"mfu", 12.5}, {"tokens", 16 * n}, {"flops", 1024.0 * n}, {"total_flops", 4096 + 1024.0 * n}};
    return line.dump() + "\n";
}
std::string steps(int first, int last) {
    std::string text;
    for (int n = first; n <= last; n++) text += step(n);
    return text;
}
std::string evaluation(int n) {
    json line{{"event", "eval"}, {"step", n}, {"val_loss", 9 - n / 16.0}, {"val_bpb", nullptr}, {"tokens", 16 * n},
              {"flops", 1024.0 * n}, {"total_flops", 4096 + 1024.0 * n}};
    return line.dump() + "\n";
}
std::string resumed(int n) { return json{{"event", "resume"}, {"step", n}, {"from", "x"}}.dump() + "\n"; }

/// A run's folder, `name` in a folder of its own.
struct Run : TempDir {
    std::string folder = *this / "run", log = folder + "/log.jsonl";
    explicit Run(const std::string& text) {
        fs::create_directory(folder);
        write_file(log, text);
    }
    void append(const std::string& text) const { write_file(log, read_file(log) + text); }
};

/// {tag: [[step, value, seconds since the first event], ...]} of an event file, and the settings.
json events_of(const std::string& folder) {
    TempDir dir;
    write_file(dir / "read.py", R"(
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
found = {tag: [[e.step, e.value, round(e.wall_time - events.FirstEventTimestamp(), 3)] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
text = events.Tensors("settings")
print(json.dumps({"scalars": found, "settings": [t.tensor_proto.string_val[0].decode() for t in text]}))
)");
    Result result = run(LOGS_PYTHON + " " + dir / "read.py" + " " + folder);
    INFO(result.err);
    REQUIRE(result.code == 0);
    return json::parse(result.out);
}

/// Of every offline run below a folder, in the order of their names: id, name, config and rows. The file is a log of LevelDB's form: blocks
/// of 32 KiB, in them pieces of records with 4 bytes of checksum, 2 of length, 1 that says which piece.
json wandb_of(const std::string& folder) {
    TempDir dir;
    write_file(dir / "read.py", R"(
import glob, json, sys
from wandb.proto.wandb_internal_pb2 import Record
def records(data):
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, piece = int.from_bytes(data[at + 4:at + 6], "little"), data[at + 6]
        whole += data[at + 7:at + 7 + length]
        at += 7 + length
        if piece in (1, 4):
            yield Record.FromString(whole)
            whole = b""
runs = []
for path in sorted(glob.glob(sys.argv[1] + "/wandb/offline-run-*/*.wandb")):
    found = {"rows": []}
    for r in records(open(path, "rb").read()):
        if r.WhichOneof("record_type") == "run":
            found.update(id=r.run.run_id, name=r.run.display_name, project=r.run.project, config={u.key: json.loads(u.value_json) for u in r.run.config.update})
        elif r.WhichOneof("record_type") == "history":
            found["rows"].append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item})
    runs.append(found)
print(json.dumps(runs))
)");
    Result result = run(LOGS_PYTHON + " " + dir / "read.py" + " " + folder);
    INFO(result.err);
    REQUIRE(result.code == 0);
    return json::parse(result.out);
}

}  // namespace

TEST_SUITE_BEGIN("logs");

TEST_CASE("logs: what is wrong with a log is one line, and half a last line is left out" * needs_python()) {
    Run good(start(4) + steps(1, 2));
    TempDir packages;   // none of them is there
    for (std::string name : {"wandb", "tensorboard", "matplotlib"}) write_file(packages / (name + ".py"), "raise ImportError\n");
    for (std::string script : {"to_wandb", "to_tensorboard", "plot"}) {
        const std::string command = "PYTHONPATH=" + packages.path + " " + PYTHON + " dev/" + script + ".py ";
        // plot.py asks for matplotlib first, as it has nothing to tell without; the others read first.
        if (script != "plot") {
            refused(command + "/nowhere/at/all", script + ": /nowhere/at/all: no such file; give a run's folder, or its log.jsonl");
            Run bad(start(4) + step(1) + "{\"event\":\"st\n" + step(2));
            refused(command + bad.folder, "log.jsonl: line 3 is not JSON: '{\"event\":\"st'; mend or remove it");
            Run other(start(4) + step(1) + "{\"step\": 2}\n" + step(3));
            refused(command + other.folder, "log.jsonl: line 3 is no record of a log: '{\"step\": 2}'");
            Run two(start(4) + step(1) + "{\n" + "[\n");
            refused(command + two.folder, "line 3 is not JSON: '{'");
            for (std::string text : {std::string(), start(4), start(4) + step(1).substr(0, 20)}) {
                Run empty(text);
                const Result result = run(command + empty.folder);
                CHECK(result.code == 2);
                CHECK_MESSAGE(contains(result.err, "no step logged yet; left out"), result.err);
                CHECK_MESSAGE(contains(result.err, "nothing to send: no log has a step yet"), result.err);
            }
        }
        Result missing = run(command + good.folder);
        CHECK(missing.code == 2);
        const std::string package = script == "plot" ? "matplotlib" : script.substr(3);
        const std::string why = package + " is missing; " + (script == "plot" ? "install it (make deps)" : "pip install " + package);
        CHECK_MESSAGE(contains(missing.err, why), missing.err);
    }
}

TEST_CASE("logs: TensorBoard reads what was logged, each step once" * needs_package("tensorboard")) {
    Run place(start(8, 4) + evaluation(0) + steps(1, 3) + step(4).substr(0, 30));
    const std::string command = LOGS_PYTHON + " dev/to_tensorboard.py " + place.folder + " -o " + place / "tb";
    const std::string file = place / "tb/run/events.out.tfevents.deepen";
    CHECK(done(command) == file + "\n");
    const std::string before = read_file(file);
    json read = events_of(place / "tb/run");
    CHECK(read["scalars"]["train/loss"] == json::parse("[[1, 7.9375, 0.25], [2, 7.875, 0.5], [3, 7.8125, 0.75]]"));
    CHECK(read["scalars"]["val/loss"] == json::parse("[[0, 9.0, 0.0]]"));
    CHECK(read["scalars"]["perf/step_ms"][2] == json::parse("[3, 250.0, 0.75]"));
    CHECK(read["scalars"]["progress/total_flops"] == json::parse("[[0, 4096.0, 0.0], [1, 5120.0, 0.25], [2, 6144.0, 0.5], [3, 7168.0, 0.75]]"));
    CHECK(!read["scalars"].contains("train/grad_norm"));   // null
    CHECK(!read["scalars"].contains("val/bpb"));
    REQUIRE(read["settings"].size() == 1);
    CHECK(contains(read["settings"][0], "\"n_layer\": 2"));

    // The run goes on: what is new is appended. Its evaluation comes after its step.
    write_file(place.log, start(8, 4) + evaluation(0) + steps(1, 4));
    done(command);
    place.append(evaluation(4) + step(5));
    done(command);
    done(command);
    CHECK(read_file(file).substr(0, before.size()) == before);
    read = events_of(place / "tb/run");
    CHECK(read["scalars"]["train/loss"].size() == 5);
    CHECK(read["scalars"]["progress/tokens"].size() == 6);
    CHECK(read["scalars"]["val/loss"] == json::parse("[[0, 9.0, 0.0], [4, 8.75, 1.0]]"));

    // It goes back and takes another way, and then begins anew.
    place.append(start(8) + resumed(2) + step(3) + json{{"event", "step"}, {"step", 4}, {"loss", 1.5}, {"ms", 500.0}}.dump() + "\n");
    done(command);
    read = events_of(place / "tb/run");
    CHECK(read["scalars"]["train/loss"] == json::parse("[[1, 7.9375, 0.25], [2, 7.875, 0.5], [3, 7.8125, 0.75], [4, 1.5, 1.25]]"));
    CHECK(read["scalars"]["val/loss"].size() == 1);
    write_file(place.log, start(3) + step(1));
    done(command);
    CHECK(events_of(place / "tb/run")["scalars"]["train/loss"].size() == 1);

    write_file(file, "something else");
    done(command);
    CHECK(events_of(place / "tb/run")["scalars"]["train/loss"].size() == 1);
    refused(LOGS_PYTHON + " dev/to_tensorboard.py " + place.folder + " -o /dev/null", "/dev/null/run/events.out.tfevents.deepen: cannot be written");
}

TEST_CASE("logs: two runs get a folder each" * needs_package("tensorboard")) {
    TempDir dir;
    for (std::string name : {"a-1", "a-2"}) {
        fs::create_directory(dir / name);
        write_file(dir / name + "/log.jsonl", start(2) + steps(1, name == "a-1" ? 1 : 2));
    }
    done(LOGS_PYTHON + " dev/to_tensorboard.py " + dir / "a-1 " + dir / "a-2/log.jsonl -o " + dir / "tb");
    CHECK(events_of(dir / "tb/a-1")["scalars"]["train/loss"].size() == 1);
    CHECK(events_of(dir / "tb/a-2")["scalars"]["train/loss"].size() == 2);
}

TEST_CASE("logs: W&B has what was logged, each step once" * needs_package("wandb")) {
    Run place(start(8, 4) + evaluation(0) + steps(1, 4) + step(5).substr(0, 30));
    fs::create_directory(place / "wb");
    const std::string command = "WANDB_MODE=offline " + LOGS_PYTHON + " dev/to_wandb.py " + place.folder + " --project tests --dir " + place / "wb";
    // Step 4 waits for its evaluation.
    CHECK(contains(done(command), "run: steps 0 to 3 sent"));
    CHECK(contains(done(command), "run: nothing new after step 3"));
    json runs = wandb_of(place / "wb");
    REQUIRE(runs.size() == 1);
    CHECK(runs[0]["name"] == "run");
    CHECK(runs[0]["project"] == "tests");
    CHECK(runs[0]["config"]["config"] == json::parse(R"({"n_layer": 2, "windows": [8, 16]})"));
    CHECK(runs[0]["config"]["flags"]["seed"] == 42);
    REQUIRE(runs[0]["rows"].size() == 4);
    for (int n = 0; n <= 3; n++) {
        const json& row = runs[0]["rows"][n];
        CHECK(row["_step"] == n);
        CHECK(row.contains("train/loss") == (n > 0));
        CHECK(row.contains("val/loss") == (n == 0));
        CHECK(row["progress/tokens"] == 16 * n);
        CHECK(!row.contains("train/grad_norm"));
        if (n > 0) CHECK(row["train/loss"] == 8 - n / 16.0);
        if (n > 0) CHECK(row["perf/tokens_per_second"] == 64);
    }

    // The run is stopped and goes on: the rest of it, and the same id. Steps that it took back stay.
    write_file(place.log, start(8, 4) + evaluation(0) + steps(1, 4) + evaluation(4) + start(8, 4) + resumed(2) + steps(3, 4) +
                          evaluation(4) + steps(5, 8) + evaluation(8));
    CHECK(contains(done(command), "run: steps 4 to 8 sent"));
    CHECK(contains(done(command), "run: nothing new after step 8"));
    runs = wandb_of(place / "wb");
    REQUIRE(runs.size() == 2);
    CHECK(runs[0]["id"] == runs[1]["id"]);
    REQUIRE(runs[1]["rows"].size() == 5);
    CHECK(runs[1]["rows"][0]["_step"] == 4);
    CHECK(runs[1]["rows"][0]["val/loss"] == 8.75);
    CHECK(runs[1]["rows"][4]["val/loss"] == 8.5);

    // Another run in the same folder is another run.
    write_file(place.log, start(3) + steps(1, 2));
    CHECK(contains(done(command), "run: steps 1 to 2 sent"));
    runs = wandb_of(place / "wb");
    CHECK(runs.size() == 3);
    std::set<std::string> ids;
    for (const json& one : runs) ids.insert(one["id"]);
    CHECK(ids.size() == 2);

    write_file(place.log + ".wandb", "{");
    refused(command, "log.jsonl.wandb: is not what was written there; remove it, and all steps are sent again");
    refused(LOGS_PYTHON + " dev/to_wandb.py " + place.folder + " --dir /dev/null/x",
            "/dev/null/x: cannot be made a folder: Not a directory; give another with --dir");
}

TEST_CASE("plot --watch: draws while a run goes on, until it ends" * needs_matplotlib()) {
    TempDir dir;
    const std::string folder = dir / "run", log = folder + "/log.jsonl", picture = dir / "c.png";
    const std::string told = dir / "told";
    auto wait_until_told = [&](const std::string& text) {
        for (int i = 0; i < 6000 && !(fs::exists(told) && contains(read_file(told), text)); i++) Child::pause(0.01);
        CHECK_MESSAGE(contains(read_file(told), text), read_file(told));
    };
    Child plot("exec " + PYTHON + " dev/plot.py --watch --every 0.05 -o " + picture + " " + folder + " 2>" + told);
    wait_until_told("plot: " + folder + ": not there yet\n");
    fs::create_directory(folder);
    write_file(log, start(8, 4));
    wait_until_told("plot: " + log + ": no step logged yet; left out\n");
    CHECK(!fs::exists(picture));
    write_file(log, start(8, 4) + evaluation(0) + steps(1, 2) + step(3).substr(0, 20));   // half a line is not there yet
    plot.wait_for("c.png: step 2\n");
    CHECK(fs::exists(picture));
    const auto drawn = fs::last_write_time(picture);
    fs::remove(log);                                                                       // the picture stays
    Child::pause(0.2);
    CHECK(fs::last_write_time(picture) == drawn);
    write_file(log, start(8, 4) + step(1));                                                // it began anew
    plot.wait_for("c.png: step 1\n");
    write_file(log, start(8, 4) + steps(1, 8));                                            // its last evaluation is still to come
    plot.wait_for("c.png: step 8\n");
    Child::pause(0.2);
    write_file(log, start(8, 4) + steps(1, 4) + evaluation(4) + steps(5, 8) + evaluation(8));
    const Result& result = plot.finish();
    CHECK(result.code == 0);
    CHECK_MESSAGE(contains(result.out, "c.png: step 8\nplot: all runs have ended\n"), result.out);

    // A run that was stopped before its end may go on: the user ends the watch.
    write_file(log, start(8) + steps(1, 3));
    Child stopped("exec " + PYTHON + " dev/plot.py --watch --every 0.05 -o " + picture + " " + folder);
    stopped.wait_for("c.png: step 3\n");
    stopped.signal(SIGINT);
    CHECK(stopped.finish().code == 0);
    CHECK(stopped.finish().err == "");

    refused(PYTHON + " dev/plot.py --watch --every 0 " + folder, "--every is 0, but must be above 0 and at most 86400 seconds");
    write_file(log, start(8) + "oops\n" + step(1));
    refused(PYTHON + " dev/plot.py --watch -o " + picture + " " + folder, "line 2 is not JSON: 'oops'; mend or remove it");
    refused(PYTHON + " dev/plot.py -o " + picture + " /nowhere/at/all", "plot: /nowhere/at/all: no such file; give a run's folder, or its log.jsonl");
}

TEST_SUITE_END();
