// What may come in, and what is said of anything else: batches, matrices, means and classifiers of the caller.
#pragma once

#include <new>
#include <string>
#include <vector>

#include "host/backend.hpp"
#include "ncollapse/decisions.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

/// Element types come as enumerations, which may hold any number. Throws UsageError for one that stands for no type;
/// `what`: "features are".
inline void check_type(Dtype type, const std::string& what) {
  switch (type) {
    case Dtype::f64:
    case Dtype::f32:
    case Dtype::f16:
    case Dtype::bf16: return;
  }
  throw UsageError(what + " of an unknown element type, number " + std::to_string(static_cast<int>(type)),
                   "element types are f64, f32, f16 and bf16");
}
inline void check_type(LabelType type, const std::string& what) {
  switch (type) {
    case LabelType::i64:
    case LabelType::i32:
    case LabelType::u8: return;
  }
  throw UsageError(what + " of an unknown element type, number " + std::to_string(static_cast<int>(type)),
                   "label types are i64, i32 and u8");
}

/// Throws UsageError unless a batch fits: d columns, as many labels as rows, a stride >= d, known element types, memory
/// the backend can see.
void check_batch(const Backend& backend, Index dim, const MatrixView& features, const LabelView& labels);

/// Whether a state holds whole batches only. One may be there in part after a device or a vendor's library refused
/// work.
class Wholeness {
 public:
  /// Throws UsageError once a batch may be there in part; `what`: "accumulator".
  void require(const std::string& what) const {
    if (broken_)
      throw UsageError("the " + what + " may hold a part of the batch at which its device failed", "begin a new one");
  }
  /// work() adds a batch of `rows`. Its std::bad_alloc becomes a MemoryError, which has changed nothing.
  template <class Work>
  BatchFaults add(Index rows, const Work& work) {
    try {
      return work();
    } catch (const std::bad_alloc&) {
      throw MemoryError("out of memory: a batch of " + std::to_string(rows) + " rows", "give smaller batches");
    } catch (const MemoryError&) {
      throw;
    } catch (const UsageError&) {
      throw;
    } catch (...) {
      broken_ = true;
      throw;
    }
  }

 private:
  bool broken_ = false;
};

/// Throws the DataError that describes the faults; `first_row` of the stream is the first of their batch.
[[noreturn]] void throw_faults(const BatchFaults& faults, Index first_row, Index classes);

/// Throws UsageError for a view that is empty, of no known type or in memory that the backend cannot see.
void check_view(const Backend& backend, const MatrixView& view, const std::string& name);

/// The view as a matrix, which may share the caller's memory and must not be written to. Throws as check_view, and
/// DataError where a value is not finite or the squares of a row overflow; both call it `name`.
Matrix checked_matrix(Backend& backend, const MatrixView& view, const std::string& name);
/// Throws DataError where a value is not finite or the squares of a row overflow.
void check_finite(Backend& backend, const Matrix& matrix, const std::string& name, const std::string& remedy = "");

/// Throws UsageError unless the counts are those of K classes, and no class has more hits than samples; split: "train".
void check_decisions(const DecisionCounts& counts, Index classes, const std::string& split);

/// Throws DataError unless the longest row is 0, or 1e-70 to 1e70 long: then products of four such lengths neither
/// overflow nor vanish in double. squares: of the rows' lengths; what: "class means".
void check_lengths(Backend& backend, const Matrix& rows, const std::vector<double>& squares, const std::string& what,
                   const std::string& remedy);

}  // namespace ncollapse
