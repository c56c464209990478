// The checks that every batch must pass.
#pragma once

#include "host/backend.hpp"

namespace ncollapse::cpu {

/// Looks at every label and copies them to `out` [size].
BatchFaults check_labels(const LabelView& labels, Index classes, Index* out);

/// Looks at every feature, and adds to `faults` what is wrong.
void check_features(const MatrixView& features, int threads, BatchFaults& faults);

}  // namespace ncollapse::cpu
