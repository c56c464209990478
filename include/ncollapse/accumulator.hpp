// Class moments in one pass: counts, means, within-class variances and the pooled within-class scatter.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ncollapse/communicator.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/export.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

struct MomentState;
struct MomentData;

/// What is accumulated. Each level includes the ones before it.
enum class Statistics {
  means,   ///< n_k and the class means; state 2 K d doubles
  traces,  ///< and tr S_k for every class; state + K doubles
  full,    ///< and the pooled within-class scatter; state + d^2 doubles
};

/// How the pooled scatter is multiplied, and how pairs of more than 16384 classes are. Everything else is double in
/// either.
enum class Precision {
  exact,  ///< in double
  /// In half (CUDA) or single (CPU) precision: every chunk of rows is centred and scaled first, products are added up
  /// over at most 4096 rows and the rest in double, and the diagonal is as exact as ever. Several times faster; how
  /// large the error of the other entries can be is told by ClassMoments::scatter_error. Cosines and distances between
  /// the classes of a measurement, if there are more than 16384, come from such products of narrowed rows as well;
  /// Report::cosine_error tells what that costs.
  fast,
};

/// "means", "traces", "full".
NCOLLAPSE_EXPORT std::string_view to_string(Statistics statistics);
/// Throws UsageError for an unknown name.
NCOLLAPSE_EXPORT Statistics parse_statistics(std::string_view name);
/// "exact", "fast".
NCOLLAPSE_EXPORT std::string_view to_string(Precision precision);
/// Throws UsageError for an unknown name.
NCOLLAPSE_EXPORT Precision parse_precision(std::string_view name);

struct AccumulatorOptions {
  Index classes = 0;  ///< K; labels are 0 .. K-1
  Index dim = 0;      ///< d
  Statistics statistics = Statistics::full;
  /// Weight a_k of a sample of class k in the pooled scatter, K values > 0; empty: all 1. The convention `classavg`
  /// averages covariances over classes and so needs a_k = 1/n_k, which must be known before the pass (count the
  /// labels first). Every other convention needs weights 1.
  std::vector<double> scatter_weights = {};
  Precision precision = Precision::exact;  ///< below Statistics::full it matters to pairs of classes only
};

/// The finished moments of a data set, in the memory of the device that made them. Immutable: several threads may read
/// one object, or measure it. Copies share memory.
class NCOLLAPSE_EXPORT ClassMoments {
 public:
  Index classes() const;       ///< K, absent classes included
  Index dim() const;           ///< d
  Index samples() const;       ///< N
  Index classes_seen() const;  ///< number of classes with n_k > 0
  Statistics statistics() const;
  /// The coarsest element type of the features; none where nothing was added, or a state file does not say.
  std::optional<Dtype> dtype() const;
  const std::vector<Index>& counts() const&;  ///< n_k, [K]
  std::vector<Index> counts() &&;             ///< what a temporary's reference would not outlive
  /// v_k = tr S_k, the within-class variance of class k with denominator n_k, [K]; 0 for an absent class.
  /// Throws UsageError when only means were accumulated.
  const std::vector<double>& within_variances() const&;
  std::vector<double> within_variances() &&;
  /// Class means [K x d] row-major, copied to the host; zeros for an absent class. Waits for the device.
  std::vector<double> means() const;
  /// Pooled scatter sum_k a_k sum_i (h_i - m_k)(h_i - m_k)^T [d x d], copied to the host. Waits for the device.
  /// Throws UsageError below Statistics::full.
  std::vector<double> within_scatter() const;
  /// Bound on |E|_F / tr S, where S is the pooled scatter and E its error by Precision::fast; so every eigenvalue of S
  /// is off by at most scatter_error() tr S, and those below that are not resolved. A worst case: errors that do not
  /// conspire are some hundred times smaller. 0 for Precision::exact (whose rounding is that of double).
  double scatter_error() const;

  const Context& context() const;
  const MomentData& data() const { return *data_; }  ///< for code inside the library

  explicit ClassMoments(std::shared_ptr<const MomentData> data);

 private:
  std::shared_ptr<const MomentData> data_;
};

/// Accumulates batches of labelled features. The state is kept in double around one frozen shift per class (its first
/// sample), so that nothing is lost to cancellation however tightly the classes have collapsed; memory does not grow
/// with the number of samples. Deterministic: the same batches in the same order on the same device with the same
/// number of threads give the same bits. Different batch sizes or orders agree to rounding.
class NCOLLAPSE_EXPORT Accumulator {
 public:
  /// Throws UsageError for sizes below 1, weights that are not K positive numbers, or unknown statistics or precision;
  /// MemoryError when the state does not fit the device's memory.
  Accumulator(Context context, AccumulatorOptions options);
  ~Accumulator();
  Accumulator(Accumulator&&) noexcept;
  Accumulator& operator=(Accumulator&&) noexcept;

  /// Adds features.rows samples; 0 rows are allowed. The views may lie in host or device memory. On CUDA the work is
  /// only queued on the context's stream: device views may be reused once work queued there afterwards has run, host
  /// views at return. The call does not wait for that work and, after the first batch of a size, allocates nothing;
  /// with device views it may be captured in a CUDA graph (add one batch of the size before; the graph is good until
  /// merge, reduce or the end of the accumulator). Throws UsageError when the shapes do not fit or an element type is
  /// unknown, DataError when a label is outside 0 .. K-1 or a feature is NaN or infinite (the message counts them and
  /// names the first row, counted over the whole stream). A batch with such a fault is not added, not even in part. On
  /// the CPU the call itself throws. On CUDA the fault shows when the device comes to that batch: it and all batches
  /// after it are left out, and the next of add, check, finish, save, merge, reduce that learns of it throws, naming
  /// the batch and the row; an add that throws has not added its own batch either. The state then is that of all
  /// batches before the bad one (`samples` tells how far), and more may be added.
  /// Throws MemoryError when there is no memory for it, which leaves the state as it was. Any other DeviceError, or an
  /// Error of kind internal, says that the device or a vendor's library refused work, after which a part of the batch
  /// may be in the state: from then on every use of it throws UsageError.
  void add(const MatrixView& features, const LabelView& labels);

  /// Waits until every batch was looked at, and throws the DataError that add on a GPU has not thrown yet, if there is
  /// one.
  void check() const;

  /// Adds everything that `other` has seen: parts may be merged in any order. What is rounded is of the size of the
  /// classes' spread, however tightly they have collapsed.
  /// Of two precisions the merged state has the lower one. `other` may live on another device.
  /// Throws UsageError when classes, dim, statistics or weights differ; DataError as check.
  void merge(const Accumulator& other);

  /// Adds what the other ranks have seen; collective. Afterwards every rank holds the same state, that of all ranks,
  /// bit for bit; with one rank nothing happens. Ranks may have no samples, other classes, batches of other sizes, and
  /// lie on devices of other kinds. Two sums over ranks: counts (exact) and means, then what those lost by rounding,
  /// variances and scatter about the common means, 8 (2 K (d + 1) + d (d + 1)/2) bytes in all; takes no more memory
  /// than a merge. Deterministic for the same parts on the same number of ranks, where the communicator's sums are.
  /// Every rank throws, none waits for ever: UsageError when classes, dim, statistics, precision or weights differ or
  /// the accumulator, or one merged into it, was reduced before; where one rank fails (memory), it its error and the
  /// others one that names it, DataError as check. (Ranks that sum in device memory, one of which has a context on the
  /// CPU or no memory for 4 MiB, are left waiting by that one: it calls on_failure.) After a throw the state is as
  /// before the call. A state that was reduced says so when it is saved and loaded; what is added to it is on that rank
  /// alone. Waits for the device.
  void reduce(const Communicator& ranks);

  Index samples() const;  ///< rows in the state; waits for the device; throws UsageError after an add that broke it
  const AccumulatorOptions& options() const;
  const Context& context() const;

  /// The moments of what was added so far; more may be added afterwards. Throws DataError as check,
  /// and where sums of features or of their squares leave the range of double.
  ClassMoments finish() const;

  /// Writes the state to a versioned, checksummed file; the old file is replaced, under its permissions, only when the
  /// new one is complete.
  /// Loading it gives the same bits. `note` is kept with it, under the same checksum: what the state has seen, say, so
  /// that a program knows where to go on. Throws DataError when it cannot be written, or `file` is there and no regular
  /// file, or its sums have left the range of double, and as check.
  void save(const std::filesystem::path& file, const std::string& note = {}) const;
  /// Throws DataError when the file is missing, truncated, damaged, foreign or of another version.
  static Accumulator load(Context context, const std::filesystem::path& file, std::string* note = nullptr);

 private:
  struct Impl;
  explicit Accumulator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ncollapse
