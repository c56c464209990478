// What the command writes: files (whole or not at all), standard output, errors.
#pragma once

#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ncollapse/file_list.hpp"
#include "ncollapse/metrics.hpp"

namespace ncollapse::cli {

/// Thrown when the user pressed Ctrl-C; what() says what that left behind.
struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Writes `text` to `path`, replacing an old file only once the new one is complete; "-" is standard output.
/// Throws DataError when it cannot be written.
void write_output(const std::string& path, const std::string& text);

/// Writes line by line what a long run has to say: each line is whole in the file before the next one is made, so a run
/// that is killed leaves complete lines. "-" is standard output; an old file is replaced at the start.
class LineWriter {
 public:
  /// Throws DataError when the file cannot be opened.
  explicit LineWriter(const std::string& path);
  /// `line` without its end. Throws DataError when it cannot be written.
  void write(const std::string& line);

 private:
  std::string path_;
  std::ofstream file_;
};

/// Fails early where write_output would fail late: the folder is missing, the path is a directory.
void check_output(const std::string& path);

/// Throws UsageError where two options would write one file, or both standard output.
void part_outputs(const std::string& option, const std::string& path, const std::string& other_option,
                  const std::string& other);

/// Throws UsageError when `output`, which `option` names, would replace one of the inputs: files, globs, and files with
/// a key ("dump.npz:features").
void spare_inputs(const std::vector<FileList>& inputs, const std::string& option, const std::string& output);

/// JSON and CSV to files or "-", and the table to standard output unless that is taken.
void write_report(const Report& report, const std::string& json, const std::string& csv, bool quiet);

/// The text as one line of UTF-8: names of files may be neither.
std::string printable(const std::string& text);

/// True when colours and progress bars are welcome on that file descriptor (a terminal, NO_COLOR not set).
bool wants_colour(int descriptor);

/// Prints the error to stderr, `who` before its message, as JSON when `as_json`, and returns the exit code.
int report_error(std::exception_ptr error, bool as_json, const std::string& who = {});

}  // namespace ncollapse::cli
