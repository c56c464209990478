// Rows that need no scores: near its own class mean a feature is decided by its distance from it.
//
// Let every score be s_j(h), with the lead s_k - s_j >= lead > 0 over all others at h = m_k, and h = m_k + e.
// Nearest centre: s_j = -|h - m_j|^2/2. With D_j = |m_j - m_k|, s_k - s_j = D_j^2/2 - e.(m_j - m_k) >= D_j (D_j/2 -
// |e|). The smallest D_j^2/2 is the lead, so the centre of k stays nearest while |e| < D/2, D = sqrt(2 lead).
// Classifier: s_j = w_j.h + b_j, s_k - s_j >= lead - |e| |w_k - w_j|, and |w_k - w_j| <= |w_k| + max|w|.
// Decisions are those of the formulas evaluated in double, so s_k - s_j has to exceed twice the rounding of a score,
// which takes its share of the radius. Collapse is features gathering in these balls: D is at least the shortest edge
// of the simplex, and |e| tends to 0. A radius costs the scores of its mean.
#pragma once

#include <algorithm>
#include <cmath>

#include "ncollapse/types.hpp"

namespace ncollapse {

/// Rows to a class that are decided before its radius is worth the scores of one row, or, for a steeper slope, of two.
inline constexpr Index kRowsPerRadius = 4;

/// Less than the whole, by more than a distance in double is off.
inline constexpr double kSafeShare = 1 - 1e-6;

/// While |h - m_k| is below this, no other centre is as near as m_k; 0 where nothing is certain. `lead`: of m_k's score
/// at h = m_k, a lower bound, infinite where there is no other centre. `size`: |m_k - o|. rounding(|h - o|) bounds the
/// error of a score evaluated in double, and does not fall.
template <class Rounding>
double safe_centre_radius(double lead, double size, Rounding rounding) {
  if (std::isinf(lead)) return lead;
  const double distance = std::sqrt(2 * lead), radius = distance / 2;
  const double safe = kSafeShare * (radius - 2 * rounding(size + radius) / distance);
  return safe > 0 ? safe : 0;  // not NaN
}

/// The same for the classifier's decision; `slope`: at least |w_k - w_j| for every j.
template <class Rounding>
double safe_classifier_radius(double lead, double slope, double size, Rounding rounding) {
  if (std::isinf(lead)) return lead;
  const double safe = kSafeShare * (lead - 2 * rounding(size + lead / slope)) / slope;
  return safe > 0 ? safe : 0;  // not NaN
}

/// Whether to look for such rows: always while one in eight is, else less and less often, for what is not collapsed now
/// may be later on, where samples come sorted by class. Decisions are the same either way.
class LookForNearRows {
 public:
  /// Asked before every block of rows.
  bool pays() {
    if (left_ == 0) return true;
    --left_;
    return false;
  }
  void found(Index near, Index rows) {
    pause_ = 8 * near >= rows ? 0 : std::min<Index>(2 * pause_ + 1, 63);
    left_ = pause_;
  }

 private:
  Index pause_ = 0, left_ = 0;  // blocks
};

}  // namespace ncollapse
