// A tile: the rows that a block takes through the network together, with all that the sweeps of
// potentials/mlp.h leave for each other. A sweep's step is one phase of warps, each with its own columns of
// tiles: the product, and on its registers what happens to each element. A lane meets the same elements of a
// layer in every phase.
#pragma once

#include "cuda/mlp/plan.h"
#include "cuda/mlp/scalar_math.h"
#include "potentials/mlp.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// The four columns of a tile's row that a lane holds, and which of them element i is in.
ADE_HD Four load_columns(const float* row, int lane) {
  const float* const at = row + lane % 4 * 2;
  return {{at[0], at[1], at[8], at[9]}};
}
ADE_HD int column_slot(int i) { return i % 2 + i / 4 * 2; }

// What is known of φ when a kernel is compiled.
enum class Phi { kAny, kSmooth, kLinear };

// S planes, R tiles of rows.
template <int S, int R, class Block, Phi kPhi = Phi::kAny>
class MlpTile {
 public:
  static constexpr int kRows = R * kTile;

  ADE_HD MlpTile(Block& block, const MlpPlan& plan)
      : want(),
        rows(0),
        bits(nullptr),
        bits_out(nullptr),
        with_value(false),
        memory({block.memory(), plan.own + block.x() * plan.own_bytes}),
        block_(block),
        plan_(plan),
        weights_({plan.packed, plan.plane, 0, false}) {}

  mlp::Wanted want;     // of the sweep at hand
  int rows;             // that exist
  const uint8_t* bits;  // [rows, Σ n_l / 8] that were kept, or null
  uint8_t* bits_out;    // to keep, or null
  bool with_value;      // there is a cotangent of f
  const BlockBuffers memory;

  ADE_HD int layers() const { return plan_.shape.layers; }
  // Bytes of a row's kept bits.
  ADE_HD int64_t bit_stride() const {
    int units = 0;
    for (int l = 1; l <= layers(); ++l) units += plan_.width(l);
    return units / 8;
  }

  // Before the first sweep: the block's own copy of the weights.
  ADE_HD void prepare() {
    if (!plan_.resident) return;
    const int64_t count = S * plan_.plane;
    const Quad* const from = plan_.packed;
    Quad* const to = memory.template at<Quad>(plan_.weights);
    block_.each([=](int t, auto&) {
      for (int64_t i = t; i < count; i += kThreads) to[i] = from[i];
    });
    block_.sync();
    weights_.first = to;
    weights_.shared = true;
  }

  // Rows [rows, D] of floats as the planes of layer 0. The input, or the cotangent of F.
  ADE_HD void set_input(const float* x) { split(x, plan_.hidden[0]); }
  ADE_HD void set_dgradient(const float* u) { split(u, plan_.tangent[0]); }

  // First order.
  ADE_HD void forward(int l) {
    columns(l, [this, l](auto& warp, int p) { forward_column(warp, l, p); });
  }
  ADE_HD void seed_from_bits() {
    const int l = layers();
    columns(l, [this, l](auto& warp, int p) { seed_column(warp, l, p); });
  }
  ADE_HD void backward(int l) {
    columns(l, [this, l](auto& warp, int p) { backward_column(warp, l, p); });
  }
  ADE_HD void input_gradient() { project<false>(plan_.delta[1], plan_.gradient); }

  // Second order.
  ADE_HD void tangent(int l) {
    columns(l, [this, l](auto& warp, int p) { tangent_column(warp, l, p); });
  }
  ADE_HD void curvature(int l) {
    if (l == layers() && with_value && want.weights) {
      const float* const df = memory.template at<float>(plan_.dvalue);
      float* const sum = sums() + plan_.sums.out_bias;
      const int count = rows;
      block_.each([=](int t, auto&) {
        for (int r = 0; t == 0 && r < count; ++r) *sum += df[r];
      });
    }
    columns(l, [this, l](auto& warp, int p) { curvature_column(warp, l, p); });
  }
  // Adds to dx.
  ADE_HD void input_product() { project<true>(plan_.zeta[1], plan_.dx); }
  ADE_HD void weight_gradient(int l) {
    block_.each_warp([this, l](auto& warp) { weight_tiles(warp, l); });
    block_.sync();
  }

  // f of the rows that exist, after a sweep with want.value.
  ADE_HD void store_value(float* value) {
    const float* const parts = memory.template at<float>(plan_.value_parts);
    const float* const bias = plan_.out_bias;
    const int count = rows, columns = plan_.columns(layers());
    block_.each([=](int t, auto&) {
      if (t >= count) return;
      float sum = *bias;
      for (int p = 0; p < columns; ++p) sum += parts[p * kRows + t];
      value[t] = sum;
    });
    block_.sync();
  }

  // The block's sums, zeroed.
  ADE_HD void clear_sums() {
    float* const first = sums();
    const int64_t size = plan_.sums.size;
    block_.each([=](int t, auto&) {
      for (int64_t i = t; i < size; i += kThreads) first[i] = 0;
    });
    block_.sync();
  }
  ADE_HD float* sums() const { return plan_.block_sums + block_.x() * plan_.sums.size; }

 private:
  using Math = FloatMath<(S < kMaxPlanes)>;
  template <class Warp>
  using Products = typename Warp::template Reg<Eight>[R][1];

  template <class Phase>
  ADE_HD void columns(int l, Phase phase) {
    const int count = plan_.columns(l);
    block_.each_warp([=](auto& warp) {
      for (int p = warp.index(); p < count; p += kWarps) phase(warp, p);
    });
    block_.sync();
  }

  ADE_HD Tiles planes(Buffer buffer, int l) const {
    return {memory.template at<Quad>(buffer), plane(l), plan_.columns(l)};
  }
  ADE_HD int64_t plane(int l) const { return int64_t{R} * plan_.columns(l) * kWarp; }
  ADE_HD int64_t tile_at(int l, int r, int p) const { return int64_t{r} * plan_.columns(l) + p; }
  ADE_HD Quad* planes_at(Buffer buffer, int l, int r, int p) const {
    return memory.template at<Quad>(buffer) + tile_at(l, r, p) * kWarp;
  }
  ADE_HD Four* floats_at(Buffer buffer, int l, int r, int p) const {
    return memory.template at<Four>(buffer) + tile_at(l, r, p) * (kTileElements / 4);
  }
  ADE_HD BlockTiles weight(int l) const {
    return {weights_.first + plan_.weight[l], weights_.plane, plan_.columns(l - 1), weights_.shared};
  }
  // c = a W_lᵀ for planes a of layer l - 1, and c = a W_l for planes a of layer l: column p of all rows.
  template <class Warp>
  ADE_HD void along_input(Warp& warp, Products<Warp>& c, Buffer a, int l, int p) const {
    product<S, false>(warp, c, planes(a, l - 1), 0, weight(l), p, 0, plan_.columns(l - 1));
  }
  template <class Warp>
  ADE_HD void along_output(Warp& warp, Products<Warp>& c, Buffer a, int l, int p) const {
    product<S, true>(warp, c, planes(a, l), 0, weight(l), p, 0, plan_.columns(l));
  }

  ADE_HD bool linear() const { return kPhi == Phi::kAny ? plan_.linear() : kPhi == Phi::kLinear; }
  ADE_HD bool bends() const { return want.tangent && !linear(); }
  // --- φ and φ' ---

  struct Jets {
    Eight value, slope, curvature;
  };
  template <class Function>
  static ADE_HD void jets(Jets& out, const Eight& z, float parameter) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const auto jet = Function::at(z.v[i], parameter);
      out.value.v[i] = jet.value;
      out.slope.v[i] = jet.slope;
      out.curvature.v[i] = jet.curvature;
    }
  }
  ADE_HD void smooth_jets(Jets& out, const Eight& z) const {
    switch (plan_.shape.activation) {
      case kSoftplus:
        return jets<mlp::Softplus<Math>>(out, z, plan_.parameter);
      case kSilu:
        return jets<mlp::Silu<Math>>(out, z, plan_.parameter);
      case kTanh:
        return jets<mlp::Tanh<Math>>(out, z, plan_.parameter);
      default:
        return jets<mlp::Elu<Math>>(out, z, plan_.parameter);
    }
  }

  // φ' of a piecewise-linear φ: a lane's 8 elements in a byte.
  ADE_HD int64_t bits_of_column(int l, int p) const {
    int units = p * kTile;
    for (int k = 1; k < l; ++k) units += plan_.width(k);
    return units / 8;
  }
  ADE_HD uint32_t load_mask(int l, int r, int p, int lane) const {
    if (bits == nullptr) return memory.template at<uint8_t>(plan_.slope[l])[tile_at(l, r, p) * kWarp + lane];
    uint32_t mask = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = r * kTile + half * 8 + lane / 4;
      if (row >= rows) continue;
      const uint8_t* const at = bits + row * bit_stride() + bits_of_column(l, p);
      const int shift = lane % 4 * 2;
      mask |= ((at[0] >> shift & 3u) | (at[1] >> shift & 3u) << 4) << (2 * half);
    }
    return mask;
  }
  template <class Warp>
  ADE_HD void keep_bits(Warp& warp, int l, int r, int p,
                        const typename Warp::template Reg<uint32_t>& masks) const {
    // Both rows of a lane: 16 columns of the upper in the low half, those of the lower in the high half.
    typename Warp::template Reg<uint32_t> words;
    warp.each([&](int lane) {
      const uint32_t mask = masks.at(lane), shift = lane % 4 * 2;
      words.at(lane) = ((mask & 3u) | (mask >> 4 & 3u) << 8 | (mask >> 2 & 3u) << 16 | (mask >> 6 & 3u) << 24)
                       << shift;
    });
    warp.row_or(words);
    warp.each([&](int lane) {
      const int row = r * kTile + lane % 4 * 8 + lane / 4;
      if (lane % 4 > 1 || row >= rows) return;
      const uint32_t word = words.at(lane) >> (lane % 4 * 16);
      uint8_t* const at = bits_out + row * bit_stride() + bits_of_column(l, p);
      at[0] = static_cast<uint8_t>(word);
      at[1] = static_cast<uint8_t>(word >> 8);
    });
  }
  ADE_HD Eight slopes_of(uint32_t mask) const {
    Eight slope;
#pragma unroll
    for (int i = 0; i < 8; ++i) slope.v[i] = mask >> i & 1u ? 1.0f : plan_.parameter;
    return slope;
  }
  ADE_HD Eight load_slope(int l, int r, int p, int lane) const {
    return linear() ? slopes_of(load_mask(l, r, p, lane))
                    : load_floats(floats_at(plan_.slope[l], l, r, p), lane);
  }

  // --- the phases of a column of tiles ---

  ADE_HD void split(const float* x, Buffer to) {
    const int dim = plan_.shape.dim;
    columns(0, [=](auto& warp, int p) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        warp.each([&](int lane) {
          Eight e;
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const int row = r * kTile + tile_row(lane, i), column = p * kTile + tile_column(lane, i);
            e.v[i] = row < rows && column < dim ? x[row * dim + column] : 0.0f;
          }
          store_planes<S>(planes_at(to, 0, r, p), plane(0), lane, e);
        });
      }
    });
  }

  // Rows [rows, D] of floats = or += a W_1, for planes a of layer 1. Few columns are shared out to the warps
  // by parts of the sums.
  template <bool kAdd>
  ADE_HD void project(Buffer a, Buffer to) {
    const int dim = plan_.shape.dim, count = plan_.columns(0), parts = plan_.project_parts();
    const int terms = plan_.columns(1), size = kRows * dim;
    float* const scratch = memory.template at<float>(plan_.parts);
    block_.each_warp([=](auto& warp) {
      for (int job = warp.index(); job < count * parts; job += kWarps) {
        const int p = job % count, part = job / count;
        Products<typename std::decay<decltype(warp)>::type> c;
        product<S, true>(warp, c, planes(a, 1), 0, weight(1), p, part * terms / parts,
                         (part + 1) * terms / parts);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          warp.each([&](int lane) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              const int row = r * kTile + tile_row(lane, i), column = p * kTile + tile_column(lane, i);
              if (column < dim) scratch[part * size + row * dim + column] = c[r][0].at(lane).v[i];
            }
          });
        }
      }
    });
    block_.sync();
    float* const out = memory.template at<float>(to);
    const int used = rows * dim;
    block_.each([=](int t, auto&) {
#pragma unroll 1
      for (int i = t; i < used; i += kThreads) {
        float sum = scratch[i];
#pragma unroll 1
        for (int part = 1; part < parts; ++part) sum += scratch[part * size + i];
        out[i] = kAdd ? out[i] + sum : sum;
      }
    });
    block_.sync();
  }

  // h_l and φ'_l, at the top δ_L and f's part, of z_l.
  template <class Warp>
  ADE_HD void forward_column(Warp& warp, int l, int p) {
    Products<Warp> c;
    along_input(warp, c, plan_.hidden[l - 1], l, p);
    const bool last = l == layers(), linear = this->linear(), bend = bends();
    const bool keep_value = !last || with_value;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      typename Warp::template Reg<uint32_t> masks;
      typename Warp::template Reg<float> upper, lower;  // f's part of a lane's two rows
      warp.each([&](int lane) {
        const Four b = load_columns(plan_.bias[l] + p * kTile, lane);
        Four w = {{1, 1, 1, 1}};
        if (last) w = load_columns(plan_.out + p * kTile, lane);
        Eight z = c[r][0].at(lane);
#pragma unroll
        for (int i = 0; i < 8; ++i) z.v[i] += b.v[column_slot(i)];
        Jets jet;
        uint32_t mask = 0;
        if (linear) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            mask |= static_cast<uint32_t>(z.v[i] > 0) << i;
            jet.value.v[i] = mlp::PiecewiseLinear<Math>::value(z.v[i], plan_.parameter, plan_.parameter);
          }
          jet.slope = slopes_of(mask);
          memory.template at<uint8_t>(plan_.slope[l])[tile_at(l, r, p) * kWarp + lane] =
              static_cast<uint8_t>(mask);
        } else {
          smooth_jets(jet, z);
          store_floats(floats_at(plan_.slope[l], l, r, p), lane, jet.slope);
          if (bend) {
#pragma unroll
            for (int i = 0; i < 8; ++i) jet.curvature.v[i] *= w.v[column_slot(i)];
            store_floats(floats_at(plan_.bend[l], l, r, p), lane, jet.curvature);
          }
        }
        masks.at(lane) = mask;
        if (keep_value) store_planes<S>(planes_at(plan_.hidden[l], l, r, p), plane(l), lane, jet.value);
        if (!last) return;
        float sum[2] = {0, 0};
        Eight d;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          d.v[i] = mlp::delta(w.v[column_slot(i)], jet.slope.v[i]);
          sum[i / 2 % 2] += jet.value.v[i] * w.v[column_slot(i)];
        }
        store_planes<S>(planes_at(plan_.delta[l], l, r, p), plane(l), lane, d);
        upper.at(lane) = sum[0];
        lower.at(lane) = sum[1];
      });
      if (linear && bits_out != nullptr) keep_bits(warp, l, r, p, masks);
      if (!last || !want.value) continue;
      warp.row_sum(upper);
      warp.row_sum(lower);
      warp.each([&](int lane) {
        float* const parts = memory.template at<float>(plan_.value_parts) + p * kRows + r * kTile + lane / 4;
        if (lane % 4 == 0) parts[0] = upper.at(lane);
        if (lane % 4 == 1) parts[8] = lower.at(lane);
      });
    }
  }

  // δ_L where the bits were kept: no forward sweep.
  template <class Warp>
  ADE_HD void seed_column(Warp& warp, int l, int p) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      warp.each([&](int lane) {
        const Four w = load_columns(plan_.out + p * kTile, lane);
        Eight d = slopes_of(load_mask(l, r, p, lane));
#pragma unroll
        for (int i = 0; i < 8; ++i) d.v[i] = mlp::delta(w.v[column_slot(i)], d.v[i]);
        store_planes<S>(planes_at(plan_.delta[l], l, r, p), plane(l), lane, d);
      });
    }
  }

  // δ_l from G_l; φ''_l becomes φ''_l G_l.
  template <class Warp>
  ADE_HD void backward_column(Warp& warp, int l, int p) {
    Products<Warp> c;
    along_output(warp, c, plan_.delta[l + 1], l + 1, p);
    const bool bend = bends();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      warp.each([&](int lane) {
        const Eight grad = c[r][0].at(lane);
        Eight d = load_slope(l, r, p, lane);
#pragma unroll
        for (int i = 0; i < 8; ++i) d.v[i] = mlp::delta(grad.v[i], d.v[i]);
        store_planes<S>(planes_at(plan_.delta[l], l, r, p), plane(l), lane, d);
        if (bend) multiply(floats_at(plan_.bend[l], l, r, p), lane, grad);
      });
    }
  }

  // t_l from ż_l; φ''_l G_l becomes φ''_l G_l ż_l. dw += Σ t_L.
  template <class Warp>
  ADE_HD void tangent_column(Warp& warp, int l, int p) {
    Products<Warp> c;
    along_input(warp, c, plan_.tangent[l - 1], l, p);
    const bool bend = bends(), last = l == layers();
    typename Warp::template Reg<Four> total;
    warp.each([&](int lane) { total.at(lane) = Four{}; });
#pragma unroll
    for (int r = 0; r < R; ++r) {
      warp.each([&](int lane) {
        const Eight zdot = c[r][0].at(lane);
        Eight t = load_slope(l, r, p, lane);
#pragma unroll
        for (int i = 0; i < 8; ++i) t.v[i] = mlp::tangent(zdot.v[i], t.v[i]);
        if (bend) multiply(floats_at(plan_.bend[l], l, r, p), lane, zdot);
        if (last) {
          add_rows(total.at(lane), t);
        } else {
          store_planes<S>(planes_at(plan_.tangent[l], l, r, p), plane(l), lane, t);
        }
      });
    }
    if (last && want.weights) add_column_sums(warp, total, plan_.sums.out, p);
  }

  // ζ_l from ζ_{l+1}. db_l += Σ ζ_l; at the top, what the value's cotangent adds.
  template <class Warp>
  ADE_HD void curvature_column(Warp& warp, int l, int p) {
    const bool last = l == layers(), bend = bends();
    Products<Warp> c;
    if (!last) along_output(warp, c, plan_.zeta[l + 1], l + 1, p);
    typename Warp::template Reg<Four> total, total_out;
    warp.each([&](int lane) { total.at(lane) = total_out.at(lane) = Four{}; });
#pragma unroll
    for (int r = 0; r < R; ++r) {
      warp.each([&](int lane) {
        Eight z = {};
        if (bend) z = load_floats(floats_at(plan_.bend[l], l, r, p), lane);
        if (!last) {
          const Eight slope = load_slope(l, r, p, lane);
#pragma unroll
          for (int i = 0; i < 8; ++i) z.v[i] = mlp::zeta(z.v[i], slope.v[i], c[r][0].at(lane).v[i]);
        } else if (with_value) {
          const float* const df = memory.template at<float>(plan_.dvalue) + r * kTile;
          const Eight d = load_planes<S>(planes_at(plan_.delta[l], l, r, p), plane(l), lane);
          Eight h = load_planes<S>(planes_at(plan_.hidden[l], l, r, p), plane(l), lane);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const float one = r * kTile + tile_row(lane, i) < rows ? df[tile_row(lane, i)] : 0.0f;
            z.v[i] += one * d.v[i];
            h.v[i] *= one;
          }
          add_rows(total_out.at(lane), h);
        }
        store_planes<S>(planes_at(plan_.zeta[l], l, r, p), plane(l), lane, z);
        add_rows(total.at(lane), z);
      });
    }
    if (!want.weights) return;
    add_column_sums(warp, total, plan_.sums.bias[l], p);
    if (last && with_value) add_column_sums(warp, total_out, plan_.sums.out, p);
  }

  // dW_l += δ_lᵀ t_{l-1} + ζ_lᵀ h_{l-1}, by pairs of tiles: widths are even numbers of tiles.
  template <class Warp>
  ADE_HD void weight_tiles(Warp& warp, int l) {
    const int pairs = plan_.columns(l) / 2, across = plan_.columns(l - 1);
    Four* const sum = reinterpret_cast<Four*>(sums() + plan_.sums.weight[l]);
    for (int job = warp.index(); job < pairs * across; job += kWarps) {
      const int p = job % pairs * 2, q = job / pairs;
      typename Warp::template Reg<Eight> c[2][1];
      clear(warp, c);
      if (want.tangent)
        add_outer_product<S>(warp, c, R, planes(plan_.delta[l], l), p, planes(plan_.tangent[l - 1], l - 1),
                             q);
      if (want.curvature)
        add_outer_product<S>(warp, c, R, planes(plan_.zeta[l], l), p, planes(plan_.hidden[l - 1], l - 1), q);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        warp.each([&](int lane) {
          Four* const at = sum + (int64_t{p + i} * across + q) * (kTileElements / 4);
          Eight all = load_floats(at, lane);
#pragma unroll
          for (int k = 0; k < 8; ++k) all.v[k] += c[i][0].at(lane).v[k];
          store_floats(at, lane, all);
        });
      }
    }
  }

  static ADE_HD void multiply(Four* at, int lane, const Eight& by) {
    Eight e = load_floats(at, lane);
#pragma unroll
    for (int i = 0; i < 8; ++i) e.v[i] *= by.v[i];
    store_floats(at, lane, e);
  }
  static ADE_HD void add_rows(Four& sum, const Eight& e) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.v[column_slot(i)] += e.v[i];
  }
  template <class Warp>
  ADE_HD void add_column_sums(Warp& warp, typename Warp::template Reg<Four>& total, int64_t to, int p) {
    warp.column_sum(total);
    float* const sum = sums() + to + p * kTile;
    warp.each([&](int lane) {
      if (lane >= 4) return;
      const Four& four = total.at(lane);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[lane * 2 + j % 2 + j / 2 * 8] += four.v[j];
    });
  }

  Block& block_;
  const MlpPlan& plan_;
  BlockTiles weights_;  // of all layers
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
