// Signals. Ctrl-C: the first one asks the command to end where its results are whole, a second one ends it at once.
#pragma once

namespace ncollapse::cli {

/// From now on.
void catch_interrupts();
bool interrupted();

/// From now on a file that is cut off while a part of it is mapped into memory, or whose disk fails then, ends the
/// process with its name and the exit code of bad input. Without this the system does, saying "Bus error".
void catch_lost_files(bool json_errors);

}  // namespace ncollapse::cli
