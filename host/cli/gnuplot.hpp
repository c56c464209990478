// gnuplot as a child process: no shell, so file names may hold anything.
#pragma once

#include <string>

namespace ncollapse::cli {

/// Runs `gnuplot SCRIPT` in the folder and waits for it. Throws Error (internal) when gnuplot is not installed or
/// fails, with what it said and the `remark` as a further hint.
void run_gnuplot(const std::string& folder, const std::string& script, const std::string& remark = {});

}  // namespace ncollapse::cli
