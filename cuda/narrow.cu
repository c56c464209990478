#include <cfloat>
#include <cmath>
#include <type_traits>

#include "cuda/device.hpp"
#include "cuda/narrow.hpp"

namespace ncollapse::cuda {
namespace {

constexpr int kNormExponent = 6;     // of a rounded row: norms in [64, 128)
constexpr int kFloatExponent = 120;  // powers of two that scale floats without leaving their range
constexpr int kInFlight = 4;         // packets that a lane asks for at once

__device__ Half narrow(float x, Half) { return to_half(x); }
__device__ Bfloat16 narrow(float x, Bfloat16) { return to_bfloat16(x); }

/// Sum over as many neighbouring lanes as share a row.
__device__ double lanes_sum(double value, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

/// What rows of T are shifted in.
template <class T>
using Shifted = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// The packet of a row from column col on, less the origin (null: 0). Beyond the row both are 0.
template <class T>
__device__ void shift(const Packet<T>& packet, const float* origin, Index col, Index padded,
                      Shifted<T> (&z)[kPacket<T>]) {
  constexpr int V = kPacket<T>;
  Packet<float> away[V / 4]{};
  if (origin && col < padded)
    for (int part = 0; part < V / 4; ++part)
      away[part] = *reinterpret_cast<const Packet<float>*>(origin + col + 4 * part);
  for (int v = 0; v < V; ++v) {
    const float o = away[v / 4].value[v % 4];
    if constexpr (std::is_same_v<T, double>)
      z[v] = packet.value[v] - static_cast<double>(o);
    else
      z[v] = to_float(packet.value[v]) - o;
  }
}

template <class T>
struct alignas(kPacket<T> * 2) NarrowPacket {
  std::uint16_t bits[kPacket<T>];
};

/// 2^log2 lanes share a row. Single precision holds the squares of halves and of eight of them, those of bf16 numbers
/// below 2^-63 in part. N: of the means that rows may be near to; void: none.
template <class T, class N>
__global__ void check_rows(Rows<T> x, int log2, double* norms, BatchRecord* record, const NearRows near) {
  constexpr int V = kPacket<T>;
  constexpr bool kNear = !std::is_void_v<N>;
  using S = Shifted<T>;
  const int lanes = 1 << log2, lane = lane_id() & (lanes - 1);
  const Index step = lanes * V, per_warp = kWarp >> log2;
  const double lost = std::is_same_v<T, Bfloat16> ? sqrt(static_cast<double>(x.cols)) * 0x1p-74 : 0;
  S check = 0;  // 0 times everything
  for (Index base = warp_id() * per_warp; base < x.rows; base += warp_count() * per_warp) {
    const Index i = base + (lane_id() >> log2);
    const T* row = x.row(min(i, x.rows - 1));
    double square = 0, distance = 0;
    Ball ball;
    std::uint32_t label = 0;
    const std::uint16_t* mean = nullptr;
    if constexpr (kNear) {
      label = near.labels[min(i, x.rows - 1)];
      ball = near.balls[label];
      mean = near.means + ball.candidate * near.padded;
    }
    for (Index first = i < x.rows ? lane * V : x.cols; first < x.cols; first += kInFlight * step) {
      Packet<T> packet[kInFlight];
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kInFlight; ++u) packet[u] = x.read(row, first + u * step);
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kInFlight; ++u) {
        if constexpr (kNear) {
          const Index col = first + u * step;
          NarrowPacket<T> theirs{};
          if (col < near.padded) theirs = *reinterpret_cast<const NarrowPacket<T>*>(mean + col);
          S z[V], part = 0;
          shift(packet[u], near.origin, col, near.padded, z);
          for (int v = 0; v < V; ++v) {
            const S gap = z[v] - static_cast<S>(near.unit) * static_cast<S>(to_float(N{theirs.bits[v]}));
            part += gap * gap;
          }
          distance += static_cast<double>(part);
        }
        S part = 0;
        for (int v = 0; v < V; ++v) {
          S value;
          if constexpr (std::is_same_v<S, double>)
            value = packet[u].value[v];
          else
            value = to_float(packet[u].value[v]);
          check += value * 0;
          if (sizeof(T) == 2) part += value * value;
        }
        if (sizeof(T) == 2) square += static_cast<double>(part);
      }
    }
    const bool answers = lane == 0 && i < x.rows;
    if constexpr (kNear) {
      distance = lanes_sum(distance, lanes);
      const bool is_near = distance < ball.square;  // not NaN
      const unsigned others = __ballot_sync(kAllLanes, answers && !is_near);
      const Count at = append(others, near.count);
      if (answers && !is_near) near.far[at] = static_cast<std::int32_t>(i);
      if (answers && is_near) {
        near.centre[i] = ball.candidate;
        if (near.classifier) near.classifier[i] = static_cast<std::int32_t>(label);
      }
    }
    if (sizeof(T) != 2 || !norms) continue;  // the same for all
    square = lanes_sum(square, lanes);
    if (answers) norms[i] = sqrt(square) * (1 + 0x1p-21) + lost;
  }
  if (!record) return;
  const unsigned found = __ballot_sync(kAllLanes, !(check == 0));
  if (found != 0 && lane_id() == 0) atomicAdd(&record->nonfinite, static_cast<Count>(__popc(found)));
}

/// Whether the row holds NaN or infinite values; asked where its norm is not finite, which it is for large values, too.
template <class T>
__device__ bool has_fault(const Rows<T>& x, const T* row) {
  bool found = false;
  for (Index col = Index{lane_id()} * kPacket<T>; col < x.cols; col += kWarp * kPacket<T>) {
    const Packet<T> packet = x.read(row, col);
    for (int v = 0; v < kPacket<T>; ++v) found = found || !(fabs(to_double(packet.value[v])) <= DBL_MAX);
  }
  return __ballot_sync(kAllLanes, found) != 0;
}

/// A warp per row, which is read once for its norm and once more, from the cache, to be rounded.
template <class T, class N>
__global__ void narrow_rows(Rows<T> x, const float* origin, Index padded, Exponents exponents, std::uint16_t* rows,
                            double* scales, double* norms, double* lost, BatchRecord* record, const std::int32_t* list,
                            Index count) {
  constexpr int V = kPacket<T>;
  using S = Shifted<T>;
  constexpr Index step = kWarp * V;
  if (!std::is_same_v<S, double>) {
    exponents.least = max(exponents.least, -kFloatExponent);
    exponents.most = min(exponents.most, kFloatExponent);
  }
  for (Index i = warp_id(); i < count; i += warp_count()) {
    const T* row = x.row(list ? list[i] : i);
    double square = 0;
    for (Index first = Index{lane_id()} * V; first < x.cols; first += kInFlight * step) {
      Packet<T> packet[kInFlight];
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kInFlight; ++u) packet[u] = x.read(row, first + u * step);
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kInFlight; ++u) {
        S z[V];
        shift(packet[u], origin, first + u * step, padded, z);
        for (int v = 0; v < V; ++v) square += static_cast<double>(z[v]) * static_cast<double>(z[v]);
      }
    }
    const double norm = sqrt(warp_sum(square));
    if (record && !(norm < HUGE_VAL) && has_fault(x, row) && lane_id() == 0) atomicAdd(&record->nonfinite, Count{1});
    int exponent = norm > 0 ? norm < HUGE_VAL ? ilogb(norm) - kNormExponent : 0 : exponents.least;
    exponent = max(exponents.least, min(exponent, exponents.most));
    const double up = power_of_two(exponent);
    const S down = static_cast<S>(power_of_two(-exponent));

    square = 0;
    for (Index first = Index{lane_id()} * V; first < padded; first += kInFlight * step) {
      Packet<T> packet[kInFlight];
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kInFlight; ++u) packet[u] = x.read(row, first + u * step);
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kInFlight; ++u) {
        const Index col = first + u * step;
        S z[V];
        shift(packet[u], origin, col, padded, z);
        NarrowPacket<T> rounded;
        float part = 0;
        NCOLLAPSE_UNROLLED
        for (int v = 0; v < V; ++v) {
          const float scaled = static_cast<float>(z[v] * down);
          const N number = narrow(scaled, N{});
          const float gap = scaled - to_float(number);  // exact
          rounded.bits[v] = number.bits;
          part += gap * gap;
        }
        square += static_cast<double>(part);
        if (col < padded) *reinterpret_cast<NarrowPacket<T>*>(rows + i * padded + col) = rounded;
      }
    }
    square = warp_sum(square);
    if (lane_id() != 0) continue;
    scales[i] = up;
    norms[i] = norm;
    // What the sums above lost, squares that underflowed, and shifting and scaling in single precision.
    lost[i] = up * (sqrt(square) * (1 + 0x1p-19) + 0x1p-60) + norm * 0x1p-23;
  }
}

/// A warp per row.
template <class T>
__global__ void gather_rows(Rows<T> x, const std::int32_t* list, Index count, const double* norms_of_all, Index padded,
                            std::uint16_t* rows, double* norms) {
  for (Index i = warp_id(); i < count; i += warp_count()) {
    const T* row = x.row(list[i]);
    for (Index col = Index{lane_id()} * kPacket<T>; col < x.cols; col += kWarp * kPacket<T>)
      *reinterpret_cast<Packet<T>*>(rows + i * padded + col) = x.read(row, col);
    if (lane_id() == 0) norms[i] = norms_of_all[list[i]];
  }
}

}  // namespace

double near_radius(double radius, double size, double lost, Index dim) {
  const double near =
      ((1 - 0x1p-23) * radius - lost - 0x1p-23 * size - std::sqrt(static_cast<double>(dim)) * 0x1p-74) / (1 + 0x1p-19);
  return near > 0 ? near : 0;  // not NaN
}

bool can_be_raw(const FeatureBlock& x) {
  return (x.dtype == Dtype::f16 && rows_of<Half>(x).aligned) ||
         (x.dtype == Dtype::bf16 && rows_of<Bfloat16>(x).aligned);
}

void launch_narrow_rows(cudaStream_t stream, const FeatureBlock& x, const float* origin, Index padded, Dtype type,
                        void* rows, double* scales, double* norms, double* lost, Exponents exponents,
                        BatchRecord* record, const std::int32_t* list, Index count) {
  if (!list) count = x.rows;
  const Grid grid{blocks_for(count, kWarps)};
  auto* bits = static_cast<std::uint16_t*>(rows);
  if (type == Dtype::bf16)
    return launch(stream, grid, narrow_rows<double, Bfloat16>, rows_of<double>(x), origin, padded, exponents, bits,
                  scales, norms, lost, record, list, count);
  with_element(x.dtype, [&]<class T>(T) {
    launch(stream, grid, narrow_rows<T, Half>, rows_of<T>(x), origin, padded, exponents, bits, scales, norms, lost,
           record, list, count);
  });
}

void launch_check_rows(cudaStream_t stream, const FeatureBlock& x, double* norms, BatchRecord* record,
                       const NearRows* near) {
  if (x.rows == 0) return;
  with_element(x.dtype, [&]<class T>(T) {
    const int log2 = lanes_log2<T>(x.cols);
    const auto start = [&](auto kernel) {
      launch(stream, {blocks_for(x.rows << log2)}, kernel, rows_of<T>(x), log2, norms, record,
             near ? *near : NearRows{});
    };
    if (!near)
      start(check_rows<T, void>);
    else if (near->type == Dtype::f16)
      start(check_rows<T, Half>);
    else
      start(check_rows<T, Bfloat16>);
  });
}

void launch_gather_rows(cudaStream_t stream, const FeatureBlock& x, const std::int32_t* list, Index count,
                        const double* norms_of_all, Index padded, std::uint16_t* rows, double* norms) {
  const Grid grid{blocks_for(count, kWarps)};
  if (x.dtype == Dtype::f16)
    launch(stream, grid, gather_rows<Half>, rows_of<Half>(x), list, count, norms_of_all, padded, rows, norms);
  else
    launch(stream, grid, gather_rows<Bfloat16>, rows_of<Bfloat16>(x), list, count, norms_of_all, padded, rows, norms);
}

}  // namespace ncollapse::cuda
