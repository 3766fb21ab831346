// What a checkpoint is and where it came from.
#include "llmc/describe.h"
#include <algorithm>
#include <cstdio>
#include "llmc/io/error.h"
#include "llmc/io/json.h"
#include "llmc/lineage.h"
#include "llmc/tensors.h"

using nlohmann::json;

static std::string short_hash(const json& hash) { return hash.get<std::string>().substr(0, 12); }

/// The nearest lineage of grow or stack along first parents; null where there is none. A model that was mixed in is not a first parent.
static const json* made_by(const json& lineage) {
    const std::string operation = lineage["operation"];
    if (operation == "grow" || operation == "stack") return &lineage;
    const bool follows = lineage.contains("parents") && !lineage["parents"].empty() && !lineage["parents"][0].contains("mixed");
    return follows ? made_by(lineage["parents"][0]) : nullptr;
}

static json layers_of(const GPTConfig& config, const json* maker) {
    const bool known = maker && maker->contains("layers") && (*maker)["layers"].size() == static_cast<size_t>(config.n_layer);
    json layers = json::array();
    for (int l = 0; l < config.n_layer; l++) {
        json layer{{"made", !maker ? "as trained" : "unknown"}};
        if (known) {
            const json& from = (*maker)["layers"][l];
            layer["made"] = from.is_null() ? "new" : "copied";
            if (!from.is_null()) {
                layer["parent"] = short_hash((*maker)["parents"][from[0].get<size_t>()]["hash"]);
                layer["layer"] = from[1];
                if (from.size() == 3) layer["rules"] = from[2];
            }
        }
        layer["window"] = config.windows[l];
        layer["attn_scale"] = config.attn_scale[l];
        layer["value_embed"] = static_cast<bool>(config.value_embeds[l]);
        layer["norm_before"] = name_of(config.norm_before[l]);
        layers.push_back(std::move(layer));
    }
    return layers;
}

/// entry: a lineage together with hash and progress (lineage_entry()).
static json family_of(const json& entry) {
    json node{{"hash", short_hash(entry["hash"])}, {"met_before", !entry.contains("parents")}, {"parents", json::array()}};
    for (const char* key : {"operation", "detail", "step", "tokens", "flops"}) node[key] = entry[key];
    for (const char* key : {"mixed", "schedule", "optimizer"})
        if (entry.contains(key)) node[key] = entry[key];
    if (entry.contains("parents"))
        for (const json& parent : entry["parents"]) node["parents"].push_back(family_of(parent));
    return node;
}

json describe(const Checkpoint& checkpoint) {
    const GPTConfig& c = checkpoint.config;
    const json& header = checkpoint.header;
    json config = to_json(c), run = header["progress"];
    for (const char* of_layers : {"attn_scale", "windows", "value_embeds", "norm_before"}) config.erase(of_layers);
    run["can_resume"] = checkpoint.can_resume();
    run["optimizer_state"] = std::any_of(checkpoint.tensors.begin(), checkpoint.tensors.end(),
                                         [](const TensorEntry& tensor) { return tensor.name.find('/') != std::string::npos; });
    const json* maker = made_by(header["lineage"]);
    const Spent total = total_spent(header);
    return {{"file", checkpoint.path},
            {"config", config},
            {"parameters",
             {{"total", total_params(c)},
              {"matmul", matmul_params(c)},
              {"free", free_params(c)},
              {"flops_per_token", flops_per_token(c)}}},
            {"run", run},
            {"made_by", maker ? json{{"operation", (*maker)["operation"]}, {"detail", (*maker)["detail"]}} : json()},
            {"layers", layers_of(c, maker)},
            {"family", family_of(lineage_entry(header, checkpoint.content_hash()))},
            {"total", {{"tokens", total.tokens}, {"flops", total.flops}}}};
}

// -------------------------------------------------------------------------------------------------------------- as text

static std::string plain(const json& value) { return value.is_string() ? readable(value.get<std::string>()) : dump_json(value); }

static std::string text_of_flops(const json& flops) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4e", flops.get<double>());
    return text;
}

static std::string range(int64_t first, int64_t last) { return first == last ? concat(first) : concat(first, "-", last); }

static std::string text_of_layers(const json& layers) {
    auto goes_on = [&](size_t l) {   // equal to the layer below it, but from the next layer of the same parent
        json next = layers[l - 1];
        if (next.contains("layer")) next["layer"] = next["layer"].get<int64_t>() + 1;
        return layers[l] == next;
    };
    std::string text;
    for (size_t first = 0, end; first < layers.size(); first = end) {
        for (end = first + 1; end < layers.size() && goes_on(end);) end++;
        const json& layer = layers[first];
        text += concat("layer ", range(first, end - 1), ": ", plain(layer["made"]));
        if (layer.contains("layer")) {
            const int64_t from = layer["layer"];
            text += concat(" from ", range(from, from + static_cast<int64_t>(end - first) - 1), " of ", plain(layer["parent"]));
        }
        if (layer.contains("rules"))
            for (auto& [tensor, rule] : layer["rules"].items()) text += concat(", ", readable(tensor), " ", plain(rule));
        text += concat("   window ", layer["window"], ", scale ", layer["attn_scale"], ", value embedding ",
                       layer["value_embed"] ? "yes" : "no", ", norm before ", plain(layer["norm_before"]), "\n");
    }
    return text;
}

static std::string text_of_family(const json& node, const std::string& indent) {
    std::string text = concat(indent, plain(node["hash"]), " ", plain(node["operation"]));
    if (!node["detail"].get_ref<const std::string&>().empty()) text += concat(" ", plain(node["detail"]));
    text += concat(", step ", node["step"], ", ", node["tokens"], " tokens, ", text_of_flops(node["flops"]), " FLOPs");
    if (node.contains("schedule")) text += concat(", schedule ", plain(node["schedule"]));
    if (node.contains("optimizer")) text += concat(", optimizer ", plain(node["optimizer"]));
    if (node.contains("mixed")) text += concat(", mixed in by ", node["mixed"]["weight"], " at step ", node["mixed"]["step"]);
    text += node["met_before"] ? " (its parents: above)\n" : "\n";
    for (const json& parent : node["parents"]) text += text_of_family(parent, indent + "  ");
    return text;
}

std::string text_of_description(const json& d) {
    std::string text = concat("file: ", plain(d["file"]), "\n");
    for (auto& [key, value] : d["config"].items()) text += concat(key, ": ", plain(value), "\n");
    const json &parameters = d["parameters"], &run = d["run"];
    text += concat("matmul_params: ", parameters["matmul"], "\ntotal_params: ", parameters["total"],
                   "\nfree_params: ", parameters["free"], "\nflops_per_token: ", parameters["flops_per_token"], "\n");
    text +=
        concat("step: ", run["step"], "\ntokens: ", run["tokens"], "\nflops: ", text_of_flops(run["flops"]),
               "\nresume: ", run["can_resume"] ? "yes" : "no", "\noptimizer_state: ", run["optimizer_state"] ? "yes" : "no", "\n");
    if (const json& by = d["made_by"]; !by.is_null())
        text += concat("layers by: ", plain(by["operation"]), " ", plain(by["detail"]), "\n");
    return text + concat(text_of_layers(d["layers"]), "family:\n", text_of_family(d["family"], "  "),
                         "total_tokens: ", d["total"]["tokens"], "\ntotal_flops: ", text_of_flops(d["total"]["flops"]), "\n");
}
