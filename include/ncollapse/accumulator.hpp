// Class moments in one pass: counts, means, within-class variances and the pooled within-class scatter.
#pragma once

#include <filesystem>
#include <memory>
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

/// "means", "traces", "full".
NCOLLAPSE_EXPORT std::string_view to_string(Statistics statistics);
/// Throws UsageError for an unknown name.
NCOLLAPSE_EXPORT Statistics parse_statistics(std::string_view name);

struct AccumulatorOptions {
  Index classes = 0;  ///< K; labels are 0 .. K-1
  Index dim = 0;      ///< d
  Statistics statistics = Statistics::full;
  /// Weight a_k of a sample of class k in the pooled scatter, K values > 0; empty: all 1. The convention `classavg`
  /// averages covariances over classes and so needs a_k = 1/n_k, which must be known before the pass (count the
  /// labels first). Every other convention needs weights 1.
  std::vector<double> scatter_weights = {};
};

/// The finished moments of a data set, in the memory of the device that made them. Immutable; copies share memory.
class NCOLLAPSE_EXPORT ClassMoments {
 public:
  Index classes() const;       ///< K, absent classes included
  Index dim() const;           ///< d
  Index samples() const;       ///< N
  Index classes_seen() const;  ///< number of classes with n_k > 0
  Statistics statistics() const;
  const std::vector<Index>& counts() const;  ///< n_k, [K]
  /// v_k = tr S_k, the within-class variance of class k with denominator n_k, [K]; 0 for an absent class.
  /// Throws UsageError when only means were accumulated.
  const std::vector<double>& within_variances() const;
  /// Class means [K x d] row-major, copied to the host; zeros for an absent class. Waits for the device.
  std::vector<double> means() const;
  /// Pooled scatter sum_k a_k sum_i (h_i - m_k)(h_i - m_k)^T [d x d], copied to the host. Waits for the device.
  /// Throws UsageError below Statistics::full.
  std::vector<double> within_scatter() const;

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
  /// Throws UsageError for sizes below 1 or weights that are not K positive numbers; DeviceError when the state does
  /// not fit the device's memory.
  Accumulator(Context context, AccumulatorOptions options);
  ~Accumulator();
  Accumulator(Accumulator&&) noexcept;
  Accumulator& operator=(Accumulator&&) noexcept;

  /// Adds features.rows samples; 0 rows are allowed. The views may lie in host or device memory. On CUDA the work is
  /// ordered on the context's stream; the call waits until the batch was checked, so the views may be reused once work
  /// queued on that stream afterwards has run (host views: at return).
  /// Throws UsageError when the shapes do not fit, DataError when a label is outside 0 .. K-1 or a feature is NaN or
  /// infinite (the message counts them and names the first row, counted over the whole stream). After a throw the state
  /// is as before the call.
  void add(const MatrixView& features, const LabelView& labels);

  /// Adds everything that `other` has seen, by the same algebra: parts may be merged in any order.
  /// Throws UsageError when classes, dim, statistics or weights differ. `other` may live on another device.
  void merge(const Accumulator& other);

  /// Adds what the other ranks have seen; collective. Afterwards every rank holds the same state, that of all ranks,
  /// bit for bit; with one rank nothing happens. Ranks may have no samples, other classes, batches of other sizes, and
  /// lie on devices of other kinds. Two sums over ranks: counts (exact) and means, then variances and scatter about the
  /// common means, 8 (K (d + 2) + d (d + 1)/2) bytes in all; takes no more memory than a merge. Deterministic for the
  /// same parts on the same number of ranks, where the communicator's sums are.
  /// Every rank throws, none waits for ever: UsageError when classes, dim, statistics or weights differ or the
  /// accumulator was reduced before; where one rank fails (memory), it its error and the others one that names it.
  /// After a throw the state is as before the call. Waits for the device.
  void reduce(const Communicator& ranks);

  Index samples() const;  ///< rows added so far
  const AccumulatorOptions& options() const;
  const Context& context() const;

  /// The moments of what was added so far; more may be added afterwards.
  ClassMoments finish() const;

  /// Writes the state to a versioned, checksummed file; the old file is replaced only when the new one is complete.
  /// Loading it gives the same bits. `note` is kept with it, under the same checksum: what the state has seen, say, so
  /// that a program knows where to go on. Throws DataError when it cannot be written.
  void save(const std::filesystem::path& file, const std::string& note = {}) const;
  /// Throws DataError when the file is missing, truncated, damaged, foreign or of another version.
  static Accumulator load(Context context, const std::filesystem::path& file, std::string* note = nullptr);

 private:
  struct Impl;
  explicit Accumulator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ncollapse
