// What the command writes: files (whole or not at all), standard output, errors.
#pragma once

#include <exception>
#include <string>

namespace ncollapse::cli {

/// Thrown when the user pressed Ctrl-C.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

/// Writes `text` to `path`, replacing an old file only once the new one is complete; "-" is standard output.
/// Throws DataError when it cannot be written.
void write_output(const std::string& path, const std::string& text);

/// Fails early where write_output would fail late: the folder is missing, the path is a directory.
void check_output(const std::string& path);

/// True when colours and progress bars are welcome on that file descriptor (a terminal, NO_COLOR not set).
bool wants_colour(int descriptor);

/// Prints the error to stderr, as JSON when `as_json`, and returns the exit code.
int report_error(std::exception_ptr error, bool as_json);

}  // namespace ncollapse::cli
