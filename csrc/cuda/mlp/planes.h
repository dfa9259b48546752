// Float32 matrices as sums of bfloat16 planes, tile by tile in fragment order (cuda/warp.h).
//
// A number is split into S parts of 8 bits each, a = a_0 + a_1 + a_2. A product of two numbers keeps the
// terms a_i b_j with i + j < S: 1, 3 or 6 products with relative errors of about 2^-8, 2^-16 and, where all
// 24 bits are kept, float32's own.
//
// Tensor cores truncate what they add to. Where that would show, at 3 planes, the terms of 16 columns are
// summed there, and these sums by float additions, which round to nearest.
#pragma once

#include "cuda/block.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

constexpr int kMaxPlanes = 3;
constexpr int kTileElements = kTile * kTile;
constexpr int64_t kPlaneTileBytes = kWarp * sizeof(Quad);
constexpr int64_t kFloatTileBytes = kTileElements * sizeof(float);

// Takes the next plane off a pair of floats.
ADE_HD uint32_t take_plane(float& low, float& high) {
  const uint32_t pair = pack_pair(low, high);
  low -= pair_low(pair);
  high -= pair_high(pair);
  return pair;
}

// `stride`: Quads from a plane to the next.
template <int S>
ADE_HD void store_planes(Quad* at, int64_t stride, int lane, Eight e) {
  Quad plane[S];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int s = 0; s < S; ++s) plane[s].v[i] = take_plane(e.v[2 * i], e.v[2 * i + 1]);
  }
#pragma unroll
  for (int s = 0; s < S; ++s) at[s * stride + lane] = plane[s];
}
// The same in block order.
template <int S>
ADE_HD void store_block_planes(Quad* at, int64_t stride, int lane, Eight e) {
#pragma unroll
  for (int s = 0; s < S; ++s) {
    uint32_t* const pairs = reinterpret_cast<uint32_t*>(at + s * stride) + lane;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs[block_of_pair<true>(i) * kWarp] = take_plane(e.v[2 * i], e.v[2 * i + 1]);
  }
}
template <int S>
ADE_HD Eight load_planes(const Quad* at, int64_t stride, int lane) {
  Eight e = {};
#pragma unroll
  for (int s = S - 1; s >= 0; --s) {
    const Quad plane = at[s * stride + lane];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      e.v[2 * i] += pair_low(plane.v[i]);
      e.v[2 * i + 1] += pair_high(plane.v[i]);
    }
  }
  return e;
}

// A tile of floats: 16 bytes per lane and half, for whole accesses of the warp.
ADE_HD void store_floats(Four* tile, int lane, const Eight& e) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    tile[half * kWarp + lane] = {{e.v[4 * half], e.v[4 * half + 1], e.v[4 * half + 2], e.v[4 * half + 3]}};
  }
}
ADE_HD Eight load_floats(const Four* tile, int lane) {
  const Four a = tile[lane], b = tile[kWarp + lane];
  return {{a.v[0], a.v[1], a.v[2], a.v[3], b.v[0], b.v[1], b.v[2], b.v[3]}};
}
// Where element (row, column) of a tile of floats is.
ADE_HD int float_index(int row, int column) {
  const int lane = row % 8 * 4 + column % 8 / 2;
  return (column / 8 * kWarp + lane) * 4 + row / 8 * 2 + column % 2;
}

template <class Warp, int R, int P>
ADE_HD void clear(Warp& warp, typename Warp::template Reg<Eight> (&c)[R][P]) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      warp.each([&](int lane) { c[r][p].at(lane) = Eight{}; });
    }
  }
}

// c[r][p] += a[r] b[p] on the tensor cores, for S planes of R left and P right operands.
template <int S, int R, int P, class Warp>
ADE_HD void multiply_tiles(Warp& warp, typename Warp::template Reg<Eight> (&c)[R][P],
                           const typename Warp::template Reg<Quad> (&a)[S][R],
                           const typename Warp::template Reg<Quad> (&b)[S][P]) {
  // The smallest terms first.
#pragma unroll
  for (int order = S - 1; order >= 0; --order) {
#pragma unroll
    for (int i = 0; i <= order; ++i) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int p = 0; p < P; ++p) {
          warp.template mma<0>(c[r][p], a[i][r], b[order - i][p]);
          warp.template mma<1>(c[r][p], a[i][r], b[order - i][p]);
        }
      }
    }
  }
}

// c[r][p] += a[r] b[p] as precise as S planes are.
template <int S, int R, int P, class Warp>
ADE_HD void add_product(Warp& warp, typename Warp::template Reg<Eight> (&c)[R][P],
                        const typename Warp::template Reg<Quad> (&a)[S][R],
                        const typename Warp::template Reg<Quad> (&b)[S][P]) {
  if constexpr (S < kMaxPlanes) {
    multiply_tiles<S>(warp, c, a, b);
  } else {
    typename Warp::template Reg<Eight> part[R][P];
    clear(warp, part);
    multiply_tiles<S>(warp, part, a, b);
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int p = 0; p < P; ++p) {
        warp.each([&](int lane) {
#pragma unroll
          for (int i = 0; i < 8; ++i) c[r][p].at(lane).v[i] += part[r][p].at(lane).v[i];
        });
      }
    }
  }
}

// Tiles of a matrix: those of a row of tiles stand next to each other.
struct Tiles {
  const Quad* first;
  int64_t plane;  // Quads from a plane to the next
  int columns;    // tiles of a row

  ADE_HD const Quad* at(int row, int column) const {
    return first + (static_cast<int64_t>(row) * columns + column) * kWarp;
  }
};

// Tiles of a matrix W in block order.
struct BlockTiles {
  const Quad* first;
  int64_t plane;
  int columns;
  bool shared;  // in shared memory
};

// c = a Wᵀ, or a W where kTransposed, for R rows of tiles from r0 and P columns from p0: the terms k0 to k1,
// in tiles.
template <int S, bool kTransposed, int R, int P, class Warp>
ADE_HD void product(Warp& warp, typename Warp::template Reg<Eight> (&c)[R][P], const Tiles& a, int r0,
                    const BlockTiles& w, int p0, int k0, int k1) {
  using Quads = typename Warp::template Reg<Quad>;
  clear(warp, c);
  const auto add = [&](int k, auto load) {
    Quads left[S][R], right[S][P];
#pragma unroll
    for (int s = 0; s < S; ++s) {
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const int64_t tile = kTransposed ? int64_t{k} * w.columns + p0 + p : int64_t{p0 + p} * w.columns + k;
        load(right[s][p], w.first + s * w.plane + tile * kWarp);
      }
    }
    warp.each([&](int lane) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
#pragma unroll
        for (int r = 0; r < R; ++r) left[s][r].at(lane) = (a.at(r0 + r, k) + s * a.plane)[lane];
      }
    });
    add_product<S>(warp, c, left, right);
  };
  if (w.shared) {
#pragma unroll 2
    for (int k = k0; k < k1; ++k)
      add(k, [&](Quads& q, const Quad* tile) { warp.template load_shared_blocks<kTransposed>(q, tile); });
  } else {
#pragma unroll 1
    for (int k = k0; k < k1; ++k)
      add(k, [&](Quads& q, const Quad* tile) { warp.template load_blocks<kTransposed>(q, tile); });
  }
}

// c += aᵀ b, summed over `rows` rows of tiles, for R columns of a from r0 and P columns of b from p0.
template <int S, int R, int P, class Warp>
ADE_HD void add_outer_product(Warp& warp, typename Warp::template Reg<Eight> (&c)[R][P], int rows,
                              const Tiles& a, int r0, const Tiles& b, int p0) {
  for (int k = 0; k < rows; ++k) {
    typename Warp::template Reg<Quad> left[S][R], right[S][P];
    warp.each([&](int lane) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
#pragma unroll
        for (int r = 0; r < R; ++r) left[s][r].at(lane) = (a.at(k, r0 + r) + s * a.plane)[lane];
#pragma unroll
        for (int p = 0; p < P; ++p) right[s][p].at(lane) = (b.at(k, p0 + p) + s * b.plane)[lane];
      }
    });
#pragma unroll
    for (int s = 0; s < S; ++s) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        warp.transpose_blocks(left[s][r]);
        warp.each([&](int lane) {
          Quad& q = left[s][r].at(lane);
          const uint32_t below = q.v[1];
          q.v[1] = q.v[2];
          q.v[2] = below;
        });
      }
      // As a right operand, a transposed tile's blocks stand as they are.
#pragma unroll
      for (int p = 0; p < P; ++p) warp.transpose_blocks(right[s][p]);
    }
    add_product<S>(warp, c, left, right);
  }
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
