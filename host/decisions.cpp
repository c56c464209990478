#include "ncollapse/decisions.hpp"

#include <array>

#include "host/classifier_product.hpp"
#include "host/exchange.hpp"
#include "host/input.hpp"
#include "host/moments.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

DecisionCounts& DecisionCounts::operator+=(const DecisionCounts& other) {
  constexpr std::array kCounts = {&DecisionCounts::samples, &DecisionCounts::correct_centre,
                                  &DecisionCounts::correct_classifier, &DecisionCounts::agree};
  for (const auto counts : kCounts)
    if ((this->*counts).size() != (other.*counts).size() || has_classifier != other.has_classifier)
      throw UsageError("cannot add decisions on " + std::to_string(other.samples.size()) + " classes with" +
                           (other.has_classifier ? "" : "out") + " a classifier to such on " +
                           std::to_string(samples.size()) + " with" + (has_classifier ? "" : "out"),
                       "count both with the same centres and classifier");
  for (const auto counts : kCounts)
    for (std::size_t k = 0; k < (this->*counts).size(); ++k) (this->*counts)[k] += (other.*counts)[k];
  return *this;
}

void check_decisions(const DecisionCounts& counts, Index classes, const std::string& split) {
  const auto check = [&](const std::vector<Index>& values, const char* what) {
    if (static_cast<Index>(values.size()) != classes)
      throw UsageError("the " + split + " decisions have " + what + " of " + std::to_string(values.size()) +
                       " classes, the moments have " + std::to_string(classes));
    for (std::size_t k = 0; k < values.size(); ++k)
      if (values[k] < 0 || values[k] > counts.samples[k])
        throw UsageError("the " + split + " decisions have " + std::to_string(values[k]) + " hits among " +
                         std::to_string(counts.samples[k]) + " samples of class " + std::to_string(k));
  };
  check(counts.samples, "samples");
  check(counts.correct_centre, "centre decisions");
  if (!counts.has_classifier) return;
  check(counts.correct_classifier, "classifier decisions");
  check(counts.agree, "agreements");
}

struct DecisionCounter::Impl {
  Context context;
  DecisionState state;
  Index rows = 0;
  bool reduced = false;  // holds what other ranks have counted
  Wholeness wholeness = {};

  void require_whole() const { wholeness.require("counter"); }
};

DecisionCounter::DecisionCounter(const ClassMoments& centres, const Classifier* classifier) {
  impl_ = std::make_unique<Impl>(Impl{.context = centres.context(), .state = {}});
  Backend& backend = *impl_->context.backend();
  DecisionState& state = impl_->state;
  state.classes = centres.classes();
  state.dim = centres.dim();

  std::vector<Index> seen;
  for (Index k = 0; k < state.classes; ++k)
    if (centres.counts()[k] > 0) seen.push_back(k);
  if (seen.empty()) throw DataError("there are no class centres: no sample was accumulated");
  state.centres = backend.select_rows(centres.data().means, seen);
  check_lengths(backend, state.centres, backend.row_dots(state.centres, state.centres), "class means",
                "rescale the features, and the classifier's weights against them: decisions stay the same");
  state.centre_class = backend.from_host(seen, static_cast<Index>(seen.size()), 1);
  state.counters = backend.index_array(4, state.classes);

  if (!has_layers(classifier)) return;
  state.weights = classifier_product(backend, *classifier, state.dim, state.classes);
  if (state.weights.borrowed()) state.weights = backend.clone(state.weights);  // the caller may go on training
  auto bias = classifier_bias(backend, *classifier, state.classes);
  bias.resize(static_cast<std::size_t>(state.classes), 0.0);
  state.bias = backend.from_host(bias, 1, state.classes);
}

DecisionCounter::~DecisionCounter() = default;
DecisionCounter::DecisionCounter(DecisionCounter&&) noexcept = default;
DecisionCounter& DecisionCounter::operator=(DecisionCounter&&) noexcept = default;

void DecisionCounter::add(const MatrixView& features, const LabelView& labels) {
  Backend& backend = *impl_->context.backend();
  check_batch(backend, impl_->state.dim, features, labels);
  impl_->require_whole();
  if (features.rows == 0) return;
  const BatchFaults faults =
      impl_->wholeness.add(features.rows, [&] { return backend.decide_batch(impl_->state, features, labels); });
  if (faults.any()) throw_faults(faults, impl_->rows, impl_->state.classes);
  impl_->rows += features.rows;
}

void DecisionCounter::reduce(const Communicator& ranks) {
  if (ranks.size() == 1) return;
  DecisionState& state = impl_->state;
  const Exchange exchange(*impl_->context.backend(), ranks);
  exchange.agree({state.classes, state.centres.rows, state.weights ? 1 : 0, impl_->reduced ? 1 : 0},
                 "decide with the same centres and classifier on every rank, and reduce each counter once",
                 [](const Index* values) {
                   return std::to_string(values[0]) + " classes, " + std::to_string(values[1]) + " centres, " +
                          (values[2] != 0 ? "a" : "no") + " classifier" + (values[3] != 0 ? ", reduced before" : "");
                 });
  if (impl_->reduced)
    throw UsageError("this counter was reduced before: what all ranks have counted would count once for every rank",
                     "make a new counter");
  IndexArray total;  // a sum that breaks off leaves the rank's own counts
  exchange.together("copying its counts", [&] {
    impl_->require_whole();
    total = impl_->context.backend()->clone(state.counters);
  });
  exchange.sum(total);
  state.counters = total;
  impl_->reduced = true;
}

DecisionCounts DecisionCounter::finish() const {
  impl_->require_whole();
  const auto counters = impl_->context.backend()->to_host(impl_->state.counters);
  const auto row = [&](Index index) {
    const auto begin = counters.begin() + index * impl_->state.classes;
    return std::vector<Index>(begin, begin + impl_->state.classes);
  };
  DecisionCounts counts;
  counts.samples = row(0);
  counts.correct_centre = row(1);
  counts.has_classifier = static_cast<bool>(impl_->state.weights);
  if (counts.has_classifier) {
    counts.correct_classifier = row(2);
    counts.agree = row(3);
  }
  return counts;
}

}  // namespace ncollapse
