// Statistics of a model's residual stream, and how similar the residual streams of two models are (the stacking study's latent metrics).
//
// Positions: in (after norm_wte), first (after layer 0), last (after the layer before the last one, through norm_lm_head), out
// (after the last layer, through norm_lm_head). A norm at a seam belongs to the layer above it. In a model of one layer, last is
// in through norm_lm_head; one of no layers has in and out alone.
//
// Every line of the table has mean, standard deviation (with division by the count), min and max of one set of numbers, its `quantity`:
//
//     activation  all elements, tokens x width, of one position
//     cosine      cosine similarity of each token's activations at two positions; 0 where one of them is all zeros, as in PyTorch.
//                 Within a model: every pair of its positions. Between two, on the same tokens: every position of A with every one of B.
//
// The tokens are the first of the shards, in rows of the shorter of the two context lengths: so both models see the same text before
// every token.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>
#include "llmc/checkpoint.h"
#include "llmc/device/device.h"
#include "llmc/gpt.h"
#include "llmc/io/flags.h"
#include "llmc/io/log.h"
#include "llmc/load.h"
#include "llmc/rewrite.h"
#include "llmc/text/dataloader.h"
#include "llmc/text/shard.h"
#include "llmc/text/tokenizer.h"

struct Arguments {
    Flags flags{"latents",
                "Prints statistics of the residual stream of one or two models on validation data, as CSV: mean, standard deviation,\n"
                "min and max of the activations at four positions; and of the cosine similarity, token by token, between the\n"
                "positions of a model and between those of both models. The files are verified first. Exit code 0, or 2 for any\n"
                "error."};
    const std::string& a = flags.argument("A", "a checkpoint");
    const std::optional<std::string>& b =
        flags.optional_argument("B", "another checkpoint to compare it with, of the same width and vocabulary");
    const std::vector<std::string>& val_data =
        flags.texts("--val-data", "shards to read: paths and glob patterns, as in corpus/val_*.bin");
    const int64_t& tokens = flags.at_least("--tokens", int64_t{1024}, int64_t{1}, "how many of the shards' first tokens to read (1024)");
    const std::optional<std::string>& out =
        flags.text("--out", Nothing<std::string>{}, "file for the table (stdout)");
    const bool& overwrite = flags.toggle("--overwrite", "replace the file of --out if it exists");

    bool parse(int argc, char** argv) {
        flags.require_given("--val-data");
        flags.footer("Columns: quantity,model_a,position_a,model_b,position_b,tokens,mean,std,min,max\n"
                     "  activation   all elements of a position; model_b and position_b are empty\n"
                     "  cosine       cosine similarity of each token, between two positions; 0 where one is all zeros\n"
                     "Positions:\n"
                     "  in           after norm_wte\n"
                     "  first        after layer 0\n"
                     "  last         after the layer before the last one (of one layer: in), through norm_lm_head\n"
                     "  out          after the last layer, through norm_lm_head\n"
                     "A norm at a seam belongs to the layer above it. A model without layers has only in and out. std divides by\n"
                     "the count. The tokens are read in rows of the models' sequence length (the shorter of two), or of --tokens\n"
                     "where that is less.");
        if (!flags.parse(argc, argv)) return false;
        require(out || !overwrite, "--overwrite is for the file of --out, which is not given; leave it out");
        return true;
    }
};

struct Position {
    const char* name;
    int depth;     ///< layers before it
    bool normed;   ///< through norm_lm_head
};

static std::vector<Position> positions_of(int layers) {
    if (layers == 0) return {{"in", 0, false}, {"out", 0, true}};
    return {{"in", 0, false}, {"first", 1, false}, {"last", layers - 1, true}, {"out", layers, true}};
}

/// Running mean, standard deviation, min and max (Welford 1962).
class Summary {
public:
    void add(double x) {
        count++;
        const double before = x - mean;
        mean += before / static_cast<double>(count);
        squares += before * (x - mean);
        least = std::min(least, x);
        largest = std::max(largest, x);
    }
    /// mean,std,min,max
    std::string text() const {
        char line[128];
        const double deviation = std::sqrt(squares / static_cast<double>(count));
        std::snprintf(line, sizeof line, "%.9g,%.9g,%.9g,%.9g", mean, deviation, least, largest);
        return line;
    }

private:
    int64_t count = 0;
    double mean = 0, squares = 0;   // squares: the sum of (x - mean)^2
    double least = std::numeric_limits<double>::infinity(), largest = -least;
};

/// One of the models, and its activations for the current row of tokens.
class Subject {
public:
    Subject(const Checkpoint& checkpoint, int row)
        : path(checkpoint.path), model(with_rows(checkpoint.config, row), 1, Mode::evaluate) {
        model.allocate();
        load_weights(model, checkpoint);
    }

    void read(const int* row) {
        std::vector<float> residual(static_cast<size_t>(model.T) * width()), normed(residual.size());
        for (size_t p = 0; p < positions.size(); p++) {
            model.residual_stream(residual.data(), normed.data(), row, positions[p].depth);
            activations[p] = positions[p].normed ? normed : residual;
        }
    }
    /// The activations of one token of the row. (width)
    const float* at(size_t position, int token) const { return &activations[position][static_cast<size_t>(token) * width()]; }
    int width() const { return model.config.n_embd; }

    const std::string path;

private:
    /// Attention is causal and positions count from the start of a row, so a shorter row gives the same activations.
    static GPTConfig with_rows(GPTConfig config, int row) {
        config.seq_len = row;
        return config;
    }
    GPT model;

public:
    const std::vector<Position> positions = positions_of(model.config.n_layer);

private:
    std::vector<std::vector<float>> activations{positions.size()};   // (T, width) each
};

/// A line of the table: about one position, or a pair of them.
struct Line {
    const Subject* a;
    size_t p;
    const Subject* b;   ///< null: of a alone
    size_t q;
    Summary summary{};

    void add(int token);
    std::string text(int64_t tokens) const;
};

static double cosine(const float* a, const float* b, int n) {
    double dot = 0, squares_a = 0, squares_b = 0;
    for (int i = 0; i < n; i++) {
        dot += double{a[i]} * b[i];
        squares_a += double{a[i]} * a[i];
        squares_b += double{b[i]} * b[i];
    }
    return squares_a == 0 || squares_b == 0 ? 0 : dot / (std::sqrt(squares_a) * std::sqrt(squares_b));
}

void Line::add(int token) {
    const float* x = a->at(p, token);
    if (b) return summary.add(cosine(x, b->at(q, token), a->width()));
    for (int i = 0; i < a->width(); i++) {
        require(std::isfinite(x[i]), a->path, ": its activations at '", a->positions[p].name,
                "' hold NaN or Inf, which have no statistics; give another model, or an earlier checkpoint of its run");
        summary.add(x[i]);
    }
}

/// A field of CSV (RFC 4180).
static std::string field(const std::string& text) {
    if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
    std::string quoted = "\"";
    for (char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
    return quoted + "\"";
}

std::string Line::text(int64_t tokens) const {
    return concat(b ? "cosine," : "activation,", field(a->path), ",", a->positions[p].name, ",", b ? field(b->path) : "", ",",
                  b ? b->positions[q].name : "", ",", tokens, ",", summary.text(), "\n");
}

/// The positions of each model, then the pairs within each model, then the pairs across models.
static std::vector<Line> lines_of(const std::deque<Subject>& subjects) {
    std::vector<Line> lines;
    for (const Subject& subject : subjects)
        for (size_t p = 0; p < subject.positions.size(); p++) lines.push_back({&subject, p, nullptr, 0});
    for (const Subject& subject : subjects)
        for (size_t p = 0; p < subject.positions.size(); p++)
            for (size_t q = p + 1; q < subject.positions.size(); q++) lines.push_back({&subject, p, &subject, q});
    if (subjects.size() < 2) return lines;
    for (size_t p = 0; p < subjects[0].positions.size(); p++)
        for (size_t q = 0; q < subjects[1].positions.size(); q++) lines.push_back({&subjects[0], p, &subjects[1], q});
    return lines;
}

/// Throws where two models cannot be compared.
static void require_comparable(const Checkpoint& a, const Checkpoint& b) {
    auto agree = [&](const char* what, int of_a, int of_b) {
        require(of_a == of_b, "models that are compared must agree in ", what, ", but it is ", of_a, " in ", a.path, " and ", of_b,
                " in ", b.path, "; give each one alone");
    };
    agree("width", a.config.n_embd, b.config.n_embd);
    agree("vocabulary", a.config.vocab_size, b.config.vocab_size);
    tokenizer_owner({&a, &b}, "models that are compared");
}

/// The shards, in rows of `row` tokens. Throws where one pass over them has fewer than --tokens.
static std::unique_ptr<DataLoader> open_rows(const Arguments& arguments, int row, int vocab_size) {
    LoaderOptions options;
    options.patterns = arguments.val_data;
    options.B = options.T = 1;
    options.vocab_size = vocab_size;
    int64_t longest = 0, in_rows = 0;
    for (const std::string& path : DataLoader(options).paths()) {
        const int64_t tokens = read_shard_header(path);
        longest = std::max(longest, tokens);
        in_rows += (tokens - 1) / row * row;
    }
    const int64_t most = in_rows > 0 ? in_rows : longest - 1;   // with fewer tokens than a row, --tokens makes the rows shorter
    require(arguments.tokens <= in_rows, "--tokens is ", arguments.tokens, ", but --val-data holds ", in_rows, " in whole rows of ",
            row, " (each of one shard, and a token after it); give at most ", most, ", or more text");
    options.T = row;
    return std::make_unique<DataLoader>(options);
}

static void warn_of_another_tokenizer(const DataLoader& data, const std::vector<const Checkpoint*>& models) {
    const std::string beside = tokenizer_beside(data.first_shard()).string();
    const Checkpoint* owner = tokenizer_owner(models, "models that are compared");
    if (!owner || !std::filesystem::exists(beside)) return;
    std::string bytes(static_cast<size_t>(owner->at("tokenizer").bytes), '\0');
    read_tensor(*owner, owner->at("tokenizer"), bytes.data());
    if (Tokenizer::load(beside).serialize() != bytes)
        warn("latents", "the tokenizer of the data is not the one that ", owner->path, " was trained with");
}

static std::string table_of(std::deque<Subject>& subjects, DataLoader& data, int row, int64_t tokens) {
    std::vector<Line> lines = lines_of(subjects);
    std::vector<int> inputs(row), targets(row);
    for (int64_t done = 0; done < tokens; done += row) {
        data.next(inputs.data(), targets.data());
        for (Subject& subject : subjects) subject.read(inputs.data());
        const int count = static_cast<int>(std::min<int64_t>(row, tokens - done));   // the last row may count in part
        for (Line& line : lines)
            for (int token = 0; token < count; token++) line.add(token);
    }
    std::string table = "quantity,model_a,position_a,model_b,position_b,tokens,mean,std,min,max\n";
    for (const Line& line : lines) table += line.text(tokens);
    return table;
}

static int latents(int argc, char** argv) {
    Arguments arguments;
    if (!arguments.parse(argc, argv)) return 0;
    std::deque<Checkpoint> files{open_checkpoint(arguments.a)};
    if (arguments.b) files.push_back(open_checkpoint(*arguments.b));
    std::vector<const Checkpoint*> models;
    for (const Checkpoint& file : files) models.push_back(&file);
    if (arguments.b) require_comparable(files[0], files[1]);

    int64_t row = arguments.tokens;
    for (const Checkpoint& file : files) row = std::min<int64_t>(row, file.config.seq_len);
    std::unique_ptr<DataLoader> data = open_rows(arguments, static_cast<int>(row), files[0].config.vocab_size);
    std::optional<NewFile> file;
    if (arguments.out) {
        std::vector<std::string> inputs = data->paths();
        for (const Checkpoint& model : files) inputs.push_back(model.path);
        check_output(*arguments.out, inputs, arguments.overwrite);
        file.emplace(*arguments.out, 0);   // fails before the work if the folder cannot be written
    }
    warn_of_another_tokenizer(*data, models);
    for (const Checkpoint& model : files) verify_tensors(model);   // also tensors that are not used here

    std::deque<Subject> subjects;
    for (const Checkpoint& model : files) subjects.emplace_back(model, static_cast<int>(row));
    const std::string table = table_of(subjects, *data, static_cast<int>(row), arguments.tokens);
    if (!file) {
        std::cout << table;
        return 0;
    }
    file->write(table.data(), static_cast<int64_t>(table.size()), 0);
    file->commit(static_cast<int64_t>(table.size()));
    std::cout << "wrote " << *arguments.out << ": " << std::count(table.begin(), table.end(), '\n') - 1 << " lines" << std::endl;
    return 0;
}

int main(int argc, char** argv) {
    device_begin(argv);
    return run_to_its_file("latents", [&] { return latents(argc, argv); });
}
