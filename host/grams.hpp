// Gram matrices of a measurement, each computed once.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "host/backend.hpp"
#include "host/numbers.hpp"

namespace ncollapse {

/// Why nothing is said of a product whose norm is 0.
constexpr const char* kOrthogonal = "the product of classifier and means is 0";

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
    if (kept.norm < 0) kept.norm = backend_.norm(kept.gram);
    return kept.norm;
  }
  /// |A B^T|_F^2 for A, B [R x d], on the smaller side: nothing larger than min(R, d)^2 is stored.
  double product_squares(const Matrix& A, const Matrix& B) {
    if (A.rows > A.cols) return at_least_zero(backend_.inner(of(A), of(B)));
    const Matrix product = backend_.product(A, Transpose::no, B, Transpose::yes);
    return backend_.inner(product, product);
  }
  /// |A B^T|_F; 0 where it is rounding alone.
  double product_norm(const Matrix& A, const Matrix& B) {
    double squares = product_squares(A, B);
    const double norms = norm(A) * norm(B);
    if (A.rows > A.cols && cancels(squares, A.cols, norms)) {  // A = Q R, B = Q' R': the norm is that of R R'^T
      const Matrix product =
          backend_.product(backend_.triangular_factor(A), Transpose::no, backend_.triangular_factor(B), Transpose::yes);
      squares = backend_.inner(product, product);
    }
    // The entries of a product are off by d eps |a||b| at most, where |A|^2 |B|^2 <= R |A A^T| |B B^T|.
    const double rounding = static_cast<double>(A.cols) * std::numeric_limits<double>::epsilon();
    return squares > static_cast<double>(A.rows) * rounding * rounding * norms ? std::sqrt(squares) : 0;
  }
  /// Whether |A B^T|_F^2, as the product of Gram matrices of side d, has less than four digits: it is off by d eps
  /// |A A^T| |B B^T|. norms: these.
  static bool cancels(double squares, Index dim, double norms) {
    return !(squares > 1e4 * static_cast<double>(dim) * std::numeric_limits<double>::epsilon() * norms);
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

/// | A/size - B/other | for two matrices of one shape and these norms, neither 0.
inline double direction_gap(Backend& backend, const Matrix& A, double size, const Matrix& B, double other) {
  Matrix gap = backend.matrix(A.rows, A.cols);
  backend.combine(1 / size, A, -1 / other, B, gap);
  return backend.norm(gap);
}

}  // namespace ncollapse
