// One kick or drift of a block's rows, and its vector-Jacobian product: the clips and steps of the dynamics
// around the formulas of steps/generalized_leapfrog.h. A row belongs to a group of neighbouring threads,
// whose loops over its elements are short: unrolled, they would cost the registers of the products. The
// force's and the noise's formulas have phases of their own, which are left out where there is neither.
#pragma once

#include "common/noise.h"
#include "cuda/dynamics.h"
#include "cuda/mlp/plan.h"
#include "potentials/affine_force.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

struct MlpState {
  float square, inner;  // of the row at hand: ‖u‖² and ⟨u, dy⟩
};

template <class Block>
ADE_HD void copy_floats(Block& block, const float* from, int size, float* to) {
  block.each([=](int thread, MlpState&) {
    for (int i = thread; i < size; i += kThreads) to[i] = from[i];
  });
}

// R tiles of rows.
template <int R, class Block>
class MlpDynamicsRows {
 public:
  static constexpr int kRows = R * kTile, kGroup = kThreads / kRows;

  ADE_HD MlpDynamicsRows(Block& block, const MlpDynamics& args, int dim)
      : rows(0),
        block_(block),
        args_(args),
        dim_(dim),
        grad_clip_{args.grad_clip.mode, static_cast<float>(args.grad_clip.bound)},
        momentum_clip_{args.momentum_clip.mode, static_cast<float>(args.momentum_clip.bound)},
        lo_(static_cast<float>(args.lo)),
        hi_(static_cast<float>(args.hi)) {}

  int rows;  // that exist

  // Whether the force differs from F.
  ADE_HD bool bridged() const { return args_.bridged(); }
  // ξ_t of the rows from `first` on, or null.
  ADE_HD const float* noise(int64_t t, int64_t first) const {
    return args_.noise ? static_cast<const float*>(args_.noise) + (t * args_.rows + first) * dim_ : nullptr;
  }

  // force = scale F - pull (x - centre). In place too.
  ADE_HD void force(int64_t t, const float* x, const float* gradient, float* force) {
    each_element(
        [=](int at, int d) { force[at] = affine_force::force(gradient[at], x[at], coefficients(t, d)); });
  }
  // u: cotangent of the force, then of F. terms [3, rows, D]: each row's parts of dpull, dcentre, dscale.
  ADE_HD void force_vjp(int64_t t, const float* x, const float* gradient, float* u, float* terms) {
    each_element([=](int at, int d) {
      const auto q = affine_force::force_vjp(u[at], gradient[at], x[at], coefficients(t, d));
      u[at] = q.dgrad;
      terms[at] = q.dpull;
      terms[kRows * dim_ + at] = q.dcentre;
      terms[2 * kRows * dim_ + at] = q.dscale;
    });
  }
  // The part of it that is x's own: adds to dx, for u, the force's cotangent.
  ADE_HD void pull_vjp(int64_t t, const float* u, float* dx) {
    each_element(
        [=](int at, int d) { dx[at] += affine_force::force_vjp(u[at], 0.0f, 0.0f, coefficients(t, d)).dx; });
  }

  // v <- v decay + k clip(force). Also to v_out, unless null.
  ADE_HD void kick(int64_t t, const float* force, float* v, float* v_out) {
    if (grad_clip_.by_norm()) square_norms(force);
    each_row([=](int row, int lane, MlpState& s) {
      const float scale = norm_clip_scale(s.square, grad_clip_.bound);
#pragma unroll 1
      for (int d = lane; d < dim_; d += kGroup) {
        const int at = row * dim_ + d;
        v[at] =
            generalized_leapfrog::half_kick(v[at], clip(grad_clip_, force[at], scale), decay(t, d), k(t, d));
        if (v_out != nullptr) v_out[at] = v[at];
      }
    });
    block_.sync();
  }

  // After kick t + 1: v <- v + noise_v ξ_t. Also to v_out, unless null.
  ADE_HD void refresh_momentum(int64_t t, const float* noise, float* v, float* v_out) {
    each_element([=](int at, int d) {
      v[at] = add_noise(v[at], noise[at], this->at(args_.noise_v, t, d), -kInfinity, kInfinity);
      if (v_out != nullptr) v_out[at] = v[at];
    });
  }
  // v's cotangent passes. terms: first, each row's part of dnoise_v.
  ADE_HD void refresh_momentum_vjp(const float* noise, const float* dv, float* terms) {
    each_element([=](int at, int) {
      terms[at] = add_noise_vjp(dv[at], 0.0f, noise[at], 0.0f, -kInfinity, kInfinity).dsigma;
    });
  }
  // After drift t: x <- clamp(x + noise_x ξ_t, lo, hi)
  ADE_HD void refresh_position(int64_t t, const float* noise, float* x) {
    each_element(
        [=](int at, int d) { x[at] = add_noise(x[at], noise[at], this->at(args_.noise_x, t, d), lo_, hi_); });
  }
  // x and v before the drift. dx: cotangent after the noise, then before it. terms: first, dnoise_x's.
  ADE_HD void refresh_position_vjp(int64_t t, const float* x, const float* v, const float* noise, float* dx,
                                   float* terms) {
    if (momentum_clip_.by_norm()) square_norms(v);
    each_row([=](int row, int lane, MlpState& s) {
      const float scale = norm_clip_scale(s.square, momentum_clip_.bound);
#pragma unroll 1
      for (int d = lane; d < dim_; d += kGroup) {
        const int at = row * dim_ + d;
        const float y = generalized_leapfrog::drift(x[at], clip(momentum_clip_, v[at], scale), stretch(t, d),
                                                    eta(t, d), drift_lo(), drift_hi());
        const auto q = add_noise_vjp(dx[at], y, noise[at], this->at(args_.noise_x, t, d), lo_, hi_);
        terms[at] = q.dsigma;
        dx[at] = q.dy;
      }
    });
    block_.sync();
  }

  // to += from
  ADE_HD void add(const float* from, float* to) {
    each_element([=](int at, int) { to[at] += from[at]; });
  }

  // x <- clamp(x stretch + drift clip(v), lo, hi); with noise, which follows, without the range.
  ADE_HD void drift(int64_t t, const float* v, float* x) {
    if (momentum_clip_.by_norm()) square_norms(v);
    each_row([=](int row, int lane, MlpState& s) {
      const float scale = norm_clip_scale(s.square, momentum_clip_.bound);
#pragma unroll 1
      for (int d = lane; d < dim_; d += kGroup) {
        const int at = row * dim_ + d;
        x[at] = generalized_leapfrog::drift(x[at], clip(momentum_clip_, v[at], scale), stretch(t, d),
                                            eta(t, d), drift_lo(), drift_hi());
      }
    });
    block_.sync();
  }

  // The vjp of a kick is of two parts, either first. Of the force: u, its cotangent; dv is that of v after
  // the kick. terms [2, rows, D]: first, each row's part of dk.
  ADE_HD void kick_vjp(int64_t t, const float* force, const float* dv, float* u, float* terms) {
    if (grad_clip_.by_norm()) {
      row_sums(force, [=](int at, int d, float) {
        return force[at] * kick_vjp_at(t, d, dv[at], 0, force[at]).dforce;
      });
    }
    each_row([=](int row, int lane, MlpState& s) {
      const RowClip<float> by = row_clip(grad_clip_, s);
#pragma unroll 1
      for (int d = lane; d < dim_; d += kGroup) {
        const int at = row * dim_ + d;
        const auto q = kick_vjp_at(t, d, dv[at], 0, clip(grad_clip_, force[at], by.scale));
        terms[at] = q.da;
        u[at] = clip_vjp(grad_clip_, q.dforce, force[at], by);
      }
    });
    block_.sync();
  }
  // Of the momentum, v before the kick: dv becomes its cotangent. terms: second, each row's part of
  // dlog_decay.
  ADE_HD void momentum_vjp(int64_t t, const float* v, float* dv, float* terms) {
    each_row([=](int row, int lane, MlpState&) {
#pragma unroll 1
      for (int d = lane; d < dim_; d += kGroup) {
        const int at = row * dim_ + d;
        const auto q = kick_vjp_at(t, d, dv[at], v[at], 0);
        terms[kRows * dim_ + at] = q.ds;
        dv[at] = q.dv;
      }
    });
    block_.sync();
  }

  // x is the position before the drift. dx: cotangent after the drift, then before it. Adds to dv. terms:
  // each row's part of ddrift and of dlog_stretch.
  ADE_HD void drift_vjp(int64_t t, const float* x, const float* v, float* dx, float* dv, float* terms) {
    if (momentum_clip_.by_norm()) {
      row_sums(v, [=](int at, int d, float square) {
        const float u = v[at] * norm_clip_scale(square, momentum_clip_.bound);
        return v[at] * drift_vjp_at(t, d, dx[at], x[at], u).du;
      });
    }
    each_row([=](int row, int lane, MlpState& s) {
      const RowClip<float> by = row_clip(momentum_clip_, s);
#pragma unroll 1
      for (int d = lane; d < dim_; d += kGroup) {
        const int at = row * dim_ + d;
        const auto q = drift_vjp_at(t, d, dx[at], x[at], clip(momentum_clip_, v[at], by.scale));
        terms[at] = q.deta;
        terms[kRows * dim_ + at] = q.ds;
        dv[at] += clip_vjp(momentum_clip_, q.du, v[at], by);
        dx[at] = q.dx;
      }
    });
    block_.sync();
  }

  // Adds the sums over the rows of both terms to first [D] and second [D], unless null. A warp has a column
  // at a time.
  ADE_HD void add_sums(const float* terms, float* first, float* second) {
    const int begin = first == nullptr ? dim_ : 0, end = second == nullptr ? dim_ : 2 * dim_;
    for (int base = begin; base < end; base += kWarps) {
      block_.each([=](int thread, MlpState& s) {
        const int column = base + thread / kWarp, d = column % dim_;
        s.square = 0;
        if (column >= end) return;
        for (int row = thread % kWarp; row < rows; row += kWarp)
          s.square += terms[column / dim_ * kRows * dim_ + row * dim_ + d];
      });
      block_.lane_sum(&MlpState::square, kWarp);
      block_.each([=](int thread, MlpState& s) {
        const int column = base + thread / kWarp;
        if (thread % kWarp != 0 || column >= end) return;
        (column < dim_ ? first : second)[column % dim_] += s.square;
      });
    }
    if (begin < end) block_.sync();
  }

  // ‖u‖ of the rows that exist.
  ADE_HD void norms(const float* u, float* to) {
    block_.each([=](int thread, MlpState& s) {
      s.square = 0;
      if (thread / kGroup >= rows) return;
#pragma unroll 1
      for (int at = thread / kGroup * dim_ + thread % kGroup; at < (thread / kGroup + 1) * dim_; at += kGroup)
        s.square += u[at] * u[at];
    });
    block_.lane_sum(&MlpState::square, kGroup);
    each_row([=](int row, int lane, MlpState& s) {
      if (lane == 0) to[row] = std::sqrt(s.square);
    });
    block_.sync();
  }

  // to = from, for the rows that exist.
  ADE_HD void copy(const float* from, float* to) { copy_floats(block_, from, rows * dim_, to); }

 private:
  static constexpr float kInfinity = static_cast<float>(INFINITY);

  // phase(at, d), and the barrier.
  template <class Phase>
  ADE_HD void each_element(Phase phase) {
    each_row([=](int row, int lane, MlpState&) {
#pragma unroll 1
      for (int d = lane; d < dim_; d += kGroup) phase(row * dim_ + d, d);
    });
    block_.sync();
  }
  template <class Phase>
  ADE_HD void each_row(Phase phase) {
    block_.each([=](int thread, MlpState& s) {
      if (thread / kGroup < rows) phase(thread / kGroup, thread % kGroup, s);
    });
  }
  ADE_HD void square_norms(const float* u) {
    block_.each([=](int thread, MlpState& s) {
      const int row = thread / kGroup;
      s.square = s.inner = 0;
      if (row >= rows) return;
      for (int d = thread % kGroup; d < dim_; d += kGroup) s.square += u[row * dim_ + d] * u[row * dim_ + d];
    });
    block_.lane_sum(&MlpState::square, kGroup);
  }
  // ‖u‖² of a row and, of its elements' terms, ⟨u, dy⟩. term(at, d, ‖u‖²).
  template <class Term>
  ADE_HD void row_sums(const float* u, Term term) {
    square_norms(u);
    each_row([=](int row, int lane, MlpState& s) {
      for (int d = lane; d < dim_; d += kGroup) s.inner += term(row * dim_ + d, d, s.square);
    });
    block_.lane_sum(&MlpState::inner, kGroup);
  }
  static ADE_HD RowClip<float> row_clip(const Clip<float>& by, const MlpState& s) {
    return {norm_clip_scale(s.square, by.bound), norm_clip_shrink(s.square, s.inner, by.bound)};
  }
  ADE_HD generalized_leapfrog::DriftVjp<float> drift_vjp_at(int64_t t, int d, float dx, float x,
                                                            float u) const {
    return generalized_leapfrog::drift_vjp(dx, x, u, stretch(t, d), eta(t, d), drift_lo(), drift_hi());
  }

  ADE_HD generalized_leapfrog::HalfKickVjp<float> kick_vjp_at(int64_t t, int d, float dv, float v,
                                                              float force) const {
    return generalized_leapfrog::half_kick_vjp(dv, v, force, decay(t, d), k(t, d));
  }

  ADE_HD affine_force::Coefficients<float> coefficients(int64_t t, int d) const {
    return affine_force::Coefficients<float>::at(args_.scale, args_.pull, args_.centre, t, dim_, d);
  }
  ADE_HD float drift_lo() const { return args_.noise ? -kInfinity : lo_; }
  ADE_HD float drift_hi() const { return args_.noise ? kInfinity : hi_; }
  ADE_HD float at(const void* steps, int64_t t, int d) const {
    return static_cast<const float*>(steps)[t * dim_ + d];
  }
  ADE_HD float k(int64_t t, int d) const { return at(args_.kick, t, d); }
  ADE_HD float eta(int64_t t, int d) const { return at(args_.drift, t, d); }
  ADE_HD float decay(int64_t t, int d) const {
    return args_.log_decay ? std::exp(at(args_.log_decay, t, d)) : static_cast<float>(args_.damping);
  }
  ADE_HD float stretch(int64_t t, int d) const {
    return args_.log_stretch ? std::exp(at(args_.log_stretch, t, d)) : 1.0f;
  }

  Block& block_;
  const MlpDynamics& args_;
  const int dim_;
  const Clip<float> grad_clip_, momentum_clip_;
  const float lo_, hi_;
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
