// Saves what `ncollapse analyze` reads.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace train_mlp {

/// Writes a tensor of float32 or int64, of one or two dimensions, from any device, as .npy 1.0.
/// Throws DataError when the file cannot be written.
void write_npy(const std::string& path, const at::Tensor& tensor);

}  // namespace train_mlp
