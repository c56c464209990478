// Ctrl-C: the first one asks the command to end where its results are whole, a second one ends it at once.
#pragma once

namespace ncollapse::cli {

/// From now on.
void catch_interrupts();
bool interrupted();

}  // namespace ncollapse::cli
