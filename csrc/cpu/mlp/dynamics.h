// One kick or drift of a tile's rows, and its vector-Jacobian product: the clips and steps of the dynamics
// around the formulas of steps/generalized_leapfrog.h, between which the force's and the noise's have passes
// of their own: where there is neither, nothing changes.
#pragma once

#include <cstring>

#include "common/noise.h"
#include "cpu/mlp/arena.h"
#include "cpu/rows.h"
#include "cpu/vector_exp.h"
#include "launch/mlp.h"
#include "potentials/affine_force.h"
#include "steps/generalized_leapfrog.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

// Sums over the batch of the cotangents of the steps and of the logs of the scales.
template <class T>
struct StepSums {
  T* kick;     // [T+1, D]
  T* drift;    // [T, D]
  T* decay;    // [T+1, D]
  T* stretch;  // [T, D]
  T* scale;    // [T+1]; this and what follows only where the dynamics have it
  T* pull;     // [T+1, D]
  T* centre;   // [T+1, D]
  T* noise_v;  // [T, D]
  T* noise_x;  // [T, D]
  T* scratch;  // [3, D], of one step of one tile: short sums round less
};

template <class T>
class Dynamics {
 public:
  Dynamics(const MlpDynamics& args, int dim, Arena& arena)
      : args_(args),
        dim_(dim),
        lo_(static_cast<T>(args.lo)),
        hi_(static_cast<T>(args.hi)),
        drift_lo_(args.noise ? -kInfinity : lo_),
        drift_hi_(args.noise ? kInfinity : hi_),
        decay_(arena.take<T>((args.steps + 1) * dim)),
        stretch_(arena.take<T>(args.steps * dim)) {}

  // Before the first step.
  void prepare() {
    exponentials(args_.log_decay, args_.damping, (args_.steps + 1) * dim_, decay_);
    exponentials(args_.log_stretch, 1, args_.steps * dim_, stretch_);
  }

  // Whether the force differs from F.
  bool bridged() const { return args_.bridged(); }
  // ξ_t of the rows from `first` on, or null.
  const T* noise(int64_t t, int64_t first) const {
    return args_.noise ? row(args_.noise, t * args_.rows + first) : nullptr;
  }

  // force = scale F - pull (x - centre). In place too.
  void force(int64_t t, int rows, const T* x, const T* gradient, T* force) const {
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      for (int64_t d = 0; d < dim_; ++d) {
        force[i + d] = affine_force::force(gradient[i + d], x[i + d], coefficients(t, d));
      }
    }
  }

  // value += that of the Gaussian, up to a constant.
  void add_value(int64_t t, int rows, const T* x, T* value) const {
    for (int64_t r = 0; args_.pull && r < rows; ++r) {
      for (int64_t d = 0; d < dim_; ++d) value[r] += affine_force::value(x[r * dim_ + d], coefficients(t, d));
    }
  }

  // u: cotangent of the force, then of F. Adds to dx.
  void force_vjp(int64_t t, int rows, const T* x, const T* gradient, T* u, T* dx,
                 const StepSums<T>& sums) const {
    T* const dscale = sums.scratch;
    T* const dpull = sums.scratch + dim_;
    T* const dcentre = sums.scratch + 2 * dim_;
    memset(sums.scratch, 0, 3 * dim_ * sizeof(T));
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      for (int64_t d = 0; d < dim_; ++d) {
        const auto q = affine_force::force_vjp(u[i + d], gradient[i + d], x[i + d], coefficients(t, d));
        u[i + d] = q.dgrad;
        dx[i + d] += q.dx;
        dscale[d] += q.dscale;
        dpull[d] += q.dpull;
        dcentre[d] += q.dcentre;
      }
    }
    for (int64_t d = 0; args_.scale && d < dim_; ++d) sums.scale[t] += dscale[d];
    if (!args_.pull) return;
    add(dpull, sums.pull + t * dim_);
    add(dcentre, sums.centre + t * dim_);
  }

  // v <- v decay + k clip(force)
  void kick(int64_t t, int rows, const T* force, T* v) const {
    const T* const k = row(args_.kick, t);
    const T* const decay = decay_ + t * dim_;
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      const T* const f = force + i;
      T* const v_row = v + i;
      row_clip(args_.grad_clip, f, dim_).visit([=](auto clip) {
        for (int64_t d = 0; d < dim_; ++d) {
          v_row[d] = generalized_leapfrog::half_kick(v_row[d], clip(f[d]), decay[d], k[d]);
        }
      });
    }
  }

  // v is the momentum before the kick. dv: cotangent after the kick, then before it. u: cotangent of the
  // force.
  void kick_vjp(int64_t t, int rows, const T* force, const T* v, T* dv, T* u, const StepSums<T>& sums) const {
    const T* const k = row(args_.kick, t);
    const T* const decay = decay_ + t * dim_;
    T* const dk = sums.scratch;
    T* const ddecay = sums.scratch + dim_;
    memset(sums.scratch, 0, 2 * dim_ * sizeof(T));
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      const T* const f = force + i;
      const T* const v_row = v + i;
      T* const dv_row = dv + i;
      T* const u_row = u + i;
      const auto inner_product = [=] {
        T sum = 0;
        for (int64_t d = 0; d < dim_; ++d) {
          sum += f[d] * generalized_leapfrog::half_kick_vjp(dv_row[d], v_row[d], f[d], decay[d], k[d]).dforce;
        }
        return sum;
      };
      row_clip_vjp(args_.grad_clip, f, dim_, inner_product).visit([=](auto clip) {
        for (int64_t d = 0; d < dim_; ++d) {
          const auto q = generalized_leapfrog::half_kick_vjp(dv_row[d], v_row[d], clip(f[d]), decay[d], k[d]);
          dk[d] += q.da;
          ddecay[d] += q.ds;
          u_row[d] = clip.vjp(q.dforce, f[d]);
          dv_row[d] = q.dv;
        }
      });
    }
    add(dk, sums.kick + t * dim_);
    add(ddecay, sums.decay + t * dim_);
  }

  // After kick t + 1: v <- v + noise_v ξ_t
  void refresh_momentum(int64_t t, int rows, const T* noise, T* v) const {
    refresh(row(args_.noise_v, t), rows, noise, -kInfinity, kInfinity, v);
  }
  // v's cotangent passes.
  void refresh_momentum_vjp(int64_t t, int rows, const T* noise, const T* dv, const StepSums<T>& sums) const {
    T* const dsigma = sums.scratch;
    memset(dsigma, 0, dim_ * sizeof(T));
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      for (int64_t d = 0; d < dim_; ++d) {
        dsigma[d] += add_noise_vjp(dv[i + d], T(0), noise[i + d], T(0), -kInfinity, kInfinity).dsigma;
      }
    }
    add(dsigma, sums.noise_v + t * dim_);
  }

  // x <- clamp(x stretch + drift clip(v) + noise_x ξ, lo, hi); noise: ξ, or null.
  void drift(int64_t t, int rows, const T* v, const T* noise, T* x) const {
    const T* const eta = row(args_.drift, t);
    const T* const stretch = stretch_ + t * dim_;
    const T lo = drift_lo_, hi = drift_hi_;
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      const T* const v_row = v + i;
      T* const x_row = x + i;
      row_clip(args_.momentum_clip, v_row, dim_).visit([=](auto clip) {
        for (int64_t d = 0; d < dim_; ++d) {
          x_row[d] = generalized_leapfrog::drift(x_row[d], clip(v_row[d]), stretch[d], eta[d], lo, hi);
        }
      });
    }
    if (noise) refresh(row(args_.noise_x, t), rows, noise, lo_, hi_, x);
  }

  // x is the position before the drift. dx: cotangent after the drift, then before it. Adds to dv.
  void drift_vjp(int64_t t, int rows, const T* x, const T* v, const T* noise, T* dx, T* dv,
                 const StepSums<T>& sums) const {
    if (noise) refresh_position_vjp(t, rows, x, v, noise, dx, sums);
    const T* const eta = row(args_.drift, t);
    const T* const stretch = stretch_ + t * dim_;
    T* const deta = sums.scratch;
    T* const dstretch = sums.scratch + dim_;
    memset(sums.scratch, 0, 2 * dim_ * sizeof(T));
    const T lo = drift_lo_, hi = drift_hi_;
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      const T* const x_row = x + i;
      const T* const v_row = v + i;
      T* const dx_row = dx + i;
      T* const dv_row = dv + i;
      const auto inner_product = [&] {
        const T s = row_clip(args_.momentum_clip, v_row, dim_).scale;
        T sum = 0;
        for (int64_t d = 0; d < dim_; ++d) {
          const T u = v_row[d] * s;
          sum += v_row[d] *
                 generalized_leapfrog::drift_vjp(dx_row[d], x_row[d], u, stretch[d], eta[d], lo, hi).du;
        }
        return sum;
      };
      row_clip_vjp(args_.momentum_clip, v_row, dim_, inner_product).visit([=](auto clip) {
        for (int64_t d = 0; d < dim_; ++d) {
          const auto q = generalized_leapfrog::drift_vjp(dx_row[d], x_row[d], clip(v_row[d]), stretch[d],
                                                         eta[d], lo, hi);
          deta[d] += q.deta;
          dstretch[d] += q.ds;
          dv_row[d] += clip.vjp(q.du, v_row[d]);
          dx_row[d] = q.dx;
        }
      });
    }
    add(deta, sums.drift + t * dim_);
    add(dstretch, sums.stretch + t * dim_);
  }

 private:
  static constexpr T kInfinity = static_cast<T>(INFINITY);

  affine_force::Coefficients<T> coefficients(int64_t t, int64_t d) const {
    return affine_force::Coefficients<T>::at(args_.scale, args_.pull, args_.centre, t, dim_, d);
  }

  // y <- clamp(y + sigma ξ, lo, hi)
  void refresh(const T* sigma, int rows, const T* noise, T lo, T hi, T* y) const {
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      for (int64_t d = 0; d < dim_; ++d) {
        y[i + d] = add_noise(y[i + d], noise[i + d], sigma[d], lo, hi);
      }
    }
  }
  // x is the position before the drift. dx: cotangent after the noise, then before it.
  void refresh_position_vjp(int64_t t, int rows, const T* x, const T* v, const T* noise, T* dx,
                            const StepSums<T>& sums) const {
    const T* const eta = row(args_.drift, t);
    const T* const sigma = row(args_.noise_x, t);
    const T* const stretch = stretch_ + t * dim_;
    T* const dsigma = sums.scratch;
    memset(dsigma, 0, dim_ * sizeof(T));
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      const T* const x_row = x + i;
      const T* const v_row = v + i;
      const T* const noise_row = noise + i;
      T* const dx_row = dx + i;
      row_clip(args_.momentum_clip, v_row, dim_).visit([=](auto clip) {
        for (int64_t d = 0; d < dim_; ++d) {
          const T y =
              generalized_leapfrog::drift(x_row[d], clip(v_row[d]), stretch[d], eta[d], drift_lo_, drift_hi_);
          const auto q = add_noise_vjp(dx_row[d], y, noise_row[d], sigma[d], lo_, hi_);
          dsigma[d] += q.dsigma;
          dx_row[d] = q.dy;
        }
      });
    }
    add(dsigma, sums.noise_x + t * dim_);
  }

  const T* row(const void* steps, int64_t t) const { return static_cast<const T*>(steps) + t * dim_; }

  void add(const T* terms, T* sum) const {
    for (int64_t d = 0; d < dim_; ++d) sum[d] += terms[d];
  }
  static void exponentials(const void* logs, double otherwise, int64_t size, T* out) {
    const T* const s = static_cast<const T*>(logs);
    for (int64_t i = 0; i < size; ++i) out[i] = s ? vector_exp(s[i]) : static_cast<T>(otherwise);
  }

  const MlpDynamics args_;
  const int64_t dim_;
  const T lo_, hi_;
  const T drift_lo_, drift_hi_;  // before the noise, which alone is held in the range
  T* const decay_;               // [T+1, D]
  T* const stretch_;             // [T, D]
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
