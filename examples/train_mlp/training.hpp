// Full-batch training, measured on the way.
#pragma once

#include "options.hpp"
#include "ranks.hpp"

namespace train_mlp {

/// One run, from its start or its checkpoint to its end: Adam on all samples at once. The log's line of epoch e is
/// about the network after e steps; what is measured are the features of the next step's forward pass, so that
/// measuring needs none of its own. Asks `interrupted` once an epoch: when it says so, the run ends there like at its
/// last epoch (measured, checkpoint, dump), and false is returned. On the CPU, the same options and threads give the
/// same bits, resumed or not. Of several ranks each works on its part of the samples; gradients, losses and moments are
/// summed, in the order of ranks, so that all hold the same network; the first writes log and checkpoint. Throws
/// UsageError, DataError or DeviceError, those of wrong input before anything is written.
bool train(const Options& options, const Ranks& ranks, bool (*interrupted)());

}  // namespace train_mlp
