// Counts of decisions: what the classifier and the nearest class centre say of each sample (NC4, accuracies).
#pragma once

#include <memory>
#include <vector>

#include "ncollapse/accumulator.hpp"
#include "ncollapse/classifier.hpp"
#include "ncollapse/export.hpp"

namespace ncollapse {

/// Counts by true class, each [K].
struct DecisionCounts {
  bool has_classifier = false;            ///< false: correct_classifier and agree are empty
  std::vector<Index> samples;             ///< samples of the class
  std::vector<Index> correct_centre;      ///< nearest class centre is the true class
  std::vector<Index> correct_classifier;  ///< argmax of W h + b is the true class
  std::vector<Index> agree;               ///< the two decisions are equal

  /// Adds what another counter with the same centres and classifier has counted, of other rows. Throws UsageError when
  /// classes differ, or only one has a classifier.
  NCOLLAPSE_EXPORT DecisionCounts& operator+=(const DecisionCounts& other);
};

/// Counts, batch by batch, argmax_k (W h + b)_k and argmin_k |h - m_k| against given class means (Papyan et al. 2020,
/// NC4). Never holds N x K scores. The counts are those of double-precision arithmetic: fast scores decide only where
/// an error bound certifies them, and rows so near their own class mean that nothing else can win need none: late in
/// training time grows with N d, not N K d. Ties go to the lowest class. Absent classes are no centres, but the
/// classifier may choose them. Deterministic.
class NCOLLAPSE_EXPORT DecisionCounter {
 public:
  /// `classifier` null or without layers: only the nearest centre is decided. Its weights are copied, so they may
  /// change or go afterwards. Throws UsageError when the layers do not chain from d to K, the
  /// bias has not K entries or no layers, an element type is unknown, or weights lie in device memory and the context
  /// on the CPU; DataError when no class has samples, when a layer, their product or the bias holds a NaN or infinite
  /// value, or a row of them one whose square overflows, and for class means beyond 1e70 or all below 1e-70 without
  /// being 0.
  DecisionCounter(const ClassMoments& centres, const Classifier* classifier);
  ~DecisionCounter();
  DecisionCounter(DecisionCounter&&) noexcept;
  DecisionCounter& operator=(DecisionCounter&&) noexcept;

  /// As Accumulator::add, errors included, but for a GPU: there it waits for the device, so a batch is counted or
  /// refused at return, and it cannot be captured in a CUDA graph (UsageError). Takes 8 bytes there for every row of
  /// the batch, besides bounded scratch.
  void add(const MatrixView& features, const LabelView& labels);

  /// Adds what the other ranks have counted; collective, exact, at the end: call finish() next. Throws as
  /// Accumulator::reduce does.
  void reduce(const Communicator& ranks);

  /// The counts so far. Waits for the device.
  DecisionCounts finish() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ncollapse
