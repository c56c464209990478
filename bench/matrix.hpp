// The benchmark matrix: the shapes that measurements of neural collapse have in practice.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ncollapse/types.hpp"

namespace ncollapse::bench {

/// How samples spread over classes.
enum class Sizes {
  equal,         ///< every class alike
  zipf,          ///< n_k ~ 1/(k+1), words of a text
  power_law,     ///< from the largest class to 1/500 of it, linear in the logarithms
  one_dominant,  ///< 99 % in one class, the others alike
  one_to_999,    ///< two classes
  singletons,    ///< every class has one sample
};
std::string_view to_string(Sizes sizes);

struct Shape {
  std::string id;
  Index samples = 0, classes = 0, dim = 0;
  Dtype dtype = Dtype::f32;
  Sizes sizes = Sizes::equal;
  bool sorted = false;   ///< labels ascending; else shuffled
  double sigma = 1e-2;   ///< noise over mean norm
  Index batch_rows = 0;  ///< 0: as the device likes
  bool on_host = false;  ///< features stay in host memory, though the device has its own

  Index row_bytes() const { return dim * size_of(dtype); }
};

struct Case {
  Shape shape;
  std::string_view about;
  std::vector<std::string_view> operations;
};

const std::vector<Case>& matrix();

struct Operation {
  std::string_view name, about;
};
const std::vector<Operation>& operations();

}  // namespace ncollapse::bench
