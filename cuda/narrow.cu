#include <cfloat>
#include <cmath>
#include <type_traits>

#include "cuda/device.hpp"
#include "cuda/narrow.hpp"
#include "cuda/words.hpp"

namespace ncollapse::cuda {
namespace {

constexpr int kNormExponent = 6;     // of a rounded row: norms in [64, 128)
constexpr int kFloatExponent = 120;  // powers of two that scale floats without leaving their range
constexpr int kInFlight = 4;         // packets that a lane asks for at once
// Blocks of find_near_rows on a multiprocessor: 64 registers a thread are enough on newer ones.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kNearBlocks = 3;
#else
constexpr int kNearBlocks = 4;
#endif

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

template <class T>
struct alignas(kPacket<T> * 2) NarrowPacket {
  std::uint16_t bits[kPacket<T>];
};

/// A packet, and as many 16-bit numbers.
template <class T>
using Loaded = std::conditional_t<sizeof(T) == 2, Words<4>, Packet<T>>;
template <class T>
using LoadedNarrow = Words<kPacket<T> / 2>;

template <class T>
__device__ void widen(const Packet<T>& packet, Shifted<T> (&z)[kPacket<T>]) {
  if constexpr (sizeof(T) == 2) {
    Words<4> words;
    memcpy(&words, &packet, sizeof packet);
    widen<T>(words, z);
  } else {
    for (int v = 0; v < kPacket<T>; ++v) z[v] = packet.value[v];
  }
}

/// What a packet of a row is shifted by.
template <class T>
struct Away {
  Packet<float> part[kPacket<T> / 4];
};
template <class T>
__device__ Away<T> away_at(const float* origin) {
  Away<T> away;
  for (int part = 0; part < kPacket<T> / 4; ++part)
    away.part[part] = *reinterpret_cast<const Packet<float>*>(origin + 4 * part);
  return away;
}
template <class T>
__device__ void shift(const Packet<T>& packet, const Away<T>& away, Shifted<T> (&z)[kPacket<T>]) {
  widen(packet, z);
  for (int v = 0; v < kPacket<T>; ++v) z[v] -= static_cast<Shifted<T>>(away.part[v / 4].value[v % 4]);
}

/// Whether packets of a row from column `first` on, `step` apart, hold NaN or infinite values; asked where its norm or
/// distance is not finite, which they are for large values, too.
template <class T>
__device__ bool lane_has_fault(const Rows<T>& x, const T* row, Index first, Index step) {
  bool found = false;
  NCOLLAPSE_ROLLED
  for (Index col = first; col < x.cols; col += step) {
    const Packet<T> packet = x.read(row, col);
    for (int v = 0; v < kPacket<T>; ++v) found = found || !(fabs(to_double(packet.value[v])) <= DBL_MAX);
  }
  return found;
}
template <class T>
__device__ bool has_fault(const Rows<T>& x, const T* row) {
  constexpr Index V = kPacket<T>;
  return __ballot_sync(kAllLanes, lane_has_fault(x, row, lane_id() * V, kWarp * V)) != 0;
}

/// The sum of squares of a 16-bit row's packet. Single precision holds the squares of halves and of eight of them,
/// those of bf16 numbers below 2^-63 in part.
template <class T>
__device__ double square_of(const Packet<T>& packet) {
  float values[kPacket<T>], sum = 0;
  widen(packet, values);
  for (const float value : values) sum += value * value;
  return static_cast<double>(sum);
}
/// The norm from the sum of all squares.
template <class T>
__device__ double norm_of(double square, Index cols) {
  const double lost = std::is_same_v<T, Bfloat16> ? sqrt(static_cast<double>(cols)) * 0x1p-74 : 0;
  return sqrt(square) * (1 + 0x1p-21) + lost;
}

/// 2^log2 lanes share a row.
template <class T>
__global__ void check_rows(Rows<T> x, int log2, double* norms, BatchRecord* record) {
  constexpr int V = kPacket<T>;
  using S = Shifted<T>;
  const int lanes = 1 << log2, lane = lane_id() & (lanes - 1);
  const Index step = lanes * V, per_warp = kWarp >> log2;
  S check = 0;  // 0 times everything
  for (Index base = warp_id() * per_warp; base < x.rows; base += warp_count() * per_warp) {
    const Index i = base + (lane_id() >> log2);
    const T* row = x.row(min(i, x.rows - 1));
    double square = 0;
    for (Index first = i < x.rows ? lane * V : x.cols; first < x.cols; first += kInFlight * step) {
      Packet<T> packet[kInFlight];
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kInFlight; ++u) packet[u] = x.read(row, first + u * step);
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kInFlight; ++u) {
        S values[V];
        widen(packet[u], values);
        for (const S value : values) check += value * 0;
        if constexpr (sizeof(T) == 2) square += square_of(packet[u]);
      }
    }
    if (sizeof(T) != 2 || !norms) continue;  // the same for all
    square = lanes_sum(square, lanes);
    if (lane == 0 && i < x.rows) norms[i] = norm_of<T>(square, x.cols);
  }
  if (!record) return;
  const unsigned found = __ballot_sync(kAllLanes, !(check == 0));
  if (found != 0 && lane_id() == 0) atomicAdd(&record->nonfinite, static_cast<Count>(__popc(found)));
}

/// 2^log2 lanes share a row. What a row is measured from is known from its label by two loads, so those of the next row
/// are asked for before. N: type of the means. kWhole: every row is whole packets at multiples of 16 bytes, and
/// takes a warp.
template <class T, class N, bool kWhole>
__global__ void __launch_bounds__(kBlock, kWhole && !std::is_same_v<T, double> ? kNearBlocks : 2)
    find_near_rows(Rows<T> x, int log2, BatchRecord* record, const NearRows near) {
  constexpr int V = kPacket<T>;
  using S = Shifted<T>;
  if (kWhole) log2 = 5;
  const int lanes = 1 << log2, lane = lane_id() & (lanes - 1), row_in_warp = lane_id() >> log2;
  const Index step = lanes * V, per_warp = kWarp >> log2, stride = warp_count() * per_warp;
  const S unit = static_cast<S>(near.unit);
  const auto label_of = [&](Index i) { return near.labels[min(i, x.rows - 1)]; };
  const Index first_row = warp_id() * per_warp;
  if (first_row >= x.rows) return;  // the whole warp
  std::uint32_t label = label_of(first_row + row_in_warp);
  Ball ball = near.balls[label];
  for (Index base = first_row; base < x.rows; base += stride) {
    const Index i = base + row_in_warp;
    const std::uint32_t next_label = label_of(i + stride);
    double distance = 0;
    {
      Index col = i < x.rows ? lane * V : x.cols;
      const T* mine = x.row(min(i, x.rows - 1)) + col;
      const std::uint16_t* theirs = near.means + ball.candidate * near.padded + col;
      const float* origin = near.origin + col;
      NCOLLAPSE_ROLLED
      for (; col < x.cols; col += kInFlight * step) {
        Loaded<T> packet[kInFlight]{};
        LoadedNarrow<T> mean[kInFlight]{};
        NCOLLAPSE_UNROLLED
        for (int u = 0; u < kInFlight; ++u) {
          if (col + u * step >= x.cols) continue;
          if constexpr (kWhole) {
            packet[u] = *reinterpret_cast<const Loaded<T>*>(mine + u * step);
          } else {
            const Packet<T> read = x.read(mine - col, col + u * step);
            memcpy(&packet[u], &read, sizeof read);
          }
          mean[u] = *reinterpret_cast<const LoadedNarrow<T>*>(theirs + u * step);
        }
        S sum = 0;
        NCOLLAPSE_UNROLLED
        for (int u = 0; u < kInFlight; ++u) {
          if (col + u * step >= x.cols) continue;
          S z[V], means[V];
          if constexpr (sizeof(T) == 2)
            widen<T>(packet[u], z);
          else
            widen(packet[u], z);
          widen<N>(mean[u], means);
          for (int part = 0; part < V; part += 4) {
            const auto o = *reinterpret_cast<const Packet<float>*>(origin + u * step + part);
            for (int v = 0; v < 4; ++v) {
              const S gap = z[part + v] - static_cast<S>(o.value[v]) - unit * means[part + v];
              sum += gap * gap;
            }
          }
        }
        distance += static_cast<double>(sum);
        mine += kInFlight * step;
        theirs += kInFlight * step;
        origin += kInFlight * step;
      }
    }
    const Ball next_ball = near.balls[next_label];
    distance = lanes_sum(distance, lanes);
    const bool answers = lane == 0 && i < x.rows, is_near = distance < ball.square;  // not NaN
    const unsigned others = __ballot_sync(kAllLanes, answers && !is_near);
    if (answers && is_near) {
      near.centre[i] = ball.candidate;
      if (near.classifier) near.classifier[i] = static_cast<std::int32_t>(label);
    }
    if (others != 0) {
      const Count at = append(others, near.count);
      if (answers && !is_near) near.far[at] = static_cast<std::int32_t>(i);
      // Where a value is not finite, the distance is not.
      bool fault = false;
      if (record && i < x.rows && !(distance < HUGE_VAL)) fault = lane_has_fault(x, x.row(i), Index{lane} * V, step);
      const unsigned found = __ballot_sync(kAllLanes, fault);
      if (found != 0 && lane_id() == 0) atomicAdd(&record->nonfinite, static_cast<Count>(__popc(found)));
    }
    label = next_label;
    ball = next_ball;
  }
}

/// Packets of a row that a lane may hold, of up to 2048 columns. 16-bit rows seldom come here.
template <class T>
inline constexpr int kHeldPackets = sizeof(T) == 2 ? 0 : 16;
constexpr Index kHeldLeast = 512;  // columns: of shorter rows too little would be on its way to so few warps

/// A warp per row. kHeld: every row is whole packets at multiples of 16 bytes, at most kHeldPackets of them a lane,
/// which holds them; else it is read once for its norm and once more, from the cache, to be rounded. Same bits.
template <class T, class N, bool kHeld>
__global__ void __launch_bounds__(kBlock)
    narrow_rows(Rows<T> x, const float* origin, Index padded, Exponents exponents, std::uint16_t* rows, double* scales,
                double* norms, double* lost, BatchRecord* record, const std::int32_t* list, Index count) {
  constexpr int V = kPacket<T>, kAtOnce = kHeld ? kHeldPackets<T> : kInFlight;
  using S = Shifted<T>;
  constexpr Index step = kWarp * V;
  if (!std::is_same_v<S, double>) {
    exponents.least = max(exponents.least, -kFloatExponent);
    exponents.most = min(exponents.most, kFloatExponent);
  }
  for (Index i = warp_id(); i < count; i += warp_count()) {
    const T* row = x.row(list ? list[i] : i);
    Packet<T> packet[kAtOnce];
    const auto fetch = [&](Index first) {
      NCOLLAPSE_UNROLLED
      for (int u = 0; u < kAtOnce; ++u) {
        const Index col = first + u * step;
        if constexpr (kHeld)
          packet[u] = col < x.cols ? *reinterpret_cast<const Packet<T>*>(row + col) : Packet<T>{};
        else
          packet[u] = x.read(row, col);
      }
    };
    const auto each_shifted = [&](Index end, const auto& use) {
      NCOLLAPSE_ROLLED
      for (Index first = Index{lane_id()} * V; first < end; first += kAtOnce * step) {
        if (!kHeld) fetch(first);
        NCOLLAPSE_UNROLLED
        for (int group = 0; group < kAtOnce; group += kInFlight) {
          Away<T> away[kInFlight]{};
          NCOLLAPSE_UNROLLED
          for (int u = 0; u < kInFlight; ++u)
            if (const Index col = first + (group + u) * step; origin && col < end) away[u] = away_at<T>(origin + col);
          NCOLLAPSE_UNROLLED
          for (int u = 0; u < kInFlight; ++u)
            if (const Index col = first + (group + u) * step; col < end) {
              S z[V];
              shift(packet[group + u], away[u], z);
              use(z, col);
            }
        }
      }
    };
    if (kHeld) fetch(Index{lane_id()} * V);
    double square = 0;
    each_shifted(x.cols, [&](const S(&z)[V], Index) {
      for (const S value : z) {
        const auto wide = static_cast<double>(value);
        square = fma(wide, wide, square);  // said, or compilers may differ
      }
    });
    const double norm = sqrt(warp_sum(square));
    if (record && !(norm < HUGE_VAL) && has_fault(x, row) && lane_id() == 0) atomicAdd(&record->nonfinite, Count{1});
    int exponent = norm > 0 ? norm < HUGE_VAL ? ilogb(norm) - kNormExponent : 0 : exponents.least;
    exponent = max(exponents.least, min(exponent, exponents.most));
    const double up = power_of_two(exponent);
    const S down = static_cast<S>(power_of_two(-exponent));

    square = 0;
    each_shifted(padded, [&](const S(&z)[V], Index col) {
      NarrowPacket<T> rounded;
      float part = 0;
      NCOLLAPSE_UNROLLED
      for (int v = 0; v < V; ++v) {
        const float scaled = static_cast<float>(z[v] * down);
        const N number = narrow(scaled, N{});
        const float gap = scaled - to_float(number);  // exact
        rounded.bits[v] = number.bits;
        part = fmaf(gap, gap, part);
      }
      square += static_cast<double>(part);
      *reinterpret_cast<NarrowPacket<T>*>(rows + i * padded + col) = rounded;
    });
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
__global__ void gather_rows(Rows<T> x, const std::int32_t* list, Index count, Index padded, std::uint16_t* rows,
                            double* norms) {
  for (Index i = warp_id(); i < count; i += warp_count()) {
    const T* row = x.row(list[i]);
    double square = 0;
    for (Index col = Index{lane_id()} * kPacket<T>; col < x.cols; col += kWarp * kPacket<T>) {
      const Packet<T> packet = x.read(row, col);
      *reinterpret_cast<Packet<T>*>(rows + i * padded + col) = packet;
      square += square_of(packet);
    }
    square = warp_sum(square);
    if (lane_id() == 0) norms[i] = norm_of<T>(square, x.cols);
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
  auto* bits = static_cast<std::uint16_t*>(rows);
  const auto start = [&]<class T, class N>(T, N) {
    const Rows<T> of = rows_of<T>(x);
    const bool held = of.aligned && x.cols % kPacket<T> == 0 && padded >= kHeldLeast &&
                      padded <= kHeldPackets<T> * kWarp * kPacket<T>;
    launch(stream, {blocks_for(count, kWarps)},
           held ? narrow_rows<T, N, (kHeldPackets<T> > 0)> : narrow_rows<T, N, false>, of, origin, padded, exponents,
           bits, scales, norms, lost, record, list, count);
  };
  if (type == Dtype::bf16) return start(double{}, Bfloat16{});
  with_element(x.dtype, [&]<class T>(T element) { start(element, Half{}); });
}

void launch_check_rows(cudaStream_t stream, const FeatureBlock& x, double* norms, BatchRecord* record) {
  if (x.rows == 0) return;
  with_element(x.dtype, [&]<class T>(T) {
    const int log2 = lanes_log2<T>(x.cols);
    launch(stream, {blocks_for(x.rows << log2)}, check_rows<T>, rows_of<T>(x), log2, norms, record);
  });
}

void launch_find_near_rows(cudaStream_t stream, const FeatureBlock& x, const NearRows& near, BatchRecord* record) {
  if (x.rows == 0) return;
  constexpr Index kRowsOfWarp = 4, kEnough = 2048;  // one after the other, where there are blocks enough
  const auto start = [&]<class T>(const Rows<T>& rows, auto kernel) {
    const int log2 = lanes_log2<T>(x.cols);
    const Index blocks = blocks_for(x.rows << log2);
    launch(stream, {std::max(std::min(blocks, kEnough), (blocks + kRowsOfWarp - 1) / kRowsOfWarp)}, kernel, rows, log2,
           record, near);
  };
  with_element(x.dtype, [&]<class T>(T) {
    const Rows<T> rows = rows_of<T>(x);
    const bool whole = rows.aligned && x.cols % kPacket<T> == 0, half = near.type == Dtype::f16;
    if (whole)
      half ? start(rows, find_near_rows<T, Half, true>) : start(rows, find_near_rows<T, Bfloat16, true>);
    else
      half ? start(rows, find_near_rows<T, Half, false>) : start(rows, find_near_rows<T, Bfloat16, false>);
  });
}

void launch_gather_rows(cudaStream_t stream, const FeatureBlock& x, const std::int32_t* list, Index count, Index padded,
                        std::uint16_t* rows, double* norms) {
  const Grid grid{blocks_for(count, kWarps)};
  if (x.dtype == Dtype::f16)
    launch(stream, grid, gather_rows<Half>, rows_of<Half>(x), list, count, padded, rows, norms);
  else
    launch(stream, grid, gather_rows<Bfloat16>, rows_of<Bfloat16>(x), list, count, padded, rows, norms);
}

}  // namespace ncollapse::cuda
