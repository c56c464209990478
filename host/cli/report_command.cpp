#include <fmt/core.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <system_error>

#include "host/cli/commands.hpp"
#include "host/cli/interrupt.hpp"
#include "host/cli/measuring_options.hpp"
#include "host/cli/output.hpp"
#include "host/cli/pictures.hpp"
#include "host/cli/report_page.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

struct PageOptions {
  std::vector<std::string> files;
  DumpOptions dump;
  std::string page;
  bool log_x = false;
};

/// A folder that is gone when the object is.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::error_code status;
    path_ = (std::filesystem::temp_directory_path(status) / "ncollapse-XXXXXX").string();
    if (!status && mkdtemp(path_.data()) == nullptr) status = std::error_code(errno, std::generic_category());
    if (status)
      throw DataError("cannot make a folder for temporary files: " + status.message(), "let TMPDIR name another place");
  }
  ~TemporaryFolder() {
    try {
      std::filesystem::remove_all(path_);
    } catch (...) {  // what is left there is the system's to clear
    }
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::filesystem::path path() const { return path_; }

 private:
  std::string path_;
};

std::vector<std::string> drawings_of(const std::vector<Picture>& all) {
  const TemporaryFolder folder;
  for (const Picture& picture : all) write_script(picture, folder.path());  // some read the data of others
  std::vector<std::string> drawings;
  for (const Picture& picture : all) {
    draw(picture, folder.path());
    std::ifstream file(folder.path() / picture.image, std::ios::binary);
    drawings.push_back(rest_of(file, (folder.path() / picture.image).string()));
  }
  return drawings;
}

void run(PageOptions& options, const Common& common) {
  if (options.files.empty() && !options.dump.given())
    throw UsageError("nothing to report on", "name runs and reports, or give --features and --labels of a dump");
  check_output(options.page);
  spare_inputs({FileList(options.files)}, "--out", options.page);
  spare_inputs(options.dump.inputs(), "--out", options.page);
  catch_interrupts();
  std::vector<Recording> recordings;
  for (const auto& file : expand(FileList(options.files))) recordings.push_back(read_recording(file));
  if (options.dump.given())
    recordings.push_back(
        recording_of(options.dump.measure(common).value(), options.dump.request.features.specs.front()));
  const auto all = pictures(recordings, PictureFormat::svg, options.log_x);
  std::vector<std::string> drawings;
  try {
    drawings = drawings_of(all);
  } catch (const Error&) {
    if (interrupted()) throw Interrupted("interrupted; nothing was written");  // it took gnuplot along
    throw;
  }
  if (interrupted()) throw Interrupted("interrupted; nothing was written");
  write_output(options.page, report_page(recordings, all, drawings));
  if (!common.quiet && options.page != "-")
    write_output("-", fmt::format("{}  {} picture{}\n", options.page, all.size(), all.size() == 1 ? "" : "s"));
}

}  // namespace

void add_report(CLI::App& app, Common& common) {
  auto options = std::make_shared<PageOptions>();
  CLI::App* command =
      app.add_subcommand("report", "Write one HTML page with tables and pictures, that needs nothing else");
  command
      ->add_option(
          "files", options->files,
          "Runs (JSON lines, of simulate --json or a trainer) and reports (of analyze --json); the schema tells "
          "which")
      ->type_name("FILE...");
  command->add_option("--out", options->page, "The page; - is standard output")->required()->type_name("FILE");
  command->add_flag("--log-x", options->log_x,
                    "Iterations or epochs on a logarithmic axis, for runs of unlike lengths");
  const auto own = command->get_options().size();
  options->dump.add_to(*command);
  const auto all = command->get_options();
  for (auto option = all.begin() + static_cast<std::ptrdiff_t>(own); option != all.end(); ++option)
    (*option)->group("A dump, as analyze takes it");
  command->add_flag("--quiet", common.quiet, "No progress bar, and do not name the page");
  command->footer(
      "A dump is measured as analyze does it; of several files the page has a section each, and runs are put side by\n"
      "side. gnuplot draws the pictures. The page is written when it is complete, and loads nothing from elsewhere.\n\n"
      "Examples:\n"
      "  ncollapse report run.jsonl --out report.html\n"
      "  ncollapse report L1.jsonl L3.jsonl L6.jsonl --out report.html\n"
      "  ncollapse report --features train.npy --labels y.npy --weights W.npy --bias b.npy \\\n"
      "      --lambda-w 1e-3 --lambda-h 1e-3 --out report.html\n");
  command->callback([options, command, &common] {
    for (const CLI::Option* option : command->get_options())
      if (option->count() > 0 && option->get_group().starts_with("A dump"))
        for (const auto* needed : {"--features", "--labels"})
          if (command->count(needed) == 0)
            throw UsageError(option->get_name() + " is given without " + needed,
                             "a dump has features and labels; runs and reports were measured already");
    run(*options, common);
  });
}

}  // namespace ncollapse::cli
