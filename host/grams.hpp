// Gram matrices of a measurement, each computed once.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "host/backend.hpp"
#include "host/numbers.hpp"

namespace ncollapse {

/// Of the matrices it is asked about, which must not change while it lives. One is known by its memory; with that its
/// Gram matrix goes.
class Grams {
 public:
  explicit Grams(Backend& backend) : backend_(backend) {}

  /// Backend::gram of A [R x d]. Kept: min(R, d)^2 doubles.
  Matrix of(const Matrix& A) {
    std::erase_if(known_, [](const Known& known) { return !known.borrowed && known.owner.expired(); });
    for (const Known& known : known_)
      if (known.data == A.data() && known.rows == A.rows) return known.gram;
    known_.push_back({A.memory, A.memory.use_count() == 0, A.data(), A.rows, backend_.gram(A)});
    return known_.back().gram;
  }
  /// |A B^T|_F for A, B [R x d], on the smaller side: nothing larger than min(R, d)^2 is stored.
  double product_norm(const Matrix& A, const Matrix& B) {
    if (A.rows <= A.cols && A.data() != B.data()) {
      const Matrix product = backend_.product(A, Transpose::no, B, Transpose::yes);
      return std::sqrt(backend_.inner(product, product));
    }
    return std::sqrt(at_least_zero(backend_.inner(of(A), of(B))));
  }

 private:
  struct Known {
    std::weak_ptr<double> owner;
    bool borrowed;  ///< the caller's memory, which outlives the measurement
    const double* data;
    Index rows;
    Matrix gram;
  };

  Backend& backend_;
  std::vector<Known> known_;
};

}  // namespace ncollapse
