#include "host/classifier_files.hpp"

#include "host/classifier_product.hpp"
#include "host/input.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

ClassifierFiles::ClassifierFiles(const std::vector<std::string>& weights, const std::string& bias) {
  if (!bias.empty() && weights.empty()) throw UsageError("a bias needs the weights that it belongs to");
  for (const auto& spec : weights) files_.push_back(ArrayFile::open(spec, ArrayRole::weights));
  if (!bias.empty()) files_.push_back(ArrayFile::open(bias, ArrayRole::bias));
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const MatrixView view = files_[i].read_matrix(0, files_[i].rows());
    if (i < weights.size())
      classifier_.layers.push_back(view);
    else
      classifier_.bias = view;
  }
}

void ClassifierFiles::check(Backend& backend, Index dim, const std::string& features, Index classes) const {
  Index width = dim;
  std::string before = features;
  const auto layers = classifier_.layers.size();
  for (std::size_t l = 0; l < layers; ++l) {
    const ArrayFile& file = files_[l];
    if (file.cols() != width)
      throw DataError(file.name() + " is " + std::to_string(file.rows()) + " x " + std::to_string(file.cols()) +
                          ", but " + before + " gives " + std::to_string(width) + " values",
                      file.rows() == width
                          ? "weights are out x in, one row for every output: is this one transposed?"
                          : "weights are out x in and given in the order in which features meet them, W_1 first");
    width = file.rows();
    before = file.name();
  }
  if (layers > 0 && width != classes)
    throw DataError(before + " has " + std::to_string(width) + " rows for " + std::to_string(classes) + " classes",
                    "the last layer has one row for every class; check --classes and the order of --weights");
  if (layers < files_.size()) {
    const ArrayFile& bias = files_.back();
    if (bias.rows() != classes)
      throw DataError(
          bias.name() + " has " + std::to_string(bias.rows()) + " values for " + std::to_string(classes) + " classes",
          "one value for every class");
  }
  for (std::size_t l = 0; l < layers; ++l) checked_matrix(backend, classifier_.layers[l], files_[l].name());
  try {
    classifier_bias(backend, classifier_, classes);
  } catch (const DataError& error) {
    throw DataError(files_.back().name() + ": " + error.what(), error.hint());
  }
}

}  // namespace ncollapse
