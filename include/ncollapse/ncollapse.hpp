// Everything but what needs another library's headers: mpi.hpp, nccl.hpp, torch.hpp.
//
// What holds for every class: an object that was moved from may be assigned to or destroyed, nothing else; one object
// is used by one thread at a time, but Context and ClassMoments (see there).
#pragma once

#include "ncollapse/accumulator.hpp"
#include "ncollapse/analysis.hpp"
#include "ncollapse/array_file.hpp"
#include "ncollapse/classifier.hpp"
#include "ncollapse/communicator.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/decisions.hpp"
#include "ncollapse/decomposition.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/file_list.hpp"
#include "ncollapse/metrics.hpp"
#include "ncollapse/plan.hpp"
#include "ncollapse/state.hpp"
#include "ncollapse/theory.hpp"
#include "ncollapse/types.hpp"
#include "ncollapse/ufm.hpp"
#include "ncollapse/version.hpp"
