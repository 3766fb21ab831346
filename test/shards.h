// Lists the files of a folder, and reads tokens and documents from shards.
#pragma once
#include <doctest/doctest.h>
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>
#include "llmc/text/shard.h"
#include "llmc/text/tokenizer.h"
#include "test/program.h"

using Names = std::vector<std::string>;

/// The files of a folder, sorted.
inline Names names_in(const std::string& folder) {
    Names names;
    for (const std::filesystem::directory_entry& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
}

inline std::vector<uint16_t> tokens_in(const std::string& path) {
    std::vector<uint16_t> tokens(static_cast<size_t>(read_shard_header(path)));
    std::memcpy(tokens.data(), read_file(path).data() + sizeof(ShardHeader), tokens.size() * sizeof tokens[0]);
    return tokens;
}

/// The texts of a shard's documents; each document begins with bos.
inline Names documents_in(const std::string& path) {
    Tokenizer tokenizer = Tokenizer::load(tokenizer_beside(path));
    std::vector<uint16_t> tokens = tokens_in(path);
    REQUIRE(tokens[0] == tokenizer.bos());
    Names documents;
    for (uint16_t token : tokens)
        if (token == tokenizer.bos()) documents.emplace_back();
        else documents.back() += tokenizer.decode({&token, 1});
    return documents;
}
