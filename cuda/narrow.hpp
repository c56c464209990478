// Rows as 16-bit numbers, which products on tensor cores take: as they lie, where they have such a type, or rounded.
#pragma once

#include "cuda/element.hpp"
#include "cuda/validate.hpp"

namespace ncollapse::cuda {

inline constexpr Index kHalfPadding = 64;  ///< columns of rounded rows are padded with zeros to a multiple of it
inline Index padded_columns(Index dim) { return (dim + kHalfPadding - 1) / kHalfPadding * kHalfPadding; }

/// Rows as 16-bit numbers times a power of two; device pointers.
struct NarrowRows {
  Dtype type;        ///< f16 or bf16
  const void* rows;  ///< row i at element i * stride
  Index stride;
  const double* scales;  ///< [n] F: row i is scales_i rows_i and what was lost; null: all 1
  const double* norms;   ///< [n] of what the row stands for
  const double* lost;    ///< [n] norm of the difference; null: all 0
};
/// Whether cuBLAS may read the rows as they lie: a 16-bit type, every row at a multiple of 16 bytes.
bool can_be_raw(const FeatureBlock& x);

/// The power of two that a norm gives a row is kept in [2^least, 2^most].
struct Exponents {
  int least = -1000, most = 1000;
};
/// Rounds x - origin (null: 0) into rows [n x padded] of the type, n the rows of x or the `count` that are listed, with
/// zeros beyond the d columns; scales, norms and lost [n]. origin [padded], zeros beyond d; padded is
/// padded_columns(d). To bf16 from doubles only. A row of zeros takes the least power of two. Rows of doubles are
/// shifted in double, others in single precision. lost is a bound, all errors of the rounding included. Adds to
/// record->nonfinite (null: nobody asks) where x holds NaN or infinite values; how many is another matter.
void launch_narrow_rows(cudaStream_t stream, const FeatureBlock& x, const float* origin, Index padded, Dtype type,
                        void* rows, double* scales, double* norms, double* lost, Exponents exponents = {},
                        BatchRecord* record = nullptr, const std::int32_t* list = nullptr, Index count = 0);
// Rows within the safe radius of their class (host/safe_radius.hpp) need no scores. What is measured is |h - o - C c'|,
// c' the 16-bit numbers of the mean's c_k = m_k - o and C their power of two, in single precision (double for rows of
// doubles). Of h - o each element is rounded once, the difference again, C c' is off by what rounding took from c_k,
// and up to 32 squares are added one after the other, which takes 2^-19 from their sum: with e = h - m_k,
//   |e| (1 - 2^-24) <= measured (1 + 2^-19.9) + lost_k + 2^-24 |c_k| + sqrt(d) 2^-75,
// the last term for squares that underflow. near_radius() is what the measured distance has to be below.

/// Class k's rows are near their mean where |x - origin - unit mean| <= sqrt(square), evaluated as below.
struct alignas(16) Ball {
  double square = 0;           ///< 0: no row is
  std::int32_t candidate = 0;  ///< whose mean it is
};
/// What the measured distance has to be below for |h - m_k| < `radius`; 0 if there is no such distance. `size`: |c_k|,
/// `lost`: what rounding took from it.
double near_radius(double radius, double size, double lost, Index dim);
/// A block's rows, and the means that they may be near to; device pointers.
struct NearRows {
  const std::uint32_t* labels = nullptr;  ///< [rows] below K
  const Ball* balls = nullptr;            ///< [K]
  Dtype type = Dtype::f16;                ///< of the means: f16 or bf16
  const std::uint16_t* means = nullptr;   ///< [candidates x padded]
  Index padded = 0;                       ///< padded_columns(d)
  float unit = 1;
  const float* origin = nullptr;        ///< [padded]
  std::int32_t* centre = nullptr;       ///< [rows] of those that are near: the candidate
  std::int32_t* classifier = nullptr;   ///< [rows] of those that are near: the label; or null
  std::int32_t* far = nullptr;          ///< [rows] the others, in any order
  unsigned long long* count = nullptr;  ///< += how many others
};
/// One reading of a block: tells near rows from the others. Adds to record->nonfinite (null: nobody asks) where it
/// holds NaN or infinite values; how many is another matter.
void launch_find_near_rows(cudaStream_t stream, const FeatureBlock& x, const NearRows& near, BatchRecord* record);
/// One reading of a block: adds to record->nonfinite in the same way, and, of 16-bit types, norms [rows]: bounds, at
/// most 2^-20 beyond the norm (bf16: and sqrt(d) 2^-74), not finite where a value is not, nor in bf16 where squares
/// overflow, for values from 2^62 on. Either may be null.
void launch_check_rows(cudaStream_t stream, const FeatureBlock& x, double* norms, BatchRecord* record);
/// Copies rows list[0 .. count-1] of 16-bit numbers to `rows` [count x padded], and takes their norms [count] as
/// launch_check_rows does. What is beyond the d columns stays.
void launch_gather_rows(cudaStream_t stream, const FeatureBlock& x, const std::int32_t* list, Index count, Index padded,
                        std::uint16_t* rows, double* norms);

}  // namespace ncollapse::cuda
