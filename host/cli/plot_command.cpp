#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>

#include "host/cli/commands.hpp"
#include "host/cli/output.hpp"
#include "host/cli/pictures.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

struct PlotOptions {
  std::vector<std::string> files;
  std::string folder, format = "svg";
  bool log_x = false;
};

void run(const PlotOptions& options, const Common& common) {
  const PictureFormat format = parse_picture_format(options.format);
  std::vector<Recording> recordings;
  for (const auto& file : expand(FileList(options.files))) recordings.push_back(read_recording(file));
  const auto all = pictures(recordings, format, options.log_x);
  for (std::size_t i = 0; i < recordings.size(); ++i)
    if (std::none_of(all.begin(), all.end(), [&](const Picture& picture) { return picture.recording == i; }))
      throw DataError(recordings[i].file + ": holds nothing that plot draws",
                      "analyze with --lambda-w and --lambda-h gives a spectrum; class means, of classes of at most 64 "
                      "sizes, give cosines");

  const std::filesystem::path folder(options.folder);
  std::error_code status;
  std::filesystem::create_directories(folder, status);
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored))
    throw DataError(options.folder +
                    ": cannot make this folder: " + (status ? status.message() : "a file of this name is there"));
  // All scripts and data first: where gnuplot is missing, they can be drawn later or elsewhere.
  for (const Picture& picture : all) write_script(picture, folder);
  for (const Picture& picture : all) {
    draw(picture, folder, "scripts and data are kept in " + options.folder);
    if (!common.quiet) write_output("-", fmt::format("{}  {}\n", (folder / picture.image).string(), picture.what));
  }
}

}  // namespace

void add_plot(CLI::App& app, Common& common) {
  auto options = std::make_shared<PlotOptions>();
  CLI::App* command = app.add_subcommand("plot", "Draw what simulate and analyze have written, with gnuplot");
  command
      ->add_option("files", options->files,
                   "Runs (JSON lines, of simulate --json or analyze --log) and reports (of analyze --json); the schema "
                   "tells which")
      ->required()
      ->type_name("FILE...");
  command->add_option("--out", options->folder, "Folder for the pictures, made if missing")
      ->required()
      ->type_name("DIR");
  command->add_option("--format", options->format, "svg, png, or pdf for LaTeX")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_flag("--log-x", options->log_x,
                    "Iterations or epochs on a logarithmic axis, for runs of unlike lengths");
  command->add_flag("--quiet", common.quiet, "Do not list the pictures");
  command->footer(
      "Of a run:      curves (metrics, accuracy, loss, gap over iterations or epochs), and as of a report, at its "
      "end:\n"
      "Of a report:   spectrum (with weight decays), cosines (between groups of classes of equal size)\n"
      "Of all runs:   collapse (the distances to collapse and the training accuracy, side by side), and of several\n"
      "               compare (all curves); the files of each one carry its number: curves-2.svg\n"
      "Beside each picture stay its script and its data: gnuplot curves.gp, in that folder, draws it again.\n"
      "Values that are undefined, and 0 on a logarithmic axis, are left out.\n\n"
      "Examples:\n"
      "  ncollapse simulate --counts 20,12,12,5,3 --layers 3 --dim 8 --lambda-w 2e-3 --lambda-h 1e-3 --json L3.jsonl\n"
      "  ncollapse plot L3.jsonl --out pictures\n"
      "  ncollapse plot L1.jsonl L3.jsonl L6.jsonl --out pictures     # L = 1, 3, 6 side by side\n"
      "  ncollapse plot report.json --out pictures --format pdf\n");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace ncollapse::cli
