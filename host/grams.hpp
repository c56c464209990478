// Gram matrices of a measurement, each computed once.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "host/backend.hpp"
#include "host/numbers.hpp"

namespace ncollapse {

/// Why nothing is said of a product whose norm is 0.
constexpr const char* kOrthogonal = "the product of classifier and means is 0, or rounding hides it";

/// Of the matrices it is asked about, which must not change while it lives. One is known by its memory; with that its
/// Gram matrix goes.
class Grams {
 public:
  explicit Grams(Backend& backend) : backend_(backend) {}

  /// Backend::gram of A [R x d]. Kept: min(R, d)^2 doubles.
  Matrix of(const Matrix& A) { return known(A).gram; }
  /// |A A^T|_F
  double norm(const Matrix& A) {
    Known& kept = known(A);
    if (kept.norm < 0) kept.norm = std::sqrt(backend_.inner(kept.gram, kept.gram));
    return kept.norm;
  }
  /// |A B^T|_F^2 for A, B [R x d], on the smaller side: nothing larger than min(R, d)^2 is stored.
  double product_squares(const Matrix& A, const Matrix& B) {
    if (A.rows > A.cols) return at_least_zero(backend_.inner(of(A), of(B)));
    const Matrix product = backend_.product(A, Transpose::no, B, Transpose::yes);
    return backend_.inner(product, product);
  }
  /// |A B^T|_F; 0 where rounding hides it.
  double product_norm(const Matrix& A, const Matrix& B) {
    return resolved_norm(product_squares(A, B), A, norm(A) * norm(B));
  }
  /// The root of squares = |A B^T|_F^2, 0 where rounding hides it; norms: |A A^T|_F |B B^T|_F, which it can't exceed.
  static double resolved_norm(double squares, const Matrix& A, double norms) {
    // The entries of a product are off by d eps |a||b| at most, where |A|^2 |B|^2 <= R |A A^T| |B B^T|. That of Gram
    // matrices is off by d eps |A A^T| |B B^T|: four digits are left.
    constexpr double kEps = std::numeric_limits<double>::epsilon();
    const auto rows = static_cast<double>(A.rows), dim = static_cast<double>(A.cols);
    const double rounding = A.rows > A.cols ? 1e4 * dim * kEps : rows * dim * kEps * dim * kEps;
    return squares > rounding * norms ? std::sqrt(squares) : 0;
  }

 private:
  struct Known {
    std::weak_ptr<double> owner;
    bool borrowed;  ///< the caller's memory, which outlives the measurement
    const double* data;
    Index rows;
    Matrix gram;
    double norm = -1;  ///< of gram; negative: not asked for yet
  };

  Known& known(const Matrix& A) {
    std::erase_if(known_, [](const Known& known) { return !known.borrowed && known.owner.expired(); });
    for (Known& known : known_)
      if (known.data == A.data() && known.rows == A.rows) return known;
    known_.push_back({A.memory, A.borrowed(), A.data(), A.rows, backend_.gram(A)});
    return known_.back();
  }

  Backend& backend_;
  std::vector<Known> known_;
};

}  // namespace ncollapse
