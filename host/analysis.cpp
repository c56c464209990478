// The whole job over files. Two passes over the training features: moments, then decisions, which need the final means.
// With ranks every one makes both passes over its part of the rows; between them they add up (host/exchange.hpp). What
// can fail on one rank alone is done together(), so that no rank waits for one that has failed.
#include "ncollapse/analysis.hpp"

#include <algorithm>
#include <chrono>
#include <optional>

#include "host/classifier_files.hpp"
#include "host/dataset.hpp"
#include "host/exchange.hpp"
#include "host/theory/imbalance.hpp"
#include "ncollapse/accumulator.hpp"
#include "ncollapse/decisions.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Analysis {
 public:
  Analysis(const Context& context, const AnalysisRequest& request, const Communicator& ranks)
      : context_(context), request_(request), ranks_(ranks), exchange_(*context.backend(), ranks_) {}
  std::optional<Report> run();

 private:
  /// One pass over this rank's part: hands every batch to `add` and tells how far it is.
  template <class Add>
  void pass(Dataset& data, const std::string& name, const Add& add);
  DecisionCounts count_decisions(const ClassMoments& moments, const Classifier* classifier, Dataset& data,
                                 const std::string& name);
  void open();
  void survey();
  void check_request() const;

  Context context_;
  const AnalysisRequest& request_;
  Communicator ranks_;
  Exchange exchange_;
  std::optional<Dataset> train_, test_, ood_;
  std::optional<ClassifierFiles> head_;
  Index classes_ = 0;          // K; 0: not known before the labels are
  std::vector<Index> counts_;  // n_k of the training labels
  std::vector<std::pair<std::string, double>> timing_;
};

void Analysis::check_request() const {
  if (request_.features.empty() || request_.labels.empty()) throw UsageError("features and labels are needed");
  if (request_.test_features.empty() != request_.test_labels.empty())
    throw UsageError("test features and test labels are given together or not at all");
  check_decays(request_.lambda_w, request_.lambda_h, request_.weights.size());
  if (request_.classes > kMaxClasses)
    throw UsageError("classes is " + std::to_string(request_.classes) + ", at most " + std::to_string(kMaxClasses) +
                     " are possible");
  if (request_.classes < 0) throw UsageError("classes is " + std::to_string(request_.classes) + ", must be positive");
  if (request_.batch_rows < 0)
    throw UsageError("batch rows is " + std::to_string(request_.batch_rows) + ", must be positive");
}

template <class Add>
void Analysis::pass(Dataset& data, const std::string& name, const Add& add) {
  const auto start = Clock::now();
  const Index rows = data.whole_rows(), row_bytes = data.row_bytes();
  exchange_.together("reading " + data.name(), [&] {
    data.stream(0, data.batch_rows(request_.batch_rows), add, [&](Index done) {
      if (request_.on_progress) request_.on_progress({name, done, rows, done * row_bytes, rows * row_bytes});
    });
  });
  timing_.emplace_back(name + "_s", seconds_since(start));
}

DecisionCounts Analysis::count_decisions(const ClassMoments& moments, const Classifier* classifier, Dataset& data,
                                         const std::string& name) {
  std::optional<DecisionCounter> counter;
  exchange_.together("preparing decisions", [&] { counter.emplace(moments, classifier); });
  pass(data, name, [&](const MatrixView& features, const LabelView& labels) { counter->add(features, labels); });
  counter->reduce(ranks_);
  DecisionCounts counts;
  exchange_.together("reading out the decisions", [&] { counts = counter->finish(); });
  return counts;
}

void Analysis::open() {
  std::string inventory =
      std::to_string(static_cast<int>(request_.convention)) + ' ' + std::string(to_string(request_.precision)) + '\n';
  for (const auto& spec : request_.weights) inventory += "weights " + spec + '\n';
  inventory += "bias " + request_.bias + '\n';
  exchange_.together("opening the files", [&] {
    check_request();
    train_.emplace(request_.features, request_.labels, request_.rows);
    if (!request_.test_features.empty()) test_.emplace(request_.test_features, request_.test_labels);
    if (!request_.ood_features.empty()) ood_.emplace(request_.ood_features, FileList{});
    for (auto* data : {&train_, &test_, &ood_}) {
      inventory += '\n';
      if (!*data) continue;
      if ((*data)->dim() != train_->dim())
        throw DataError((*data)->name() + " has " + std::to_string((*data)->dim()) + " columns, but " + train_->name() +
                        " has " + std::to_string(train_->dim()));
      for (const auto& line : (*data)->inventory()) inventory += line + '\n';
    }
    head_.emplace(request_.weights, request_.bias);
    if (head_->classifier() != nullptr) classes_ = head_->classifier()->layers.back().rows;
    if (request_.classes > 0) classes_ = request_.classes;
  });
  exchange_.agree({train_->whole_rows(), train_->dim(), classes_, fingerprint(inventory.data(), inventory.size())},
                  "every rank has to be asked the same and to see the same files under the same names",
                  [](const Index* values) {
                    return std::to_string(values[0]) + " x " + std::to_string(values[1]) +
                           " features, K = " + (values[2] > 0 ? std::to_string(values[2]) : "from the labels") +
                           ", files #" + std::to_string(values[3] % 10000);
                  });
  for (auto* data : {&train_, &test_, &ood_})
    if (*data) (*data)->keep_part(ranks_.rank(), ranks_.size());
}

void Analysis::survey() {
  LabelSurvey labels, test_labels;
  exchange_.together("reading the labels", [&] {
    labels = train_->survey_labels();
    if (test_) test_labels = test_->survey_labels();
  });
  if (classes_ == 0) {
    const auto largest = exchange_.gather({labels.largest});
    classes_ = *std::max_element(largest.begin(), largest.end()) + 1;
  }
  exchange_.together("checking the labels", [&] {
    head_->check(*context_.backend(), train_->dim(), train_->name(), classes_);
    labels.check(classes_);
    test_labels.check(classes_);
    counts_ = std::move(labels.counts);
    counts_.resize(static_cast<std::size_t>(classes_));
  });
  exchange_.sum(counts_);
  if (std::count_if(counts_.begin(), counts_.end(), [](Index n) { return n > 0; }) < 2)
    throw DataError(train_->labels_name() + ": only one class has samples",
                    "the geometry of class means needs at least two classes");
}

std::optional<Report> Analysis::run() {
  const auto start = Clock::now();
  open();
  survey();
  timing_.emplace_back("open_s", seconds_since(start));
  const Classifier* classifier = head_->classifier();

  AccumulatorOptions options{classes_, train_->dim(), Statistics::full, {}, request_.precision};
  if (request_.convention == Convention::classavg)
    for (const Index count : counts_)
      options.scatter_weights.push_back(count > 0 ? 1 / static_cast<double>(count) : 1.0);
  const auto moments_of = [&](Dataset& data, const AccumulatorOptions& what, const std::string& name) {
    std::optional<Accumulator> accumulator;
    exchange_.together("preparing moments", [&] { accumulator.emplace(context_, what); });
    pass(data, name, [&](const MatrixView& features, const LabelView& y) { accumulator->add(features, y); });
    exchange_.together("checking " + data.name(), [&] {
      try {
        accumulator->check();  // a GPU may learn of a bad row only now
      } catch (const DataError& error) {
        throw data.named(error);
      }
    });
    const auto reduction = Clock::now();
    accumulator->reduce(ranks_);
    if (ranks_.size() > 1) timing_.emplace_back(name + "_reduce_s", seconds_since(reduction));
    std::optional<ClassMoments> moments;
    exchange_.together("reading out the moments", [&] { moments.emplace(accumulator->finish()); });
    return *moments;
  };
  const ClassMoments moments = moments_of(*train_, options, "moments");
  const DecisionCounts train_counts = count_decisions(moments, classifier, *train_, "decisions");
  std::optional<DecisionCounts> test_counts;
  if (test_) test_counts = count_decisions(moments, classifier, *test_, "test_decisions");
  std::vector<double> ood_mean;
  if (ood_) ood_mean = moments_of(*ood_, {1, train_->dim(), Statistics::means, {}, {}}, "out_of_distribution").means();

  Evidence evidence;
  evidence.classifier = classifier;
  evidence.train = &train_counts;
  evidence.test = test_counts ? &*test_counts : nullptr;
  evidence.lambda_w = request_.lambda_w;
  evidence.lambda_h = request_.lambda_h;
  evidence.ood_mean = ood_ ? &ood_mean : nullptr;
  Report report;
  exchange_.together("measuring", [&] {
    if (ranks_.rank() == 0) report = measure(moments, evidence, request_.convention);
  });
  if (ranks_.rank() != 0) return std::nullopt;

  const std::pair<const char*, FileList> sources[] = {{"features", request_.features},
                                                      {"labels", request_.labels},
                                                      {"weights", request_.weights},
                                                      {"bias", request_.bias},
                                                      {"test_features", request_.test_features},
                                                      {"test_labels", request_.test_labels},
                                                      {"ood_features", request_.ood_features}};
  for (const auto& [name, files] : sources)
    for (const auto& spec : files.specs) report.source.emplace_back(name, spec);
  if (const RowRange range = request_.rows; range.first != 0 || range.end >= 0)
    report.source.emplace_back("rows",
                               std::to_string(range.first) + ":" + std::to_string(range.first + train_->whole_rows()));
  if (ranks_.size() > 1) report.source.emplace_back("ranks", std::to_string(ranks_.size()));
  timing_.insert(timing_.end(), report.timing.begin(), report.timing.end());
  timing_.emplace_back("total_s", seconds_since(start));
  report.timing = std::move(timing_);
  return report;
}

}  // namespace

Report analyze(const Context& context, const AnalysisRequest& request) {
  return Analysis(context, request, {}).run().value();
}

std::optional<Report> analyze(const Context& context, const AnalysisRequest& request, const Communicator& ranks) {
  return Analysis(context, request, ranks).run();
}

}  // namespace ncollapse
