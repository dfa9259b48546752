// One kick or drift of a tile's rows, and its vector-Jacobian product: the clips and steps of the dynamics
// around the formulas of steps/generalized_leapfrog.h.
#pragma once

#include <cstring>

#include "cpu/mlp/arena.h"
#include "cpu/rows.h"
#include "cpu/vector_exp.h"
#include "launch/mlp.h"
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
  T* scratch;  // [2, D], of one step of one tile: short sums round less
};

template <class T>
class Dynamics {
 public:
  Dynamics(const MlpDynamics& args, int dim, Arena& arena)
      : args_(args),
        dim_(dim),
        lo_(static_cast<T>(args.lo)),
        hi_(static_cast<T>(args.hi)),
        decay_(arena.take<T>((args.steps + 1) * dim)),
        stretch_(arena.take<T>(args.steps * dim)) {}

  // Before the first step.
  void prepare() {
    exponentials(args_.log_decay, args_.damping, (args_.steps + 1) * dim_, decay_);
    exponentials(args_.log_stretch, 1, args_.steps * dim_, stretch_);
  }

  // v <- v decay + k clip(F)
  void kick(int64_t t, int rows, const T* gradient, T* v) const {
    const T* const k = row(args_.kick, t);
    const T* const decay = decay_ + t * dim_;
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      const T* const f = gradient + i;
      T* const v_row = v + i;
      row_clip(args_.grad_clip, f, dim_).visit([=](auto clip) {
        for (int64_t d = 0; d < dim_; ++d) {
          v_row[d] = generalized_leapfrog::half_kick(v_row[d], clip(f[d]), decay[d], k[d]);
        }
      });
    }
  }

  // v is the momentum before the kick. dv: cotangent after the kick, then before it. u: cotangent of F.
  void kick_vjp(int64_t t, int rows, const T* gradient, const T* v, T* dv, T* u,
                const StepSums<T>& sums) const {
    const T* const k = row(args_.kick, t);
    const T* const decay = decay_ + t * dim_;
    T* const dk = sums.scratch;
    T* const ddecay = sums.scratch + dim_;
    memset(sums.scratch, 0, 2 * dim_ * sizeof(T));
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      const T* const f = gradient + i;
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

  // x <- clamp(x stretch + drift clip(v), lo, hi)
  void drift(int64_t t, int rows, const T* v, T* x) const {
    const T* const eta = row(args_.drift, t);
    const T* const stretch = stretch_ + t * dim_;
    const T lo = lo_, hi = hi_;
    for (int64_t i = 0; i < rows * dim_; i += dim_) {
      const T* const v_row = v + i;
      T* const x_row = x + i;
      row_clip(args_.momentum_clip, v_row, dim_).visit([=](auto clip) {
        for (int64_t d = 0; d < dim_; ++d) {
          x_row[d] = generalized_leapfrog::drift(x_row[d], clip(v_row[d]), stretch[d], eta[d], lo, hi);
        }
      });
    }
  }

  // x is the position before the drift. dx: cotangent after the drift, then before it. Adds to dv.
  void drift_vjp(int64_t t, int rows, const T* x, const T* v, T* dx, T* dv, const StepSums<T>& sums) const {
    const T* const eta = row(args_.drift, t);
    const T* const stretch = stretch_ + t * dim_;
    T* const deta = sums.scratch;
    T* const dstretch = sums.scratch + dim_;
    memset(sums.scratch, 0, 2 * dim_ * sizeof(T));
    const T lo = lo_, hi = hi_;
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
  T* const decay_;    // [T+1, D]
  T* const stretch_;  // [T, D]
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
