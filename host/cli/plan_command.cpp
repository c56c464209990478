#include <fmt/core.h>

#include <cctype>
#include <cmath>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "host/cli/commands.hpp"
#include "host/cli/output.hpp"
#include "host/numbers.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/plan.hpp"

namespace ncollapse::cli {

namespace {

using Json = nlohmann::ordered_json;

struct PlanOptions {
  PlanRequest request;
  std::string statistics = "full", dtype = "f32", device = "auto", memory;
};

Dtype parse_dtype(const std::string& name) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    if (name == to_string(dtype)) return dtype;
  throw UsageError("unknown element type '" + name + "'", "element types are f16, bf16, f32 and f64");
}

/// "64G", "1.5 GiB", "512mb", "1000000": powers of 1024, or bytes.
Index parse_size(const std::string& text) {
  const std::string wrong = fmt::format("--memory: '{}' is not a size", text),
                    right = "write bytes, or as 512M, 1.5G, 2T (powers of 1024)";
  constexpr std::string_view kUnits = "bkmgtp", kDigits = "0123456789.";
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const auto end = std::min(lower.find_first_not_of(kDigits), lower.size());
  auto bytes = parse_number<double>(std::string_view(lower).substr(0, end), wrong, right);
  std::string unit = lower.substr(std::min(lower.find_first_not_of(' ', end), lower.size()));
  const auto power = unit.empty() ? 0 : kUnits.find(unit.front());
  if (power == kUnits.npos) throw UsageError(wrong, right);
  if (!unit.empty()) unit.erase(0, 1);
  if (!unit.empty() && (power == 0 || (unit != "b" && unit != "ib"))) throw UsageError(wrong, right);
  bytes = std::ldexp(bytes, 10 * static_cast<int>(power));
  if (!(bytes >= 1 && bytes < 0x1p63)) throw UsageError(wrong, right);
  return static_cast<Index>(bytes);
}

Json to_json(const MemoryPlan& plan) {
  Json json{{"statistics", to_string(plan.statistics)},
            {"batch_rows", plan.batch_rows},
            {"state_bytes", plan.state_bytes},
            {"batch_bytes", plan.batch_bytes},
            {"add_bytes", plan.add_bytes},
            {"finish_bytes", plan.finish_bytes},
            {"measure_bytes", plan.measure_bytes},
            {"state_file_bytes", plan.state_file_bytes},
            {"exchange_bytes", plan.exchange_bytes}};
  for (const auto& phase : plan.phases)
    json["phases"][phase.name] = {{"host_bytes", phase.host_bytes}, {"device_bytes", phase.device_bytes}};
  json["host_peak_bytes"] = plan.host_peak_bytes;
  json["device_peak_bytes"] = plan.device_peak_bytes;
  json["fits"] = plan.fits;
  return json;
}

std::string to_table(const PlanRequest& request, const std::vector<MemoryPlan>& all) {
  const bool cuda = request.device == DeviceType::cuda;
  std::string text = fmt::format("memory for K = {} classes, d = {}, {} features, on {}\n", request.classes,
                                 request.dim, to_string(request.dtype), cuda ? "CUDA" : "the CPU");
  if (request.samples > 0)
    text += fmt::format("N = {} samples, {} to read a pass\n", request.samples, size_text(all.front().data_bytes));
  const auto row = [&](const std::string& name, const std::function<std::string(const MemoryPlan&)>& value) {
    text += fmt::format("  {:<34}", name);
    for (const auto& plan : all) text += fmt::format(" {:>12}", value(plan));
    text += "\n";
  };
  const auto bytes = [&](const std::string& name, Index MemoryPlan::*member) {
    row(name, [&](const MemoryPlan& plan) { return size_text(plan.*member); });
  };
  text += "\n";
  row("statistics", [&](const MemoryPlan& plan) {
    return std::string(plan.statistics == request.statistics ? "* " : "") + std::string(to_string(plan.statistics));
  });
  row("rows of a batch", [](const MemoryPlan& plan) { return std::to_string(plan.batch_rows); });
  bytes("state", &MemoryPlan::state_bytes);
  bytes("batch, on the host", &MemoryPlan::batch_bytes);
  bytes("workspace of add", &MemoryPlan::add_bytes);
  bytes("workspace of finish", &MemoryPlan::finish_bytes);
  bytes("workspace of measure", &MemoryPlan::measure_bytes);
  bytes("state file", &MemoryPlan::state_file_bytes);
  bytes("exchange of a merge", &MemoryPlan::exchange_bytes);
  text += "\n";
  for (std::size_t i = 0; i < all.front().phases.size(); ++i) {
    const std::string& name = all.front().phases[i].name;
    row("most during " + name + (cuda ? ", host" : ""),
        [&](const MemoryPlan& plan) { return size_text(plan.phases[i].host_bytes); });
    if (cuda)
      row("most during " + name + ", device",
          [&](const MemoryPlan& plan) { return size_text(plan.phases[i].device_bytes); });
  }
  if (request.memory_bytes > 0)
    row("fits " + size_text(request.memory_bytes), [](const MemoryPlan& plan) { return plan.fits ? "yes" : "no"; });
  text += "\nThe program and its libraries come on top. measure: one linear layer, no decisions, no weight decays.\n";
  return text;
}

void run(PlanOptions& options, const Common& common) {
  check_output(common.json);
  auto& request = options.request;
  request.statistics = parse_statistics(options.statistics);
  request.dtype = parse_dtype(options.dtype);
  request.device = Device::parse(options.device).type;
  if (!options.memory.empty()) request.memory_bytes = parse_size(options.memory);
  const MemoryPlan chosen = plan(request);
  const auto all = plan_all_statistics(request);
  if (!common.json.empty()) {
    Json json{{"schema", "ncollapse.plan/1"},
              {"request",
               {{"classes", request.classes},
                {"dim", request.dim},
                {"dtype", to_string(request.dtype)},
                {"samples", request.samples},
                {"device", request.device == DeviceType::cuda ? "cuda" : "cpu"},
                {"memory_bytes", request.memory_bytes}}},
              {"data_bytes", chosen.data_bytes},
              {"plan", to_json(chosen)}};
    for (const auto& other : all) json["all"].push_back(to_json(other));
    write_output(common.json, json.dump(2) + "\n");
  }
  if (common.json == "-") return;
  std::string table = to_table(request, all);
  if (!common.json.empty()) table += fmt::format("\nJSON written to {}\n", common.json);
  write_output("-", table);
}

}  // namespace

void add_plan(CLI::App& app, Common& common) {
  auto options = std::make_shared<PlanOptions>();
  auto& request = options->request;
  CLI::App* command = app.add_subcommand("plan", "What a measurement will need of memory, before it is begun");
  command->add_option("--classes", request.classes, "K")->required()->transform(kAtLeastOne)->type_name("K");
  command->add_option("--dim", request.dim, "d")->required()->transform(kAtLeastOne)->type_name("D");
  command->add_option("--statistics", options->statistics, "means, traces or full")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--dtype", options->dtype, "Features: f16, bf16, f32 or f64")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--samples", request.samples, "N, for the bytes to read")->transform(kAtLeastOne)->type_name("N");
  command->add_option("--device", options->device, "auto, cpu or cuda; it need not be there")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--threads", request.threads, "CPU threads; default: all cores")
      ->transform(kAtLeastOne)
      ->type_name("T");
  command->add_option("--batch-rows", request.batch_rows, "Rows read at a time; default: about 64 MiB, or what fits")
      ->transform(kAtLeastOne)
      ->type_name("R");
  command
      ->add_option("--memory", options->memory,
                   "Bytes that may be used (512M, 1.5G: powers of 1024); fails when that is too little")
      ->type_name("SIZE");
  command->add_option("--json", common.json, "Write the plan as JSON; - is standard output")->type_name("FILE");
  command->footer(
      "Examples:\n"
      "  ncollapse plan --classes 1000 --dim 2048 --samples 1281167\n"
      "  ncollapse plan --classes 50000 --dim 4096 --dtype bf16 --device cuda --memory 80G --json -\n");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace ncollapse::cli
