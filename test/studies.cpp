// dev/tables.py and dev/figures.py on made-up rows: verdicts against numbers worked out by hand, which rows are compared, rows that are
// missing or damaged; and the published numbers, corrected.
#include <doctest/doctest.h>
#include <algorithm>
#include <filesystem>
#include <regex>
#include <sstream>
#include <string>
#include <vector>
#include "llmc/io/error.h"
#include "test/expect.h"
#include "test/python.h"

namespace fs = std::filesystem;

static bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

static const std::string GROWTH =
    "scale,experiment,model,baseline,seed,factor,order,grow_flags,optimizer,schedule,depth,shallow_depth,width,shallow_data_ratio,"
    "deep_data_ratio,shallow_warmdown,warmdown,total_flops,tokens,start_val_loss,val_loss,val_bpb,train_loss,train_acceleration,"
    "val_acceleration,commit,processor,precision,threads,seconds,command\n";
static const std::string STACKING =
    "scale,experiment,model,parts,seed,val_loss_stack,mean_val_loss,use_first_layer,use_last_layer,norm_wte,norm_lm_head,"
    "norm_inter_model,unique_model,coconut_every,coconut_targets,embeddings,mix_every,times,models,head,val_bpb,total_flops,tokens,"
    "commit,processor,precision,threads,seconds,command\n";

static std::string baseline(int seed, const std::string& bpb, const std::string& experiment = "noise", const std::string& machine = "cpu,fp32,1") {
    return "nano," + experiment + ",base,," + std::to_string(seed) + ",,,,,,4,,48,,10.5,,0.5,1e12,1,6,1," + bpb + ",1,,,c," + machine + ",1,make\n";
}
static std::string fixed(const std::string& ratio, const std::string& warmdown, int seed, const std::string& bpb, const std::string& machine = "cpu,fp32,1") {
    return "nano,fixed,fixed-" + ratio + "-w" + warmdown + ",base," + std::to_string(seed) + ",2,stack,,reset,restart,4,2,48," + ratio + ",9," + warmdown +
           ",1,1e12,1,2,1," + bpb + ",1,0.05,,c," + machine + ",1,make\n";
}
static std::string stack_row(const std::string& experiment, const std::string& norms, bool unique, bool first, bool last, int seed, double loss,
                             const std::string& more = ",,,,,,,,") {
    auto word = [](bool value) { return std::string(value ? "True" : "False"); };
    std::ostringstream line;
    line << "nano," << experiment << ",s-" << norms.substr(0, norms.find(',')) << unique << first << last << ",," << seed << "," << loss << ",2," << word(first) << "," << word(last) << "," << norms << "," << word(unique) << more
         << "1,1e12,1,c,cpu,fp32,1,1,make\n";
    return line.str();
}

/// A folder for results; the published numbers are still those in dev/results.
struct Results : TempDir {
    std::string tables(const std::string& study) const { return PYTHON + " dev/tables.py " + study + " --results " + path; }
    std::string figures(const std::string& study) const { return PYTHON + " dev/figures.py " + study + " --results " + path; }
    std::string of(const std::string& study, const std::string& rows) const {
        write_file(*this / (study + ".csv"), (study == "growth" ? GROWTH : STACKING) + rows);
        return done(tables(study));
    }
};

TEST_SUITE_BEGIN("studies");

TEST_CASE("studies: the verdict depends on all seeds" * needs_python()) {
    Results results;
    // Differences -0.19, -0.20, -0.21: mean -0.2, standard error 0.01 / sqrt(3) = 0.0058. -0.1, -0.2, -0.3: 0.0577, and 0.2 is below 4.303 of them.
    const std::string bases = baseline(1, "2") + baseline(2, "2") + baseline(3, "2");
    std::string text = results.of("growth", bases + fixed("3.25", "0", 1, "1.81") + fixed("3.25", "0", 2, "1.80") + fixed("3.25", "0", 3, "1.79") +
                                                fixed("4.25", "0", 1, "1.9") + fixed("4.25", "0", 2, "1.8") + fixed("4.25", "0", 3, "1.7"));
    CHECK_MESSAGE(contains(text, "| 0 | 3.25 | -0.2000 ± 0.0058 | -0.1900 -0.2000 -0.2100 | 3 | *holds*: lower |"), text);
    CHECK_MESSAGE(contains(text, "| 0 | 4.25 | -0.2000 ± 0.0577 | -0.1000 -0.2000 -0.3000 | 3 | *cannot be told* |"), text);
    CHECK(contains(text, "0.9086 - 0.9095 = -0.0009"));
    // The acceleration of two losses: one reached by all, one by none.
    CHECK_MESSAGE(contains(text, "| fixed | `fixed-3.25-w0` | +5.0 ± 0.0 | +5.0 +5.0 +5.0 | 3 of 3 | *holds*: higher | – | – – – | 0 of 3 | *cannot be told*: not reached by all | 5.4 |"), text);

    // -0.01, 1, 1, 1, 1: the mean 0.798 is 3.95 standard errors, more than 2.776; but one seed has the other sign.
    std::string five;
    for (int seed = 1; seed <= 5; seed++) five += baseline(seed, "2") + fixed("3.25", "0", seed, seed == 1 ? "1.99" : "3");
    CHECK(contains(results.of("growth", five), "| 0 | 3.25 | +0.7980 ± 0.2020 | -0.0100 +1.0000 +1.0000 +1.0000 +1.0000 | 5 | *cannot be told* |"));

    // For two seeds t is 12.706: mean 0.1 with a standard error of 0.01, and of 0.005.
    text = results.of("growth", bases + fixed("1.25", "0", 1, "2.09") + fixed("1.25", "0", 2, "2.11") + fixed("2.25", "0", 1, "2.095") + fixed("2.25", "0", 2, "2.105") +
                                    fixed("3.25", "0", 1, "1.5") + fixed("4.25", "0", 1, "2.2") + fixed("4.25", "0", 2, "1.99"));
    CHECK_MESSAGE(contains(text, "| 0 | 1.25 | +0.1000 ± 0.0100 | +0.0900 +0.1100 | 2 | *cannot be told* |"), text);
    CHECK_MESSAGE(contains(text, "| 0 | 2.25 | +0.1000 ± 0.0050 | +0.0950 +0.1050 | 2 | *holds*: higher |"), text);
    CHECK_MESSAGE(contains(text, "| 0 | 3.25 | -0.5000 | -0.5000 – | 1 | one seed |"), text);
    CHECK_MESSAGE(contains(text, "| 0 | 4.25 | +0.0950 ± 0.1050 | +0.2000 -0.0100 | 2 | *cannot be told* |"), text);
}

TEST_CASE("studies: the noise is printed first, with the smallest differences that one pair and three pairs can show" * needs_python()) {
    Results results;
    std::string rows;
    for (int seed = 1; seed <= 8; seed++) rows += baseline(seed, seed % 2 ? "1.99" : "2.01");
    const std::string text = results.of("growth", rows);
    // Deviation sqrt(8 x 0.0001 / 7) = 0.01069; t of 8 seeds 2.365: one pair 2.365 x sqrt(2) x 0.01069 = 0.0358; three 4.303 x sqrt(2 / 3) x 0.01069 = 0.0376.
    CHECK_MESSAGE(contains(text, "| `base`, val_bpb (bpb) | 2.0000 ± 0.0038 | 1.9900 2.0100 1.9900 2.0100 1.9900 2.0100 1.9900 2.0100 | 8 | 0.0107 | 0.0358 | 0.0376 |"), text);
    CHECK(text.find("### Noise") < text.find("### Miniseries"));
    CHECK_MESSAGE(contains(results.of("growth", baseline(1, "2") + baseline(2, "2.1")), "Missing: 6 of 8 seeds of `base`."), text);
}

TEST_CASE("studies: only rows of one machine are compared, and the others are counted" * needs_python()) {
    Results results;
    std::string text = results.of("growth", baseline(1, "2") + baseline(2, "2", "noise", "other,fp32,1") + fixed("1.25", "0", 1, "1.9") + fixed("2.25", "0", 1, "1.9") +
                                                fixed("3.25", "0", 1, "1.5", "cpu,bf16,1") + fixed("4.25", "0", 2, "1.4") + fixed("5.25", "0", 2, "1.3", "other,fp32,1"));
    CHECK_MESSAGE(contains(text, "Left out: 1 row on another machine (cpu, bf16, 1 thread)."), text);
    CHECK_MESSAGE(contains(text, "Left out: 1 row on another machine (cpu, fp32, 1 thread)."), text);
    CHECK_MESSAGE(contains(text, "| 0 | 5.25 | -0.7000 | – -0.7000 | 1 | one seed |"), text);
    CHECK_MESSAGE(!contains(text, "1.4000"), text);
    text = results.of("growth", baseline(1, "2") + fixed("1.25", "0", 1, "1.9") + fixed("1.25", "0", 2, "1.9"));
    CHECK_MESSAGE(contains(text, "Left out: 1 row without a baseline of their seed and machine: fixed-1.25-w0 of seed 2."), text);
    // If a run was repeated, its last row counts.
    text = results.of("growth", baseline(1, "2") + fixed("1.25", "0", 1, "1.9") + fixed("1.25", "0", 1, "1.8"));
    CHECK_MESSAGE(contains(text, "| 0 | 1.25 | -0.2000 | -0.2000 | 1 | one seed |"), text);
    CHECK_MESSAGE(contains(text, "1 earlier row is left out"), text);
}

TEST_CASE("studies: a seed of latents that two machines have counts once" * needs_python()) {
    Results results;
    std::string rows = "scale,experiment,model,seed,commit,processor,precision,threads,quantity,model_a,position_a,model_b,position_b,tokens,mean,std,min,max\n";
    auto row = [](const std::string& model, int seed, const std::string& machine, const std::string& mean) {
        return "nano,norms," + model + "," + std::to_string(seed) + ",c," + machine + ",cosine,a,in,b,out,1000," + mean + ",0.1,-1,1\n";
    };
    // Of m the other machine has more seeds; of n both have two, and the first one wins.
    rows += row("m", 1, "cpu,fp32,1", "0.9") + row("m", 1, "other,fp32,1", "0.2") + row("m", 2, "other,fp32,1", "0.4");
    rows += row("n", 1, "cpu,fp32,1", "0.5") + row("n", 2, "cpu,fp32,1", "0.7") + row("n", 2, "other,fp32,1", "0.1") + row("n", 3, "other,fp32,1", "0.6");
    write_file(results / "stacking_latents.csv", rows);
    const std::string text = results.of("stacking", stack_row("norms", "none,rms_norm,none", true, true, true, 1, 3));
    CHECK_MESSAGE(contains(text, "| norms | m | cosine | a | in | b | out | 0.300 ± 0.100 | 0.100 ± 0.000 | -1.000 ± 0.000 | 1.000 ± 0.000 | 2 |"), text);
    CHECK_MESSAGE(contains(text, "| norms | n | cosine | a | in | b | out | 0.600 ± 0.058 |"), text);
    CHECK_MESSAGE(contains(text, "Left out: 2 rows of seeds that are here from another machine"), text);
}

TEST_CASE("studies: rows that are missing from a sweep are listed" * needs_python()) {
    Results results;
    std::string rows = baseline(1, "2") + baseline(2, "2");
    for (std::string ratio : {"1.25", "2.25", "3.25", "4.25"}) rows += fixed(ratio, "0", 1, "1.9");
    const std::string text = results.of("growth", rows + fixed("1.25", "0", 2, "1.9"));
    CHECK_MESSAGE(contains(text, "Missing, no seed of: every row of shallow_warmdown 0.5; shallow_warmdown 0, study_ratio 5.25."), text);
    CHECK_MESSAGE(contains(text, "Missing, seed 2 of: shallow_warmdown 0, study_ratio 2.25; shallow_warmdown 0, study_ratio 3.25; "), text);
    CHECK_MESSAGE(contains(text, "### Growth factor\n\nMissing: all of it; no row yet."), text);
}

TEST_CASE("studies: an experiment without a section of its own gets a table of the columns that vary" * needs_python()) {
    Results results;
    auto mine = [](const std::string& depth, int seed, const std::string& bpb, const std::string& base) {
        return "nano,mine,mine-" + depth + "," + base + "," + std::to_string(seed) + ",2,stack,,reset,restart," + depth + ",2,48,1,9,0,1,1e12,1,2,1," + bpb +
               ",1,0.05,,c,cpu,fp32,1,1,make\n";
    };
    std::string text = results.of("growth", baseline(1, "2") + baseline(2, "2.1") + mine("4", 1, "1.9", "base") + mine("4", 2, "1.99", "base") + mine("6", 1, "1.8", "base") +
                                                mine("8", 1, "1.7", "") + mine("9", 1, "1.6", "nothing"));
    CHECK_MESSAGE(contains(text, "### Mine\n\n| model | depth | val_bpb | of each seed | n | minus its baseline | of each seed | n | verdict |\n|---|---|---|---|---|---|---|---|---|\n"
                                 "| `mine-4` | 4 | 1.9450 ± 0.0450 | 1.9000 1.9900 | 2 | -0.1050 ± 0.0050 | -0.1000 -0.1100 | 2 | *holds*: lower |\n"
                                 "| `mine-6` | 6 | 1.8000 | 1.8000 – | 1 | -0.2000 | -0.2000 – | 1 | one seed |\n"
                                 "| `mine-8` | 8 | 1.7000 | 1.7000 – | 1 | – | – – | 0 | no pair |\n"), text);
    CHECK_MESSAGE(contains(text, "Left out: 1 row without a baseline of their seed and machine: mine-9 of seed 1."), text);
    CHECK_MESSAGE(contains(text, "Missing, seed 2 of: depth 6; depth 8."), text);

    std::string rows;
    for (bool last : {false, true})
        for (bool unique : {false, true}) rows += stack_row("mine", "none,rms_norm,none", unique, false, last, 1, 5 + unique + 0.5 * last);
    text = results.of("stacking", rows);
    CHECK_MESSAGE(contains(text, "### Mine\n\n| model | use_last_layer | unique_model | val_loss_stack (a part: val loss) |"), text);
    CHECK_MESSAGE(contains(text, "| `s-none101` | True | True | 6.500 | 6.500 | 1 | +4.500 | +4.500 | 1 | one seed | +1.000 | +1.000 | 1 | one seed |"), text);
    CHECK_MESSAGE(contains(text, "| `s-none001` | True | False | 5.500 | 5.500 | 1 | +3.500 | +3.500 | 1 | one seed | – | – | 0 | no pair |"), text);
}

TEST_CASE("studies: the settings of a stack are compared with those of its parts" * needs_python()) {
    Results results;
    auto part = [](const std::string& name, const std::string& norms, const std::string& times) {
        return "nano,norms," + name + "," + name + ",1,,2,,," + norms + ",,,,,own,," + times + ",1,,1,1e12,1,c,cpu,fp32,1,1,make\n";
    };
    auto of_parts = [](std::string stack, const std::string& parts) {
        return stack.replace(stack.find(",,1,"), 4, "," + parts + ",1,");
    };
    const std::string stack = of_parts(stack_row("norms", "none,rms_norm,none", true, true, true, 1, 5), "a+b");
    CHECK(!contains(results.of("stacking", part("a", "none,rms_norm", "") + part("b", "none,rms_norm", "1") + stack), "Parts that were trained with other"));
    const std::string text = results.of("stacking", part("a", "none,rms_norm", "") + part("b", "rms_norm,rms_norm", "5") + stack);
    CHECK_MESSAGE(contains(text, "Parts that were trained with other settings, norm_wte: stacked with none, trained with rms_norm: `s-none111`."), text);
    CHECK_MESSAGE(contains(text, "Parts that were trained with other settings, times: stacked with 1, trained with 5: `s-none111`."), text);
}

TEST_CASE("studies: the published means are computed from the corrected numbers" * needs_python()) {
    Results results;
    std::string rows;
    for (bool unique : {false, true})
        for (bool first : {false, true})
            for (bool last : {false, true})
                for (std::string norms : {"none,rms_norm,none", "rms_norm,rms_norm,rms_norm", "layer_norm,layer_norm,layer_norm"})
                    rows += stack_row("norms", norms, unique, first, last, 1, 5 + unique + 0.5 * first - 0.25 * last);
    const std::string text = results.of("stacking", rows);
    // The published means, corrected: cells 9.70, 9.84, 9.88 and 9.365; two models 7.74, 12.58, 10.24, one twice 7.36, 10.19, 10.06.
    CHECK_MESSAGE(contains(text, "| False | False | 5.500 | 5.500 | 1 | 6 of 6 | 9.70 | 9.79 |"), text);
    CHECK_MESSAGE(contains(text, "| False | True | 5.250 | 5.250 | 1 | 6 of 6 | 9.84 | 9.60 |"), text);
    CHECK_MESSAGE(contains(text, "| True | False | 6.000 | 6.000 | 1 | 6 of 6 | 9.88 | 9.79 |"), text);
    CHECK_MESSAGE((contains(text, "| True | True | 5.750 | 5.750 | 1 | 6 of 6 | 9.36 | 9.60 |") || contains(text, "| True | True | 5.750 | 5.750 | 1 | 6 of 6 | 9.37 | 9.60 |")), text);
    for (auto [norms, two, one] : {std::tuple{"none/rms_norm", "7.74", "7.36"}, {"rms_norm/rms_norm", "12.58", "10.19"}, {"layer_norm/layer_norm", "10.24", "10.06"}}) {
        CHECK_MESSAGE(contains(text, concat("| ", norms, " | True | 6.125 | 6.125 | 1 | 4 of 4 | ", two, " |")), text);
        CHECK_MESSAGE(contains(text, concat("| ", norms, " | False | 5.125 | 5.125 | 1 | 4 of 4 | ", one, " |")), text);
    }
    CHECK_MESSAGE(contains(text, "| use_first_layer: True minus False | +0.500 | +0.500 | 1 | one seed | 12 of 12 | -0.15 |"), text);
    CHECK_MESSAGE(contains(text, "| use_last_layer: True minus False | -0.250 | -0.250 | 1 | one seed | 12 of 12 | -0.19 |"), text);
    CHECK_MESSAGE(contains(text, "| the three published settings together | +1.000 | +1.000 | 1 | one seed | 12 of 12 | +0.99 | -0.99 |"), text);
    // The first published stack: labelled as one model twice, but the loss of its parts is that of two.
    CHECK_MESSAGE(contains(text, "| layer_norm/layer_norm | True | False | False | 6.000 | 6.000 | 1 | 2.000 | +4.000 | one seed | -0.238 | one seed | 10.57 (parts 3.31) |"), text);
}

TEST_CASE("studies: stacks of looped parts are compared with those of unlooped parts in the same cell" * needs_python()) {
    Results results;
    const std::string text = results.of("stacking", stack_row("norms", "rms_norm,rms_norm,rms_norm", true, true, false, 1, 6) +
                                                        stack_row("norms", "rms_norm,rms_norm,rms_norm", true, true, true, 1, 5) +
                                                        stack_row("loop", "rms_norm,rms_norm,rms_norm", true, true, true, 1, 5.5, ",10,same,,,,,,"));
    CHECK_MESSAGE(contains(text, "Minus the stack of parts without looping:\n\n| coconut_targets | coconut_every | unique_model | use_first_layer | use_last_layer | "
                                 "difference | of each seed | n | verdict |\n|---|---|---|---|---|---|---|---|---|\n| same | 10 | True | True | True | +0.500 | +0.500 | 1 | one seed |"), text);
}

TEST_CASE("studies: a damaged file gives one line of error" * needs_python()) {
    Results results;
    const std::string csv = results / "growth.csv";
    CHECK(done(results.tables("growth")) == "No row yet; make -f dev/growth.mk makes them.\n");
    fs::create_directory(csv);
    refused(results.tables("growth"), "growth.csv: cannot be read: Is a directory");
    fs::remove(csv);
    refused(results.tables("growth") + "/none", "none: is no folder");
    for (auto [text, words] : {std::pair{std::string(), "is empty"},
                               {std::string("scale,model\nnano,base\n"), "line 1: there is no column experiment"},
                               {GROWTH + "nano,fixed,bas", "line 2: has 3 fields, and there are 31 columns; remove the line"},
                               {GROWTH + baseline(1, "two"), "line 2: val_bpb must be a finite number, not 'two'"},
                               {GROWTH + baseline(1, "nan"), "val_bpb must be a finite number"},
                               {GROWTH + baseline(1, "1e999"), "val_bpb must be a finite number"},
                               {GROWTH + baseline(1, ""), "line 2: val_bpb is empty"},
                               {GROWTH + "\"nano", "is no CSV"},
                               {GROWTH + "\xff\xfe\n", "is no UTF-8 text"},
                               {GROWTH + "../x" + baseline(1, "2").substr(4), "scale must be a word of letters"},
                               {GROWTH + baseline(1, "2") + baseline(2, "2") + "nano,order,new" + fixed("1", "0", 1, "2").substr(21) + "nano,order,new" +
                                    std::regex_replace(fixed("1", "0", 2, "2").substr(21), std::regex("stack"), "last"),
                                "the seeds of new differ in order"}}) {
        write_file(csv, text);
        CAPTURE(words);
        refused(results.tables("growth"), words);
    }
    write_file(csv, GROWTH + baseline(1, "2"));
    CHECK(done(results.tables("growth") + " --scale small") == "No row of small yet; make -f dev/growth.mk makes them.\n");
    refused(results.tables("growth") + " --scale smal", "--scale 'smal': must be smoke, nano, small or paper");
    write_file(csv, GROWTH);
    CHECK(done(results.tables("growth")) == "No row yet; make -f dev/growth.mk makes them.\n");
}

TEST_CASE("studies: tables are written between their marks, and the prose stays" * needs_python()) {
    Results results;
    const std::string page = results / "growth.md";
    write_file(results / "growth.csv", GROWTH + baseline(1, "2") + fixed("1.25", "0", 1, "1.9"));
    write_file(page, "Before.\n<!-- table: nano fixed -->\nold\n<!-- end -->\nAfter.\n<!-- table: small noise -->\n<!-- end -->\n");
    done(results.tables("growth") + " --write");
    const std::string once = read_file(page);
    CHECK(once.rfind("Before.\n<!-- table: nano fixed -->\n\n| shallow_warmdown", 0) == 0);
    CHECK(!contains(once, "old"));
    CHECK(contains(once, "<!-- end -->\nAfter.\n<!-- table: small noise -->\n\nNo row of small yet.\n"));
    done(results.tables("growth") + " --write");
    CHECK(read_file(page) == once);
    for (auto [text, words] : {std::pair{"<!-- table: nano fixed -->\n", "has no end"}, {"<!-- end -->\n", "ends no table"},
                               {"<!-- table: nano fixd -->\n<!-- end -->\n", "there is no table 'fixd'"},
                               {"<!-- table: nano fixed -->\n<!-- table: nano noise -->\n<!-- end -->\n", "comes before the end"}}) {
        write_file(page, text);
        refused(results.tables("growth") + " --write", words);
        CHECK(read_file(page) == text);
    }
}

TEST_CASE("studies: figures are drawn of the rows that exist, and are reproducible" * needs_matplotlib()) {
    Results results;
    write_file(results / "growth.csv", GROWTH + baseline(1, "2") + baseline(2, "2.1") + fixed("1.25", "0", 1, "1.9") + fixed("1.25", "0", 2, "1.95") + fixed("3.25", "0.5", 1, "1.8"));
    Result drawn = run(results.figures("growth"));
    REQUIRE_MESSAGE(drawn.code == 0, drawn.err);
    CHECK_MESSAGE(contains(drawn.err, "growth_nano_order: no row for it yet"), drawn.err);
    CHECK(fs::file_size(results / "growth_nano_fixed.png") > 10000);
    CHECK(!fs::exists(results / "growth_nano_order.svg"));
    const std::string svg = read_file(results / "growth_nano_fixed.svg");
    CHECK(contains(svg, "Fixed FLOPs"));
    run(results.figures("growth"));
    CHECK(read_file(results / "growth_nano_fixed.svg") == svg);

    std::string rows;
    for (bool unique : {false, true}) rows += stack_row("norms", "none,none,none", unique, true, true, 1, 5) + stack_row("mix", "none,none,none", unique, true, true, 1, 6, ",,,,100,,3,,");
    write_file(results / "stacking.csv", STACKING + rows);
    drawn = run(results.figures("stacking"));
    REQUIRE_MESSAGE(drawn.code == 0, drawn.err);
    for (std::string name : {"stacks", "mix"}) CHECK(fs::exists(results / ("stacking_nano_" + name + ".svg")));
    write_file(results / "stacking.csv", "no\n");
    refused(results.figures("stacking"), "there is no column");
}

TEST_SUITE_END();
