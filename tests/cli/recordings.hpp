// What the tests of `plot` and `report` share: small recordings, and which programs there are.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace ncollapse::test {

using Json = nlohmann::json;

constexpr int kInternal = 1, kUsage = 2, kData = 3;

/// Sets PATH for the commands that are started, until the end of the scope.
class Path {
 public:
  explicit Path(const std::string& value) : before_(std::getenv("PATH")) { setenv("PATH", value.c_str(), 1); }
  ~Path() { setenv("PATH", before_.c_str(), 1); }
  Path(const Path&) = delete;
  Path& operator=(const Path&) = delete;

 private:
  std::string before_;
};

/// The file that PATH finds, empty where there is none.
inline std::string program_file(const std::string& name) {
  std::istringstream path(std::getenv("PATH"));
  for (std::string folder; std::getline(path, folder, ':');)
    if (access((folder + "/" + name).c_str(), X_OK) == 0) return folder + "/" + name;
  return "";
}

#define NEEDS_GNUPLOT() \
  if (program_file("gnuplot").empty()) GTEST_SKIP() << "gnuplot is not installed, so nobody looked at the pictures"

inline std::string words_in(const std::string& text, const std::vector<std::string>& words) {
  for (const auto& word : words)
    if (text.find(word) == std::string::npos) return "'" + word + "' is missing in:\n" + text;
  return "";
}

inline Json spectrum() {
  return Json::array({{{"sigma", 4.5},
                       {"multiplicity", 1},
                       {"w_predicted", 2.25},
                       {"w_measured", 2.1},
                       {"z_predicted", 1.75},
                       {"z_measured", 1.5},
                       {"cosine", 0.875}},
                      {{"sigma", 0.0},
                       {"multiplicity", 3},
                       {"w_predicted", 0.0},
                       {"w_measured", 1e-9},
                       {"z_predicted", 0.0},
                       {"z_measured", nullptr},
                       {"cosine", 0.0}}});
}

inline Json header(const std::string& schema, int layers = 3) {
  return {{"schema", schema}, {"model", {{"layers", layers}, {"with_bias", true}, {"width", 8}}}};
}

inline Json step(const std::string& counter, double at, const Json& metrics) {
  return {{"type", "step"}, {counter, at},        {"loss", 0.5},           {"minimum", 0.125},
          {"gap", 0.375},   {"metrics", metrics}, {"spectrum", spectrum()}};
}

inline std::string lines(const std::vector<Json>& all) {
  std::string text;
  for (const Json& line : all) text += line.dump() + "\n";
  return text;
}

/// Three steps with all that can become of a value.
inline std::string a_run(const std::string& schema, const std::string& counter, int layers = 3) {
  return lines(
      {header(schema, layers),
       step(counter, 1, {{"nc1_pinv", 0.1}, {"nc2_etf_h", 0.25}, {"acc_top1_train", 0.5}, {"nc3_dual", 0.0}}),
       step(counter, 2, {{"nc1_pinv", nullptr}, {"acc_top1_train", 0.75}, {"nc3_dual", 0.0}}),
       step(counter, 3, {{"nc1_pinv", 1.25e-7}, {"nc2_etf_h", 0.0}, {"acc_top1_train", 1.0}, {"nc3_dual", 0.0}}),
       {{"type", "end"}, {"reason", "converged"}}});
}

inline Json a_report() {
  return {{"schema", "ncollapse.metrics/1"},
          {"shape", {{"N", 26}, {"K", 4}, {"D", 7}}},
          {"metrics", {{"nc1_pinv", 0.5}}},
          {"spectrum", spectrum()},
          {"block_cos_h", {{"sizes", {12, 2}}, {"cosines", {{-0.25, 0.125}, {0.125, nullptr}}}}},
          {"block_cos_w", {{"sizes", {12, 2}}, {"cosines", Json::array()}}}};
}

}  // namespace ncollapse::test
