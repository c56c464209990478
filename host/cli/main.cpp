// The command `ncollapse`. Exit codes: 0 ok, 1 internal, 2 usage, 3 bad input, 4 device or memory, 130 interrupted.
#include <sys/auxv.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "host/cli/commands.hpp"
#include "host/cli/interrupt.hpp"
#include "host/cli/output.hpp"
#include "host/cli/ranks.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/version.hpp"

namespace {

// Asked for before parsing has a result: errors of the parser itself are JSON too.
bool json_wanted(int argc, char** argv) {
  for (int i = 1; i < argc; ++i)
    if (std::string_view(argv[i]).starts_with("--json")) return true;
  return false;
}

// "analyze " when the arguments name a command, else nothing.
std::string chosen_command(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? "" : chosen.front()->get_name() + " ";
}

// How many characters have to be changed, added or left out (Levenshtein).
std::size_t edits_between(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = std::exchange(row[j + 1], std::min({row[j] + 1, row[j + 1] + 1, changed}));
    }
  }
  return row.back();
}

// Which of the names was meant; empty where none is near.
std::string nearest_name(const std::string& name, const std::vector<std::string>& names) {
  std::string near;
  std::size_t fewest = 3;  // more edits than a slip of the finger
  for (const auto& known : names)
    if (const std::size_t edits = edits_between(name, known); edits < fewest) {
      fewest = edits;
      near = known;
    }
  return near;
}

// CLI11 lists all that it could not place; what matters is a command, else the first option, that it does not know.
ncollapse::UsageError unknown_argument(const CLI::App& app, const std::string& see) {
  const auto extras = app.remaining(true);
  if (const auto& first = extras.front(); app.get_subcommands().empty() && !first.starts_with("-")) {
    std::vector<std::string> commands;
    for (const CLI::App* command : app.get_subcommands({})) commands.push_back(command->get_name());
    const std::string near = nearest_name(first, commands);
    return ncollapse::UsageError("unknown command '" + first + "'",
                                 (near.empty() ? "" : "did you mean " + near + "? ") + see);
  }
  const auto option =
      std::find_if(extras.begin(), extras.end(), [](const std::string& extra) { return extra.starts_with("-"); });
  if (option == extras.end()) return ncollapse::UsageError("unexpected argument '" + extras.front() + "'", see);
  const std::string name = option->substr(0, option->find('='));
  auto options = app.get_options();
  for (const CLI::App* command : app.get_subcommands())
    for (const CLI::Option* known : command->get_options()) options.push_back(known);
  std::vector<std::string> names;
  for (const CLI::Option* known : options)
    for (const std::string& long_name : known->get_lnames()) names.push_back("--" + long_name);
  const std::string near = nearest_name(name, names);
  const std::string guess = near.empty()   ? ""
                            : near == name ? "it stands on the other side of the command; "
                                           : "did you mean " + near + "? ";
  return ncollapse::UsageError("unknown option '" + name + "'", guess + see);
}

/// OpenBLAS chooses its kernels when it is loaded, so for better ones the program begins anew. Goes on where it cannot.
void use_better_blas_kernels(char** argv) {
  constexpr auto kVariable = "OPENBLAS_CORETYPE";
  const std::string kernels = ncollapse::better_blas_kernels();
  if (kernels.empty() || getauxval(AT_BASE) == 0) return;  // 0: the dynamic loader was started with this as an argument
  std::error_code none;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", none);  // by its name, which others see
  if (none || setenv(kVariable, kernels.c_str(), 0) != 0) return;
  execv(self.c_str(), argv);
  unsetenv(kVariable);
}

int run(int argc, char** argv) {
  namespace cli = ncollapse::cli;
  use_better_blas_kernels(argv);
  cli::catch_lost_files(json_wanted(argc, argv));
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow further is a failed write, with its message
  CLI::App app{
      "Measures neural collapse: what becomes of a classifier's last-layer features late in training,\n"
      "for balanced and imbalanced classes.",
      "ncollapse"};
  app.set_version_flag("--version", std::string("ncollapse ") + ncollapse::version());
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer(
      "Examples:\n"
      "  ncollapse analyze --features features.npy --labels labels.npy --weights W.npy --bias b.npy\n"
      "  ncollapse accumulate --features 'part1-*.npy' --labels 'labels1-*.npy' --classes 100 --state part1.nc\n"
      "  ncollapse merge part1.nc part2.nc --state all.nc\n"
      "  ncollapse finalize all.nc --weights W.npy --bias b.npy\n"
      "  ncollapse plan --classes 50000 --dim 4096 --memory 64G\n"
      "  ncollapse predict --counts 500,300,100 --layers 3 --lambda-w 1e-5 --lambda-h 1e-5\n"
      "  ncollapse simulate --counts 20,12,12,5,3 --layers 2 --dim 8 --lambda-w 2e-3 --lambda-h 1e-3\n"
      "  ncollapse plot run.jsonl --out pictures\n"
      "  ncollapse report run.jsonl --out report.html\n"
      "  ncollapse bench\n"
      "  ncollapse metrics\n"
      "  ncollapse devices\n\n"
      "Exit codes: 0 ok, 1 internal error, 2 wrong usage, 3 bad input, 4 device or memory, 130 interrupted.");
  cli::Common common;
  cli::Ranks ranks;
  common.ranks = &ranks;
  cli::add_analyze(app, common);
  cli::add_accumulate(app, common);
  cli::add_merge(app, common);
  cli::add_finalize(app, common);
  cli::add_plan(app, common);
  cli::add_predict(app, common);
  cli::add_simulate(app, common);
  cli::add_plot(app, common);
  cli::add_report(app, common);
  cli::add_bench(app, common);
  cli::add_devices(app, common);
  cli::add_metrics(app, common);
  const bool speaks = ranks.rank() == 0;
  app.parse_complete_callback([&] {
    if (ranks.size() > 1 && chosen_command(app) != "analyze ")
      throw ncollapse::UsageError(chosen_command(app) + "was started in a job of several processes",
                                  "only analyze divides its work among them; start this without mpirun");
  });
  if (argc == 1) {
    if (speaks) std::cout << app.help();
    return static_cast<int>(ncollapse::ErrorKind::usage);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) {  // --help, --version
      if (!speaks) return 0;
      const int status = app.exit(e);
      if (std::cout.flush()) return status;
      return ranks.fail(std::make_exception_ptr(ncollapse::DataError("cannot write to standard output")), false);
    }
    const std::string see = "see: ncollapse " + chosen_command(app) + "--help";
    // What is missing may be there under a name that is not known.
    const bool unknown = dynamic_cast<const CLI::ExtrasError*>(&e) != nullptr ||
                         (dynamic_cast<const CLI::RequiredError*>(&e) != nullptr && !app.remaining(true).empty());
    return ranks.fail(
        std::make_exception_ptr(unknown ? unknown_argument(app, see) : ncollapse::UsageError(e.what(), see)),
        json_wanted(argc, argv));
  } catch (...) {
    return ranks.fail(std::current_exception(), json_wanted(argc, argv));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (...) {  // before or after the command itself
    return ncollapse::cli::report_error(std::current_exception(), json_wanted(argc, argv));
  }
}
