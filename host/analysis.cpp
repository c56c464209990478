// The whole job over files. Two passes over the training features: moments, then decisions, which need the final means.
#include "ncollapse/analysis.hpp"

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <optional>

#include "ncollapse/accumulator.hpp"
#include "ncollapse/array_file.hpp"
#include "ncollapse/decisions.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

constexpr Index kBatchBytes = Index{64} << 20;
constexpr Index kLabelBlock = Index{1} << 20;
constexpr Index kMaxClasses = Index{1} << 28;  // a label above is a mistake, not a class

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Features with their labels, in two files.
struct Split {
  ArrayFile features;
  std::optional<ArrayFile> labels;  // none: out-of-distribution features
};

Split open_split(const std::string& features, const std::string& labels) {
  Split split{ArrayFile::open(features, ArrayRole::features), std::nullopt};
  if (split.features.rank() != 2)
    throw DataError(split.features.name() + ": features must have two dimensions, samples x d");
  if (split.features.rows() == 0) throw DataError(split.features.name() + ": holds no samples");
  if (split.features.cols() == 0) throw DataError(split.features.name() + ": the features have no columns");
  if (labels.empty()) return split;
  split.labels = ArrayFile::open(labels, ArrayRole::labels);
  const Index count = split.labels->rows() * split.labels->cols();
  if (count != split.features.rows())
    throw DataError(split.features.name() + " has " + std::to_string(split.features.rows()) + " rows, but " +
                        split.labels->name() + " has " + std::to_string(count) + " labels",
                    "one label for every feature row");
  return split;
}

/// The labels' range and counts, read before the features: it finds bad labels early, gives K, and costs little.
struct LabelSurvey {
  Index largest = -1, largest_row = -1;
  std::vector<Index> counts;  // up to the largest label
};

LabelSurvey survey(ArrayFile& labels, Index total) {
  LabelSurvey result;
  for (Index first = 0; first < total; first += kLabelBlock) {
    const LabelView block = labels.read_labels(first, std::min(kLabelBlock, total - first));
    for (Index i = 0; i < block.size; ++i) {
      const Index label = label_at(block, i);
      if (label < 0 || label >= kMaxClasses)
        throw DataError(
            labels.name() + ": the label at row " + std::to_string(first + i) + " is " + std::to_string(label),
            "labels are class numbers from 0 to K-1");
      if (label >= static_cast<Index>(result.counts.size())) result.counts.resize(static_cast<std::size_t>(label) + 1);
      ++result.counts[label];
      if (label > result.largest) {
        result.largest = label;
        result.largest_row = first + i;
      }
    }
  }
  return result;
}

void check_largest(const ArrayFile& labels, const LabelSurvey& found, Index classes) {
  if (found.largest < classes) return;
  throw DataError(labels.name() + ": the label at row " + std::to_string(found.largest_row) + " is " +
                      std::to_string(found.largest) + ", but there are " + std::to_string(classes) + " classes",
                  "labels are class numbers from 0 to K-1; give --classes or the classifier that fits");
}

/// Runs `body` and puts the file's name before what the library says about its content.
template <class Body>
void naming(const std::string& name, const Body& body) {
  try {
    body();
  } catch (const DataError& error) {
    throw DataError(name + ": " + error.what(), error.hint());
  }
}

/// A file of weights or a bias, held as long as its view is used.
struct Weights {
  std::vector<ArrayFile> files;
  Classifier classifier;
};

Weights open_weights(const AnalysisRequest& request) {
  Weights weights;
  for (const auto& spec : request.weights) {
    ArrayFile file = ArrayFile::open(spec, ArrayRole::weights);
    if (file.rank() != 2) throw DataError(file.name() + ": a layer's weights must have two dimensions, out x in");
    weights.files.push_back(std::move(file));
  }
  if (!request.bias.empty()) {
    weights.files.push_back(ArrayFile::open(request.bias, ArrayRole::bias));
    ArrayFile& file = weights.files.back();
    if (file.rank() == 2 && file.rows() != 1 && file.cols() != 1)
      throw DataError(file.name() + ": a bias is a vector, this is " + std::to_string(file.rows()) + " x " +
                      std::to_string(file.cols()));
  }
  for (std::size_t i = 0; i < weights.files.size(); ++i) {
    ArrayFile& file = weights.files[i];
    const MatrixView view = file.read_matrix(0, file.rows());
    if (i < request.weights.size())
      weights.classifier.layers.push_back(view);
    else
      weights.classifier.bias = view;
  }
  return weights;
}

// Checked here as well as in the library, so that the message can name the files.
void check_weights(const Weights& weights, const AnalysisRequest& request, Index dim, Index classes,
                   const std::string& features) {
  Index width = dim;
  std::string before = features;
  const auto layers = request.weights.size();
  for (std::size_t l = 0; l < layers; ++l) {
    const ArrayFile& file = weights.files[l];
    if (file.cols() != width)
      throw DataError(file.name() + " is " + std::to_string(file.rows()) + " x " + std::to_string(file.cols()) +
                          ", but " + before + " gives " + std::to_string(width) + " values",
                      "weights are out x in and given in the order in which features meet them, W_1 first");
    width = file.rows();
    before = file.name();
  }
  if (layers > 0 && width != classes)
    throw DataError(before + " has " + std::to_string(width) + " rows for " + std::to_string(classes) + " classes",
                    "the last layer has one row for every class; check --classes and the order of --weights");
  if (layers < weights.files.size()) {
    const ArrayFile& bias = weights.files.back();
    if (bias.rows() * bias.cols() != classes)
      throw DataError(bias.name() + " has " + std::to_string(bias.rows() * bias.cols()) + " values for " +
                          std::to_string(classes) + " classes",
                      "one value for every class");
  }
}

class Analysis {
 public:
  Analysis(const Context& context, const AnalysisRequest& request) : context_(context), request_(request) {}
  Report run();

 private:
  /// One pass: hands every batch to `add` and tells how far it is.
  template <class Add>
  void pass(Split& split, const std::string& name, const Add& add);
  DecisionCounts count_decisions(const ClassMoments& moments, const Classifier* classifier, Split& split,
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
  if (!request_.bias.empty() && request_.weights.empty())
    throw UsageError("a bias needs the weights that it belongs to");
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
void Analysis::pass(Split& split, const std::string& name, const Add& add) {
  const auto start = Clock::now();
  const Index rows = split.features.rows(), row_bytes = split.features.row_bytes();
  const Index batch = request_.batch_rows > 0 ? request_.batch_rows : std::max<Index>(kBatchBytes / row_bytes, 256);
  std::vector<std::int64_t> zeros;
  for (Index first = 0; first < rows; first += batch) {
    const Index count = std::min(batch, rows - first);
    LabelView labels;
    if (split.labels) {
      labels = split.labels->read_labels(first, count);
    } else {
      zeros.resize(static_cast<std::size_t>(count));
      labels = view(zeros.data(), count);
    }
    const MatrixView features = split.features.read_matrix(first, count);
    naming(split.features.name(), [&] { add(features, labels); });
    if (request_.on_progress)
      request_.on_progress({name, first + count, rows, (first + count) * row_bytes, rows * row_bytes});
  }
  timing_.emplace_back(name + "_s", seconds_since(start));
}

DecisionCounts Analysis::count_decisions(const ClassMoments& moments, const Classifier* classifier, Split& split,
                                         const std::string& name) {
  DecisionCounter counter(moments, classifier);
  pass(split, name, [&](const MatrixView& features, const LabelView& labels) { counter.add(features, labels); });
  return counter.finish();
}

Report Analysis::run() {
  const auto start = Clock::now();
  check_request();
  Split train = open_split(request_.features, request_.labels);
  const Index dim = train.features.cols();
  const auto same_dim = [&](const Split& split) {
    if (split.features.cols() != dim)
      throw DataError(split.features.name() + " has " + std::to_string(split.features.cols()) + " columns, but " +
                      train.features.name() + " has " + std::to_string(dim));
  };
  std::optional<Split> test, ood;
  if (!request_.test_features.empty()) test = open_split(request_.test_features, request_.test_labels);
  if (!request_.ood_features.empty()) ood = open_split(request_.ood_features, "");
  if (test) same_dim(*test);
  if (ood) same_dim(*ood);
  Weights weights = open_weights(request_);
  const Classifier* classifier = request_.weights.empty() ? nullptr : &weights.classifier;

  LabelSurvey labels = survey(*train.labels, train.features.rows());
  Index classes = request_.classes;
  if (classes == 0) classes = classifier != nullptr ? classifier->layers.back().rows : labels.largest + 1;
  check_weights(weights, request_, dim, classes, train.features.name());
  check_largest(*train.labels, labels, classes);
  if (test) check_largest(*test->labels, survey(*test->labels, test->features.rows()), classes);
  labels.counts.resize(static_cast<std::size_t>(classes));
  if (const auto seen = std::count_if(labels.counts.begin(), labels.counts.end(), [](Index n) { return n > 0; });
      seen < 2)
    throw DataError(train.labels->name() + ": only one class has samples",
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

  report.dtype = train.features.dtype_name();
  report.source = {{"features", request_.features}, {"labels", request_.labels}};
  for (const auto& file : request_.weights) report.source.emplace_back("weights", file);
  const std::pair<const char*, const std::string*> optional_files[] = {{"bias", &request_.bias},
                                                                       {"test_features", &request_.test_features},
                                                                       {"test_labels", &request_.test_labels},
                                                                       {"ood_features", &request_.ood_features}};
  for (const auto& [name, file] : optional_files)
    if (!file->empty()) report.source.emplace_back(name, *file);
  timing_.insert(timing_.end(), report.timing.begin(), report.timing.end());
  timing_.emplace_back("total_s", seconds_since(start));
  report.timing = std::move(timing_);
  return report;
}

}  // namespace

Report analyze(const Context& context, const AnalysisRequest& request) { return Analysis(context, request).run(); }

}  // namespace ncollapse
