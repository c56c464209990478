// `devices` and `metrics`: what there is to choose from.
#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "host/cli/commands.hpp"
#include "host/cli/output.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/metrics.hpp"

namespace ncollapse::cli {

namespace {

using Json = nlohmann::ordered_json;

double gibibytes(Index bytes) { return static_cast<double>(bytes) / (Index{1} << 30); }

std::string list_devices(bool as_json) {
  const auto all = devices();
  const std::string reason = cuda_unavailable_reason();
  const std::vector<std::string> unusable = unusable_cuda_devices();
  if (as_json) {
    Json list = Json::array();
    for (const auto& info : all)
      list.push_back({{"device", to_string(info.device)},
                      {"name", info.name},
                      {"memory_bytes", info.memory_bytes},
                      {"capability", info.capability},
                      {"threads", info.threads}});
    Json json{{"devices", list}, {"default", to_string(Device::best())}};
    if (!reason.empty()) json["cuda_unavailable"] = reason;
    if (!unusable.empty()) json["cuda_unusable"] = unusable;
    return json.dump(2) + "\n";
  }
  std::string text;
  for (const auto& info : all)
    text += fmt::format("{:<8} {}, {:.0f} GiB, {}{}\n", to_string(info.device), info.name, gibibytes(info.memory_bytes),
                        info.capability,
                        info.device.type == DeviceType::cpu ? fmt::format(", {} threads", info.threads) : "");
  if (!reason.empty()) {
    text += fmt::format("cuda     not available: {}\n", reason);
  } else {
    for (const auto& why : unusable) text += fmt::format("         not used: {}\n", why);
  }
  return text + fmt::format("--device auto takes {}\n", to_string(Device::best()));
}

// Under imbalance the published definitions differ widely; this is what --convention chooses from.
std::string conventions() {
  return "convention  Sigma_W        centre mu             weights of Sigma_B   nc1_pinv divided by K\n"
         "zhu         over samples   sample mean           1/K                  yes  (default)\n"
         "papyan      over samples   mean of class means   1/K                  no\n"
         "peer        over samples   mean of class means   1/K                  yes\n"
         "anova       over samples   sample mean           n_k/N                yes  (Sigma_T = Sigma_W + Sigma_B)\n"
         "classavg    mean of S_k    sample mean           1/K                  yes\n\n";
}

// The metrics whose keys begin with one of these; all where there are none.
std::vector<MetricInfo> chosen_metrics(const std::vector<std::string>& prefixes) {
  std::vector<bool> found(prefixes.size());
  std::vector<MetricInfo> chosen;
  for (const auto& info : metric_catalogue()) {
    bool matches = prefixes.empty();
    for (std::size_t i = 0; i < prefixes.size(); ++i)
      if (info.key.starts_with(prefixes[i])) matches = found[i] = true;
    if (matches) chosen.push_back(info);
  }
  for (std::size_t i = 0; i < prefixes.size(); ++i)
    if (!found[i]) throw UsageError("no metric begins with '" + prefixes[i] + "'", "ncollapse metrics lists all");
  return chosen;
}

std::string list_metrics(bool as_json, const std::vector<std::string>& prefixes) {
  const std::vector<MetricInfo> chosen = chosen_metrics(prefixes);
  if (as_json) {
    Json list = Json::array();
    for (const auto& info : chosen)
      list.push_back({{"key", info.key},
                      {"meaning", info.meaning},
                      {"formula", info.formula},
                      {"needs", info.needs},
                      {"source", info.source},
                      {"direction", info.direction},
                      {"scope", info.scope}});
    return Json{{"metrics", list}}.dump(2) + "\n";
  }
  std::string text = prefixes.empty() ? conventions() : "";
  text +=
      "m_k class means, mu centre, c_k = m_k - mu, C and M their matrices, W classifier, b bias, v_k = tr S_k,\n"
      "^ unit norm, E = (I - 11^T/K)/sqrt(K-1), |.| Frobenius, |.|_* nuclear norm; std and var divide by the\n"
      "number of terms where nothing else is written. K counts the classes that have samples.\n"
      "S_k covariance of class k, mu_s sample mean, D = diag(sqrt n_k), U S V^T = (I - n 1^T/N) D; w, z singular\n"
      "values of the minimiser's W and M D, x* > 0 where a direction survives (ncollapse predict). In ufmb_* M is\n"
      "centred by mu_s. down: lower is more collapsed.\n\n";
  for (const auto& info : chosen) {
    text += fmt::format("{:<24} {:<5} {}\n", info.key, info.direction == "none" ? "" : info.direction, info.formula);
    text += fmt::format("{:<30} needs {}{}{}\n", "", info.needs, info.source.empty() ? "" : "; ", info.source);
  }
  return text;
}

// A subcommand that only prints, with --json as a flag or with a file.
template <class List>
CLI::App* add_listing(CLI::App& app, Common& common, const std::string& name, const char* what, const List& list) {
  CLI::App* command = app.add_subcommand(name, what);
  command->footer("Examples:\n  ncollapse " + name + "\n  ncollapse " + name + " --json " + name + ".json\n");
  command->add_option("--json", common.json, "Print JSON, to standard output or to FILE")
      ->expected(0, 1)
      ->default_str("-")
      ->type_name("[FILE]");
  command->callback([command, &common, list] {
    const bool as_json = command->count("--json") > 0;
    if (as_json && common.json.empty()) common.json = "-";
    check_output(common.json);
    write_output(as_json ? common.json : "-", list(as_json));
  });
  return command;
}

}  // namespace

void add_devices(CLI::App& app, Common& common) {
  add_listing(app, common, "devices", "List the devices that can be used", list_devices);
}

void add_metrics(CLI::App& app, Common& common) {
  const auto prefixes = std::make_shared<std::vector<std::string>>();
  add_listing(app, common, "metrics", "List every metric: formula, inputs, source, direction",
              [prefixes, &common](bool as_json) {
                const auto is_key = [&](const MetricInfo& info) { return info.key.starts_with(common.json); };
                if (as_json && prefixes->empty() && common.json != "-" &&
                    std::any_of(metric_catalogue().begin(), metric_catalogue().end(), is_key))
                  throw UsageError("--json " + common.json + " would write a file of that name",
                                   "put keys before --json; write ./" + common.json + " for such a file");
                return list_metrics(as_json, *prefixes);
              })
      ->add_option("keys", *prefixes, "Only these, or those that begin so: nc1_pinv, nc2_")
      ->type_name("KEY...");
}

}  // namespace ncollapse::cli
