// The command built without MPI.
#include <cstdlib>
#include <string_view>

#include "host/cli/output.hpp"
#include "host/cli/ranks.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cli {

struct Ranks::Job {};

Ranks::Ranks() {
  const int size = launched_ranks();
  // PMIx tells each process which it is, not of how many: any but the first has company, and Slurm says how much.
  const std::string_view rank = size < 0 ? std::getenv("PMIX_RANK") : "0";
  const char* const tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (size > 1 || rank != "0" || (size < 0 && tasks != nullptr && std::string_view(tasks) != "1"))
    throw UsageError("started as one of " + (size > 1 ? std::to_string(size) : "several") +
                         " processes, but this ncollapse was built without MPI: each would do the whole work",
                     "build with -DNCOLLAPSE_MPI=ON, or use accumulate --rows and merge");
}
Ranks::~Ranks() = default;

Communicator Ranks::communicator(bool) { return {}; }
Progress Ranks::together(const Progress& mine) { return mine; }
void Ranks::finish() {}
int Ranks::fail(std::exception_ptr error, bool json_errors) { return report_error(error, json_errors); }

}  // namespace ncollapse::cli
