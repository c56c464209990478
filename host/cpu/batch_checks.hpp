// The check that every batch passes before anything is changed.
#pragma once

#include "host/backend.hpp"

namespace ncollapse::cpu {

/// Copies the labels to `out` [size] and looks at every label and every feature.
BatchFaults check_batch_values(const MatrixView& features, const LabelView& labels, Index classes, Index* out,
                               int threads);

}  // namespace ncollapse::cpu
