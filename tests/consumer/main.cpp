// Neural collapse of random features: three classes, each a tight cloud around its own mean.
#include <cmath>
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

  const ncollapse::Report report = ncollapse::measure(moments.finish());
  const double nc1 = report.find("nc1_pinv").value();
  std::cout << "nc1_pinv = " << nc1 << " on " << context.info().name << "\n";
  return std::isfinite(nc1) && nc1 > 0 ? 0 : 1;
}
