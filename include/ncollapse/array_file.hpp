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

/// One array of one or two dimensions in a file, opened for reading. At most one batch of it is in memory, whatever its
/// size. Elements come as they are stored, bit for bit. Not for several threads at once: open it once per thread.
class NCOLLAPSE_EXPORT ArrayFile {
 public:
  /// `spec` is "path" or "path:key": when the whole text names a file it is a path, else the key is the text after the
  /// last ':' whose left side names a file. Without a key: the only array of the file, else the first name that is
  /// usual for the role ("features", "embeddings", "h", ...; "labels", "targets", "y", ...; "weight", "fc.weight",
  /// ...), whatever its case, else one that ends a single key after a dot ("module.fc.weight").
  ///
  /// Formats: .npy 1.0 to 3.0 in C or Fortran order, .npz stored or deflated, .safetensors; told apart by content, then
  /// by extension. Features, weights and bias are f16, bf16, f32 or f64; labels are integers up to 64 bits, or bool.
  /// Features and weights have two dimensions; labels and bias are a vector, or n x 1, or 1 x n.
  ///
  /// Throws DataError: missing, not a regular file, empty, of another kind, truncated or contradictory header, fewer
  /// bytes than the header promises, an element type or shape that the role cannot use, no such key, no telling which.
  static ArrayFile open(const std::string& spec, ArrayRole role);
  ~ArrayFile();
  ArrayFile(ArrayFile&&) noexcept;
  ArrayFile& operator=(ArrayFile&&) noexcept;

  const std::string& name() const;  ///< "dump.npz:features", for messages
  Index rows() const;               ///< first dimension; for labels and bias the number of entries
  Index cols() const;               ///< second dimension; for labels and bias 1
  int rank() const;                 ///< 1 or 2, as in the file
  std::string dtype_name() const;   ///< of an element in the file: "f32", "i64", "bool", ...
  Index row_bytes() const;          ///< cols() elements, as in the file

  /// Rows first .. first + count - 1 of features, weights or bias, [count x cols], aligned, valid until the next read.
  /// In place when the file holds them row by row (.npy in C order, .safetensors), else gathered in a buffer; reading
  /// forward is what is fast. Do not let the file shrink while a view on it is in use.
  /// Throws DataError when the file is damaged there or has shrunk since; UsageError for rows outside 0 .. rows(), or
  /// for labels; std::bad_alloc when the rows do not fit in memory.
  MatrixView read_matrix(Index first, Index count);
  /// Entries first .. first + count - 1 of the labels, valid until the next read: i64, i32 and u8 as they are, the
  /// other types as i64. Throws as read_matrix does, and DataError for values above the signed 64-bit range.
  LabelView read_labels(Index first, Index count);

 private:
  struct Impl;
  explicit ArrayFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Names of the arrays in a file, in file order; a .npy file has one, "". Throws DataError as ArrayFile::open does for
/// the file and its header; arrays that cannot be read are named too.
NCOLLAPSE_EXPORT std::vector<std::string> array_names(const std::string& path);

}  // namespace ncollapse
