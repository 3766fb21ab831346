// Safetensors: files byte for byte as the format is specified, three number types, and wrong headers.
#include "llmc/safetensors.h"
#include <doctest/doctest.h>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include "llmc/device/types.h"
#include "test/small_model.h"

/// A file with this header and this much data, as the format is specified.
static std::string file_of(const std::string& header, const std::string& data) {
    uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

template <class Number>
static std::string bytes_of(const std::vector<Number>& numbers) {
    return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)};
}

static std::vector<float> floats_of(const Safetensors& file, const std::string& name) {
    const SafetensorsEntry& entry = *file.find(name);
    std::vector<float> values(static_cast<size_t>(entry.numel));
    read_floats(file, entry, values.data(), 0, entry.numel);
    return values;
}

TEST_CASE("safetensors: the bytes of a file") {
    TempDir dir;
    std::vector<float> a{1, 2, 3, 4, 5, 6};
    write_safetensors(dir / "a", {{"config", "{}"}}, {source_from_memory("z", {2, 3}, a.data()), source_from_bytes("b", "xyz")});
    std::string header = R"({"__metadata__":{"config":"{}"},"z":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                         R"("b":{"dtype":"U8","shape":[3],"data_offsets":[24,27]}})";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    CHECK(read_file(dir / "a") == file_of(header, bytes_of(a) + "xyz"));
    Safetensors file = open_safetensors(dir / "a");
    CHECK(file.metadata == std::map<std::string, std::string>{{"config", "{}"}});
    CHECK(file.tensors[0].name == "z");
    CHECK(file.find("z")->shape == std::vector<int64_t>{2, 3});
    CHECK(floats_of(file, "z") == a);
    CHECK(file.find("y") == nullptr);
    CHECK(contains(refusal([&] { write_safetensors(dir / "b", {}, {source_from_bytes("b", "x"), source_from_bytes("b", "x")}); }), "'b' twice"));
    CHECK(!std::filesystem::exists(dir / "b"));
}

TEST_CASE("safetensors: F64 is rounded, F32 and BF16 keep every bit") {
    TempDir dir;
    float inf = std::numeric_limits<float>::infinity();
    std::vector<double> f64{0.1, -0.0, 1 + 0x1p-24, 1 + 0x1.8p-23, 1e-50, -inf, std::nan("")};
    std::vector<uint32_t> f32{0x7fa12345, 0xffc00001, 0x80000000, 1, 0x7f800000};   // a signalling NaN, a quiet one, -0, the smallest, infinity
    std::vector<uint16_t> bf16s{0x3f80, 0x7fa1, 0xff80, 0x0001};
    std::string header = R"({"d":{"dtype":"F64","shape":[7],"data_offsets":[0,56]},"f":{"dtype":"F32","shape":[5],"data_offsets":[56,76]},)"
                         R"("b":{"dtype":"BF16","shape":[2,2],"data_offsets":[76,84]},"s":{"dtype":"F64","shape":[],"data_offsets":[84,92]},)"
                         R"("e":{"dtype":"F32","shape":[0,3],"data_offsets":[92,92]}})";
    write_file(dir / "a", file_of(header, bytes_of(f64) + bytes_of(f32) + bytes_of(bf16s) + bytes_of(std::vector<double>{7})));
    Safetensors file = open_safetensors(dir / "a");
    std::vector<float> d = floats_of(file, "d"), f = floats_of(file, "f"), b = floats_of(file, "b");
    CHECK(d[0] == 0.1f);
    CHECK((d[1] == 0 && std::signbit(d[1])));
    CHECK(d[2] == 1);                 // ties to even
    CHECK(d[3] == 1 + 0x1p-22f);
    CHECK(d[4] == 0);
    CHECK(d[5] == -inf);
    CHECK(std::isnan(d[6]));
    CHECK(std::memcmp(f.data(), f32.data(), 20) == 0);
    for (size_t i = 0; i < 4; i++) CHECK(std::bit_cast<uint32_t>(b[i]) == uint32_t{bf16s[i]} << 16);
    CHECK(floats_of(file, "s") == std::vector<float>{7});
    CHECK(floats_of(file, "e").empty());
    float one;
    read_floats(file, *file.find("b"), &one, 2, 1);
    CHECK(one == -inf);
    CHECK(contains(refusal([&] { read_floats(file, *file.find("b"), &one, 4, 1); }), "has 4 numbers"));
}

TEST_CASE("safetensors: a number that fp32 cannot hold, and types that hold no weights, are refused") {
    TempDir dir;
    std::string header = R"({"big":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},"idx":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}})";
    write_file(dir / "a", file_of(header, bytes_of(std::vector<double>{1, 1e39}) + std::string(8, '\0')));
    Safetensors file = open_safetensors(dir / "a");
    CHECK(contains(refusal([&] { floats_of(file, "big"); }), "tensor 'big': holds 1e+39, which fp32 cannot"));
    CHECK(contains(refusal([&] { floats_of(file, "idx"); }), "tensor 'idx': dtype is I64, but must be F64, F32 or BF16"));
}

TEST_CASE("safetensors: a file with a wrong header is refused") {
    TempDir dir;
    auto refused = [&](const std::string& bytes) {
        write_file(dir / "a", bytes);
        return refusal([&] { open_safetensors(dir / "a"); });
    };
    auto entry = [](const char* dtype, const char* shape, const char* offsets) {
        return std::string("{\"t\":{\"dtype\":\"") + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
    };
    const std::string data(16, 'x');
    CHECK(refused(file_of(entry("F32", "[4]", "[0,16]"), data)) == "");
    CHECK(refused(file_of("{}", "")) == "");
    CHECK(contains(refused(""), "has 0 bytes"));
    CHECK(contains(refused(std::string(100, '\xff')), "is not a safetensors file"));
    CHECK(contains(refused(file_of("{}", "").substr(0, 9)), "too few"));
    CHECK(contains(refused(file_of("[]", "")), "byte 8 is not '{'"));
    CHECK(contains(refused(file_of("{\"a\":", "")), "is not JSON"));
    CHECK(contains(refused(file_of(entry("F32", "[4]", "[0,16]"), data + "x")), "but its tensors end at"));
    CHECK(contains(refused(file_of(entry("F32", "[4]", "[0,16]"), data.substr(1))), "data_offsets: is 16"));
    CHECK(contains(refused(file_of(entry("F32", "[3]", "[4,16]"), data)), "but the one before ends at"));
    CHECK(contains(refused(file_of(entry("F32", "[5]", "[0,16]"), data)), "has 16 bytes, but its shape and dtype need 20"));
    CHECK(contains(refused(file_of(entry("F32", "[-4]", "[0,16]"), data)), "shape: is -4"));
    CHECK(contains(refused(file_of(entry("F32", "[4.0]", "[0,16]"), data)), "shape: is 4.0"));
    CHECK(contains(refused(file_of(entry("F32", "[4611686018427387904,4]", "[0,16]"), data)), "shape"));
    CHECK(contains(refused(file_of(entry("F32", "[1073741824,1073741824,1073741824]", "[0,16]"), data)), "too big for any file"));
    CHECK(refused(file_of(entry("F32", "[0,1152921504606846976,1152921504606846976]", "[0,0]"), "")) == "");   // a tensor without elements
    CHECK(contains(refused(file_of(entry("F32", "4", "[0,16]"), data)), "shape: is 4, but must be an array"));
    CHECK(contains(refused(file_of(entry("F32", "[4]", "[16,0]"), data)), "data_offsets: is 0"));
    CHECK(contains(refused(file_of(entry("F32", "[4]", "[-1,15]"), data)), "data_offsets: is -1"));
    CHECK(contains(refused(file_of(entry("F32", "[4]", "[0]"), data)), "must be two numbers"));
    CHECK(contains(refused(file_of(entry("F32", "[4]", "[0,18446744073709551615]"), data)), "data_offsets: is 18446744073709551615"));
    CHECK(contains(refused(file_of(entry("Q4", "[4]", "[0,16]"), data)), "dtype is 'Q4'"));
    CHECK(contains(refused(file_of(R"({"t":{"shape":[4],"data_offsets":[0,16]}})", data)), "'dtype' is missing"));
    CHECK(contains(refused(file_of(R"({"t":5})", data)), "but must be an object"));
    CHECK(contains(refused(file_of(R"({"__metadata__":{"a":5}})", "")), "__metadata__: a: is 5, but must be a string"));
    CHECK(contains(refused(file_of(R"({"__metadata__":[]})", "")), "but must be an object"));
    std::string two = R"({"dtype":"U8","shape":[8],"data_offsets":[0,8]})", overlap = R"({"dtype":"U8","shape":[12],"data_offsets":[4,16]})";
    CHECK(contains(refused(file_of("{\"t\":" + two + ",\"u\":" + overlap + "}", data)), "but the one before ends at"));
    CHECK(contains(refused(file_of("{\"t\":" + two + ",\"t\":" + two + "}", data)), "has 't' twice"));
    CHECK(contains(refused(file_of("{\"t\":" + std::string(5000, '[') + std::string(5000, ']') + "}", "")), "levels deep"));
}

TEST_CASE("safetensors: random damage never crashes") {
    TempDir dir;
    GPTConfig config = recipe_config(SPEEDRUN, 1, 1, 8, 8, 4);
    Values weights = small_weights(config, 1);
    write_safetensors(dir / "a", {{"config", to_json(config).dump()}}, small_sources(config, weights));
    const std::string good = read_file(dir / "a");
    uint64_t header;
    std::memcpy(&header, good.data(), 8);
    std::mt19937 random(1);
    int accepted = 0;
    for (int i = 0; i < 1000; i++) {
        std::string changed = good;
        for (int n = 0; n < 2; n++) changed[random() % (8 + header)] = "0123456789-{}[]\",:.e"[random() % 20];
        if (random() % 4 == 0) changed.resize(random() % changed.size());
        write_file(dir / "b", changed);
        accepted += refusal([&] {
                        Safetensors file = open_safetensors(dir / "b");
                        for (const SafetensorsEntry& entry : file.tensors) floats_of(file, entry.name);
                    }).empty();
    }
    CHECK(accepted < 500);
}
