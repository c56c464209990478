// Arrays in files: .npy, .npz and .safetensors, read in row blocks so that a file may be larger than memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ncollapse/export.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

/// What an array is for; decides which keys are tried when a file holds several arrays and none is named.
enum class ArrayRole { features, labels, weights, bias };

/// One array of one or two dimensions in a file, opened for reading.
class NCOLLAPSE_EXPORT ArrayFile {
 public:
  /// `spec` is "path" or "path:key" (the key is the text after the last ':' when the whole text names no file).
  /// Without a key: the only array of the file, else the first whose name is usual for the role.
  /// Throws DataError: missing, a directory, empty, truncated or contradictory header, fewer bytes than the header
  /// promises, an element type that the role cannot use, a rank other than 1 or 2, no such key.
  static ArrayFile open(const std::string& spec, ArrayRole role);
  ~ArrayFile();
  ArrayFile(ArrayFile&&) noexcept;
  ArrayFile& operator=(ArrayFile&&) noexcept;

  const std::string& name() const;  ///< "dump.npz:features", for messages
  Index rows() const;               ///< first dimension
  Index cols() const;               ///< second dimension; 1 for a vector
  int rank() const;                 ///< 1 or 2
  std::string dtype_name() const;   ///< "f32", "i64", ...
  Index row_bytes() const;

  /// Rows first .. first + count - 1 as features or weights (f16, bf16, f32, f64). Valid until the next read.
  MatrixView read_matrix(Index first, Index count);
  /// Entries of a vector (or an n x 1 or 1 x n array) as labels; any integer type up to 64 bits.
  /// Throws DataError for unsigned values above the 64-bit signed range. Valid until the next read.
  LabelView read_labels(Index first, Index count);

 private:
  struct Impl;
  explicit ArrayFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Names of the arrays in a file, in file order; a .npy file has one, "".
NCOLLAPSE_EXPORT std::vector<std::string> array_names(const std::string& path);

}  // namespace ncollapse
