// The .safetensors format: header length (8 bytes, little endian), a JSON header, then the tensors' bytes.
#pragma once

#include <string>
#include <vector>

#include "host/io/array_info.hpp"
#include "host/io/byte_source.hpp"

namespace ncollapse::io {

struct Tensor {
  std::string key;
  std::string dtype;  ///< as the file names it; may be one that cannot be read
  std::vector<Index> shape;
  Index offset = 0;  ///< bytes from the start of the file
  Index bytes = 0;
};

/// All tensors of the file, by their place in it. Throws DataError when the header is broken, or contradicts itself or
/// the size of the file. Says nothing about element types, so that an exotic tensor does not hide its neighbours.
std::vector<Tensor> read_safetensors_header(ByteSource& source);

/// Throws DataError when the element type cannot be read. `name` is for the message.
ArrayInfo array_info(const Tensor& tensor, const std::string& name);

}  // namespace ncollapse::io
