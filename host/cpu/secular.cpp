// The secular equation sum_i g_i/(s_i - x) = 0 by LAPACK's dlaed4, which finds the eigenvalues of diag(d) + rho z z^T,
// z a unit vector, together with all d_j - lambda. Multiplying the equation by x and using x g/(s - x) = g s/(s - x) -
// g gives 1 - sum_i g_i s_i/(s_i - x) / sum g = 0 with the additional root x = 0: the eigenvalues lambda = -x of
// -diag(s) + z z^T, z_i^2 = g_i s_i / sum g. That form loses digits of roots far below the largest size (its sum nearly
// cancels the 1), so each root is polished by Newton steps on the equation itself, in its offset from the nearest pole.
#include <lapacke.h>

#include <cmath>
#include <limits>

#include "host/theory/structure.hpp"
#include "ncollapse/error.hpp"

extern "C" void dlaed4_(const lapack_int* n, const lapack_int* i, const double* d, const double* z, double* delta,
                        const double* rho, double* lambda, lapack_int* info);

namespace ncollapse {

namespace {

// sum_i g_i/(s_i - x) increases from pole to pole; from dlaed4's root one or two steps reach working precision, a few
// more where sizes are 1e13 times each other.
void polish(SecularRoot& root, const std::vector<Index>& sizes, const std::vector<double>& weights) {
  constexpr double kSettled = 8 * std::numeric_limits<double>::epsilon();
  double change = 1;
  for (int step = 0; step < 8 && change > kSettled; ++step) {
    double value = 0, slope = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const double gap = static_cast<double>(sizes[i] - sizes[root.pole]) - root.offset, term = weights[i] / gap;
      value += term;
      slope += term / gap;
    }
    const double next = root.offset - value / slope;
    if (!(next * root.offset > 0)) return;  // never across the pole
    change = std::abs(next / root.offset - 1);
    root.offset = next;
  }
}

}  // namespace

std::vector<SecularRoot> secular_roots(const std::vector<Index>& sizes, const std::vector<double>& weights) {
  const auto count = static_cast<Index>(sizes.size());
  std::vector<SecularRoot> roots;
  if (count < 2) return roots;
  if (count == 2) {  // linear; and dlaed4 answers differently here
    const double width = static_cast<double>(sizes[0] - sizes[1]), total = weights[0] + weights[1];
    // x = s_0 - w g_0/(g_0+g_1) = s_1 + w g_1/(g_0+g_1)
    if (weights[0] < weights[1])
      roots.push_back({0, -width * weights[0] / total});
    else
      roots.push_back({1, width * weights[1] / total});
    return roots;
  }
  double total = 0, rho = 0;
  for (Index i = 0; i < count; ++i) {
    total += weights[i];
    rho += weights[i] * static_cast<double>(sizes[i]);
  }
  std::vector<double> d(sizes.size()), z(sizes.size()), delta(sizes.size());
  for (Index i = 0; i < count; ++i) {
    d[i] = -static_cast<double>(sizes[i]);
    z[i] = std::sqrt(weights[i] * static_cast<double>(sizes[i]) / rho);
  }
  rho /= total;
  const auto n = static_cast<lapack_int>(count);
  for (Index r = 0; r + 1 < count; ++r) {
    const auto which = static_cast<lapack_int>(r + 1);
    lapack_int info = 0;
    double lambda = 0;
    dlaed4_(&n, &which, d.data(), z.data(), delta.data(), &rho, &lambda, &info);
    if (info != 0)
      throw Error(ErrorKind::internal, "the secular equation (dlaed4) did not converge for root " + std::to_string(r));
    const Index pole = std::abs(delta[r]) <= std::abs(delta[r + 1]) ? r : r + 1;
    roots.push_back({pole, delta[pole]});  // delta = d - lambda = x - s
    polish(roots.back(), sizes, weights);
  }
  return roots;
}

}  // namespace ncollapse
