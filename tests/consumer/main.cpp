// Three classes of random features, each a tight cloud around its own mean, under a classifier that points at the
// means.
#include <cstdint>
#include <iostream>
#include <random>
#include <vector>

#include <ncollapse/ncollapse.hpp>

int main() {
  constexpr std::int64_t classes = 3, dim = 16, batch = 100, batches = 5;
  std::mt19937 random(1);
  std::normal_distribution<float> noise(0.0f, 0.1f);

  ncollapse::Context context;  // CUDA where there is a GPU, else the CPU
  ncollapse::Accumulator moments(context, {.classes = classes, .dim = dim});
  for (std::int64_t step = 0; step < batches; ++step) {  // your data loader
    std::vector<float> features(batch * dim);            // [batch x dim], one sample per row
    std::vector<std::int64_t> labels(batch);
    for (std::int64_t i = 0; i < batch; ++i) {
      labels[i] = i % classes;
      for (std::int64_t j = 0; j < dim; ++j) features[i * dim + j] = (j == labels[i] ? 1.0f : 0.0f) + noise(random);
    }
    moments.add(ncollapse::view(features.data(), batch, dim), ncollapse::view(labels.data(), batch));
  }

  std::vector<float> weights(classes * dim);  // [classes x dim]: one linear layer, no bias
  for (std::int64_t k = 0; k < classes; ++k) weights[k * dim + k] = 1.0f;
  const ncollapse::Classifier head{.layers = {ncollapse::view(weights.data(), classes, dim)}};
  const ncollapse::Report report = ncollapse::measure(moments.finish(), {.classifier = &head});
  for (const ncollapse::Metric& metric : report.metrics) std::cout << metric.key << " = " << metric.value << "\n";
  return report.at("nc1_pinv") < 0.1 && report.at("nc3_cos_min") > 0.7 ? 0 : 1;
}
