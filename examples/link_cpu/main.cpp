// Neural collapse of features that lie in host arrays: here of 60, 30 and 10 samples, each close to its class's mean.
#include <array>
#include <cstdint>
#include <iostream>
#include <random>
#include <vector>

#include <ncollapse/ncollapse.hpp>

int main() try {
  constexpr std::int64_t classes = 3, dim = 8;
  constexpr std::array<int, classes> counts{60, 30, 10};
  std::mt19937 random(1);
  std::normal_distribution<double> noise(0.0, 0.05);
  std::vector<double> features;      // [N x dim], a sample a row: what the last layer of your network gives
  std::vector<std::int64_t> labels;  // [N]
  for (std::int64_t k = 0; k < classes; ++k)
    for (int i = 0; i < counts[k]; ++i) {
      labels.push_back(k);
      for (std::int64_t j = 0; j < dim; ++j) features.push_back((j == k ? 1.0 : 0.0) + noise(random));
    }

  const ncollapse::Context context(ncollapse::Device::parse("cpu"));
  ncollapse::Accumulator moments(context, {.classes = classes, .dim = dim});
  moments.add(ncollapse::view(features.data(), std::ssize(labels), dim),  // call it as often as you have batches
              ncollapse::view(labels.data(), std::ssize(labels)));
  const ncollapse::Report report = ncollapse::measure(moments.finish());
  std::cout << ncollapse::to_table(report);
  return report.at("nc1_pinv") < 0.1 ? 0 : 1;
} catch (const ncollapse::Error& error) {
  std::cerr << "link_cpu: " << error.what() << "\n";
  return 1;
}
