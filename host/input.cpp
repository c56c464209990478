#include "host/input.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "host/numbers.hpp"

namespace ncollapse {

namespace {

/// `what`: "features".
void check_memory(const Backend& backend, MemorySpace space, const std::string& what) {
  if (space == MemorySpace::device && backend.info().device.type != DeviceType::cuda)
    throw UsageError(what + " lie in device memory, but the context is on the CPU",
                     "open the context on the CUDA device that holds them");
}

// What is not finite about a matrix whose row norms are not.
std::string first_nonfinite(Backend& backend, const Matrix& matrix) {
  const auto values = backend.to_host(matrix);
  for (Index i = 0; i < matrix.size(); ++i)
    if (!std::isfinite(values[i]))
      return "a NaN or infinite value at row " + std::to_string(i / matrix.cols) + ", column " +
             std::to_string(i % matrix.cols);
  return "values whose squares overflow";
}

}  // namespace

void check_batch(const Backend& backend, Index dim, const MatrixView& features, const LabelView& labels) {
  if (features.rows < 0 || labels.size < 0)
    throw UsageError("a batch of " + std::to_string(std::min(features.rows, labels.size)) + " rows");
  if (features.rows != labels.size)
    throw UsageError("features have " + std::to_string(features.rows) + " rows, but there are " +
                         std::to_string(labels.size) + " labels",
                     "one label for every row");
  if (features.cols != dim)
    throw UsageError("features have " + std::to_string(features.cols) + " columns, expected " + std::to_string(dim));
  if (features.row_stride() < dim)
    throw UsageError("the row stride " + std::to_string(features.row_stride()) + " is below the dimension " +
                     std::to_string(dim));
  if (features.rows > 0 && (features.data == nullptr || labels.data == nullptr))
    throw UsageError("a batch of " + std::to_string(features.rows) + " rows with a null pointer");
  check_type(features.dtype, "features are");
  check_type(labels.type, "labels are");
  check_memory(backend, features.space, "features");
  check_memory(backend, labels.space, "labels");
}

void throw_faults(const BatchFaults& faults, Index first_row, Index classes) {
  std::string where = "rows " + std::to_string(first_row) + " to " + std::to_string(first_row + faults.rows - 1), late;
  if (faults.batch >= 0) {
    where += " (batch " + std::to_string(faults.batch) + ", counted from 0)";
    late = "; found while later batches were given: that batch and all after it were left out";
  }
  std::string what, hint;
  Index first = std::numeric_limits<Index>::max();
  if (faults.bad_labels > 0) {
    first = first_row + faults.bad_label_row;
    what = std::to_string(faults.bad_labels) + " label(s) in " + where + " are outside 0.." +
           std::to_string(classes - 1) + "; the first is " + std::to_string(faults.bad_label) + " at row " +
           std::to_string(first);
    hint = "labels are class numbers from 0 to K-1; give the right number of classes, and leave out rows without one";
  }
  if (faults.nonfinite > 0) {
    const Index row = first_row + faults.nonfinite_row;
    first = std::min(first, row);
    what += (what.empty() ? "" : "; and ") + std::to_string(faults.nonfinite) + " feature value(s) in " + where +
            " are NaN or infinite; the first is at row " + std::to_string(row) + ", column " +
            std::to_string(faults.nonfinite_col);
    hint += (hint.empty() ? "" : "; ") +
            std::string("features must be finite; look for overflow in the network or a broken dump");
  }
  throw DataError(what + late, hint, first);
}

void check_view(const Backend& backend, const MatrixView& view, const std::string& name) {
  if (view.rows < 1 || view.cols < 1 || view.data == nullptr)
    throw UsageError(name + " is empty (" + std::to_string(view.rows) + " x " + std::to_string(view.cols) + ")");
  if (view.row_stride() < view.cols)
    throw UsageError(name + " has a row stride of " + std::to_string(view.stride) + ", below its " +
                     std::to_string(view.cols) + " columns");
  check_type(view.dtype, name + " is");
  check_memory(backend, view.space, "the elements of " + name);
}

Matrix checked_matrix(Backend& backend, const MatrixView& view, const std::string& name) {
  check_view(backend, view, name);
  Matrix matrix = backend.borrow(view);
  check_finite(backend, matrix, name);
  return matrix;
}

void check_finite(Backend& backend, const Matrix& matrix, const std::string& name, const std::string& remedy) {
  for (const double squared : backend.row_dots(matrix, matrix))
    if (!std::isfinite(squared)) throw DataError(name + " holds " + first_nonfinite(backend, matrix), remedy);
}

void check_lengths(Backend& backend, const Matrix& rows, const std::vector<double>& squares, const std::string& what,
                   const std::string& remedy) {
  constexpr double kLeast = 1e-70, kMost = 1e70;
  const auto longest = [](const std::vector<double>& found) {
    return std::sqrt(*std::max_element(found.begin(), found.end()));
  };
  double length = longest(squares);
  if (length == 0) {  // as it is for rows whose squares vanish
    constexpr double kGrown = 0x1p1000;
    const Matrix grown = backend.scaled(std::vector<double>(squares.size(), kGrown), rows);
    length = longest(backend.row_dots(grown, grown)) / kGrown;
  }
  if (length != 0 && !(length >= kLeast && length <= kMost))
    throw DataError("the longest of the " + what + " is " + text_of(length, 3) + " long; 1e-70 to 1e70 can be measured",
                    remedy);
}

}  // namespace ncollapse
