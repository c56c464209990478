// The whole job over files. Two passes over the training features: moments, then decisions, which need the final means.
#include "ncollapse/analysis.hpp"

#include <algorithm>
#include <chrono>
#include <optional>

#include "host/classifier_files.hpp"
#include "host/dataset.hpp"
#include "ncollapse/accumulator.hpp"
#include "ncollapse/decisions.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Analysis {
 public:
  Analysis(const Context& context, const AnalysisRequest& request) : context_(context), request_(request) {}
  Report run();

 private:
  /// One pass: hands every batch to `add` and tells how far it is.
  template <class Add>
  void pass(Dataset& data, const std::string& name, const Add& add);
  DecisionCounts count_decisions(const ClassMoments& moments, const Classifier* classifier, Dataset& data,
                                 const std::string& name);
  void check_request() const;

  Context context_;
  const AnalysisRequest& request_;
  std::vector<std::pair<std::string, double>> timing_;
};

void Analysis::check_request() const {
  if (request_.features.empty() || request_.labels.empty()) throw UsageError("features and labels are needed");
  if (request_.test_features.empty() != request_.test_labels.empty())
    throw UsageError("test features and test labels are given together or not at all");
  if (request_.lambda_w.empty() != (request_.lambda_h == 0))
    throw UsageError("the weight decays of layers and features are given together or not at all");
  if (!request_.lambda_w.empty() && request_.weights.empty())
    throw UsageError("weight decays need the weights that they act on");
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
  const Index rows = data.rows(), row_bytes = data.row_bytes();
  data.stream(0, data.batch_rows(request_.batch_rows), add, [&](Index done) {
    if (request_.on_progress) request_.on_progress({name, done, rows, done * row_bytes, rows * row_bytes});
  });
  timing_.emplace_back(name + "_s", seconds_since(start));
}

DecisionCounts Analysis::count_decisions(const ClassMoments& moments, const Classifier* classifier, Dataset& data,
                                         const std::string& name) {
  DecisionCounter counter(moments, classifier);
  pass(data, name, [&](const MatrixView& features, const LabelView& labels) { counter.add(features, labels); });
  return counter.finish();
}

Report Analysis::run() {
  const auto start = Clock::now();
  check_request();
  Dataset train(request_.features, request_.labels, request_.rows);
  const Index dim = train.dim();
  const auto same_dim = [&](const Dataset& data) {
    if (data.dim() != dim)
      throw DataError(data.name() + " has " + std::to_string(data.dim()) + " columns, but " + train.name() + " has " +
                      std::to_string(dim));
  };
  std::optional<Dataset> test, ood;
  if (!request_.test_features.empty()) test.emplace(request_.test_features, request_.test_labels);
  if (!request_.ood_features.empty()) ood.emplace(request_.ood_features, FileList{});
  if (test) same_dim(*test);
  if (ood) same_dim(*ood);
  const ClassifierFiles head(request_.weights, request_.bias);
  const Classifier* classifier = head.classifier();

  LabelSurvey labels = train.survey_labels();
  Index classes = request_.classes;
  if (classes == 0) classes = classifier != nullptr ? classifier->layers.back().rows : labels.largest + 1;
  head.check(dim, train.name(), classes);
  labels.check(classes);
  if (test) test->survey_labels().check(classes);
  labels.counts.resize(static_cast<std::size_t>(classes));
  if (const auto seen = std::count_if(labels.counts.begin(), labels.counts.end(), [](Index n) { return n > 0; });
      seen < 2)
    throw DataError(train.labels_name() + ": only one class has samples",
                    "the geometry of class means needs at least two classes");
  timing_.emplace_back("open_s", seconds_since(start));

  AccumulatorOptions options{classes, dim, Statistics::full, {}};
  if (request_.convention == Convention::classavg)
    for (const Index count : labels.counts)
      options.scatter_weights.push_back(count > 0 ? 1 / static_cast<double>(count) : 1.0);
  const ClassMoments moments = [&] {
    Accumulator accumulator(context_, options);
    pass(train, "moments", [&](const MatrixView& features, const LabelView& y) { accumulator.add(features, y); });
    return accumulator.finish();
  }();

  const DecisionCounts train_counts = count_decisions(moments, classifier, train, "decisions");
  std::optional<DecisionCounts> test_counts;
  if (test) test_counts = count_decisions(moments, classifier, *test, "test_decisions");
  std::vector<double> ood_mean;
  if (ood) {
    Accumulator accumulator(context_, {1, dim, Statistics::means, {}});
    pass(*ood, "out_of_distribution",
         [&](const MatrixView& features, const LabelView& y) { accumulator.add(features, y); });
    ood_mean = accumulator.finish().means();
  }

  Evidence evidence;
  evidence.classifier = classifier;
  evidence.train = &train_counts;
  evidence.test = test_counts ? &*test_counts : nullptr;
  evidence.lambda_w = request_.lambda_w;
  evidence.lambda_h = request_.lambda_h;
  evidence.ood_mean = ood ? &ood_mean : nullptr;
  Report report = measure(moments, evidence, request_.convention);

  report.dtype = train.dtype_name();
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
    report.source.emplace_back("rows", std::to_string(range.first) + ":" + std::to_string(range.first + train.rows()));
  timing_.insert(timing_.end(), report.timing.begin(), report.timing.end());
  timing_.emplace_back("total_s", seconds_since(start));
  report.timing = std::move(timing_);
  return report;
}

}  // namespace

Report analyze(const Context& context, const AnalysisRequest& request) { return Analysis(context, request).run(); }

}  // namespace ncollapse
