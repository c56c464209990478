// The command built without MPI.
#include "host/cli/output.hpp"
#include "host/cli/ranks.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cli {

struct Ranks::Job {};

Ranks::Ranks() {
  if (const int size = launched_ranks(); size > 1)
    throw UsageError("started as one of " + std::to_string(size) +
                         " processes, but this ncollapse was built without MPI: each would do the whole work",
                     "build with -DNCOLLAPSE_MPI=ON, or use accumulate --rows and merge");
}
Ranks::~Ranks() = default;

Communicator Ranks::communicator(bool) { return {}; }
Progress Ranks::together(const Progress& mine) { return mine; }
void Ranks::finish() {}
int Ranks::fail(std::exception_ptr error, bool json_errors) { return report_error(error, json_errors); }

}  // namespace ncollapse::cli
