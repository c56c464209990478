// The pieces of a report as JSON, with the keys that every output shares. JSON has no NaN: an undefined number is null
// and has its reason under "status".
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "ncollapse/metrics.hpp"

namespace ncollapse {

using Json = nlohmann::ordered_json;

inline Json json_number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

inline Json json_numbers(const std::vector<double>& values) {
  Json list = Json::array();
  for (const double value : values) list.push_back(json_number(value));
  return list;
}

inline Json device_json(const DeviceInfo& device) {
  return {{"type", device.device.type == DeviceType::cpu ? "cpu" : "cuda"},
          {"index", device.device.index},
          {"name", device.name},
          {"capability", device.capability},
          {"threads", device.threads},
          {"memory_bytes", device.memory_bytes}};
}

/// Scalars by key, in catalogue order; null where the formula has no value.
inline Json metrics_json(const Report& report) {
  Json metrics = Json::object();
  for (const auto& info : metric_catalogue()) {
    const std::string key(info.key);
    const auto status = report.status.find(key);
    if (const auto value = report.find(key))
      metrics[key] = json_number(*value);
    else if (info.scope == "scalar" && status != report.status.end() && status->second.code == "undefined")
      metrics[key] = nullptr;
  }
  return metrics;
}

inline Json status_json(const Report& report) {
  Json all = Json::object();
  for (const auto& info : metric_catalogue())
    if (const auto status = report.status.find(std::string(info.key)); status != report.status.end())
      all[status->first] = {{"code", status->second.code}, {"why", status->second.why}};
  return all;
}

inline Json spectrum_json(const Report& report) {
  Json rows = Json::array();
  for (const auto& row : report.spectrum)
    rows.push_back({{"sigma", row.sigma},
                    {"multiplicity", row.multiplicity},
                    {"w_predicted", row.w_predicted},
                    {"w_measured", row.w_measured},
                    {"z_predicted", row.z_predicted},
                    {"z_measured", row.z_measured},
                    {"cosine", row.cosine}});
  return rows;
}

/// The rows of a matrix [groups x groups], none of an empty one.
inline Json square_json(const std::vector<double>& matrix, std::size_t groups) {
  Json rows = Json::array();
  for (auto row = matrix.begin(); row != matrix.end(); row += static_cast<std::ptrdiff_t>(groups))
    rows.push_back(json_numbers({row, row + static_cast<std::ptrdiff_t>(groups)}));
  return rows;
}

inline Json block_json(const BlockCosines& blocks) {
  Json json{{"sizes", blocks.sizes}, {"cosines", square_json(blocks.cosines, blocks.sizes.size())}};
  if (!blocks.predicted.empty()) json["predicted"] = square_json(blocks.predicted, blocks.sizes.size());
  return json;
}

/// "block_cos_h" and "block_cos_w", where they are known.
inline void add_blocks(Json& json, const Report& report) {
  for (const auto& [key, blocks] :
       {std::pair{"block_cos_h", &report.block_cos_h}, {"block_cos_w", &report.block_cos_w}})
    if (!blocks->sizes.empty()) json[key] = block_json(*blocks);
}

}  // namespace ncollapse
