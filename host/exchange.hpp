// What the algorithms do with a Communicator: sum arrays wherever they lie, and fail together.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "host/backend.hpp"
#include "ncollapse/communicator.hpp"

namespace ncollapse {

/// Collective calls: all ranks make the same ones in the same order. Sums take no memory that grows with what is
/// summed: on a rank that failed for want of it, alone, the others would wait for ever.
class Exchange {
 public:
  /// Collective as well: takes what sums need, on all ranks or on none. Throws UsageError when the ranks sum in device
  /// memory and the backend has none. That rank cannot tell the others, no more than one without memory for ranks that
  /// sum on devices: it calls on_failure, and its program has to end them.
  Exchange(Backend& backend, const Communicator& ranks);

  /// Of doubles or Index. A rank that fails here, or in gather, calls on_failure: others may be waiting for it.
  template <class T>
  void sum(Array<T>& values) const;
  template <class T>
  void sum(std::vector<T>& values) const;
  /// Every rank's row, [size x row.size()].
  std::vector<Index> gather(const std::vector<Index>& row) const;

  /// Runs `work` on every rank. When it throws on one, every rank throws: the ones that failed their own error, the
  /// others what `doing` and the first failed rank say. Without this a rank that fails would leave the others waiting.
  void together(const std::string& doing, const std::function<void()>& work) const;
  /// Throws UsageError on every rank when the ranks do not all give the same values. `describe` says what a rank's
  /// values mean.
  void agree(const std::vector<Index>& values, const std::string& hint,
             const std::function<std::string(const Index* values)>& describe) const;

 private:
  template <class Work>
  auto or_tell(const Work& work) const;
  template <class T>
  void sum_array(Array<T>& values) const;
  template <class T>
  void sum_vector(std::vector<T>& values) const;
  std::vector<Index> table_of(const std::vector<Index>& row) const;
  bool on_device() const { return ranks_.space() == MemorySpace::device; }
  void prepare();

  static constexpr Index kPieceBytes = Index{4} << 20;

  Backend& backend_;
  const Communicator& ranks_;
  std::shared_ptr<void> piece_;  ///< [kPieceBytes] where the ranks sum, for values that lie elsewhere; or null
};

/// A number that differs when the bytes do, for agree().
Index fingerprint(const void* data, std::size_t bytes);

}  // namespace ncollapse
