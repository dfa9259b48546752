// Generalized leapfrog on the CPU: loops over rows around steps/generalized_leapfrog.h.
// Compiled once per instruction set (cpu/dispatch.cpp chooses). A *_run function is one vectorised loop over
// one run.
#include "steps/generalized_leapfrog.h"

#include "cpu/rows.h"
#include "cpu/scales.h"
#include "launch/generalized_leapfrog.h"

namespace ade {
namespace ADE_ISA {
namespace {

namespace step = generalized_leapfrog;

// A half kick with a, or a merged one with a and b.
template <class S, class A = acc_t<S>>
void kick_run(const S* v, const S* force, const A* exp_s, const A* a, const A* b,
              const RowClip<A>& force_clip, S* v_out, int64_t size) {
  force_clip.visit([=](auto clip) {
    if (b == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        v_out[i] = Store<S>::from(step::half_kick(load(v[i]), clip(load(force[i])), exp_s[i], a[i]));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        v_out[i] = Store<S>::from(step::merged_kick(load(v[i]), clip(load(force[i])), exp_s[i], a[i], b[i]));
      }
    }
  });
}

// dy(i) is the cotangent of the momentum after the kick. Adds to da and db; db belongs to b.
template <class S, class Cotangent, class A = acc_t<S>>
void kick_backward_run(const Cotangent& dy, const S* v, const S* force, const A* exp_s, const A* a,
                       const A* b, const RowClip<A>& force_clip, S* dv, S* dforce, A* ds, A* da, A* db,
                       int64_t size) {
  force_clip.visit([=](auto clip) {
    if (b == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        const A u = load(force[i]);
        const auto d = step::half_kick_vjp(dy(i), load(v[i]), clip(u), exp_s[i], a[i]);
        dv[i] = Store<S>::from(d.dv);
        dforce[i] = Store<S>::from(clip.vjp(d.dforce, u));
        ds[i] = d.ds;
        da[i] += d.da;
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        const A u = load(force[i]);
        const auto d = step::merged_kick_vjp(dy(i), load(v[i]), clip(u), exp_s[i], a[i], b[i]);
        dv[i] = Store<S>::from(d.dv);
        dforce[i] = Store<S>::from(clip.vjp(d.dforce, u));
        ds[i] = d.ds;
        da[i] += d.da;
        db[i] += d.db;
      }
    }
  });
}

// ⟨force, cotangent of the clipped force⟩ over one run: what the norm clip needs to know.
template <class S, class Cotangent, class A = acc_t<S>>
A kick_inner_product(const Cotangent& dy, const S* force, const A* exp_s, const A* a, const A* b,
                     int64_t size) {
  A sum = 0;
  if (b == nullptr) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) {
      sum += load(force[i]) * step::half_kick_vjp(dy(i), A(0), A(0), exp_s[i], a[i]).dforce;
    }
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) {
      sum += load(force[i]) * step::merged_kick_vjp(dy(i), A(0), A(0), exp_s[i], a[i], b[i]).dforce;
    }
  }
  return sum;
}

template <class S, class A = acc_t<S>>
void drift_run(const S* x, const S* u, const A* exp_s, const A* eta, const RowClip<A>& u_clip, A lo, A hi,
               S* x_out, int64_t size) {
  u_clip.visit([=](auto clip) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      x_out[i] = Store<S>::from(step::drift(load(x[i]), clip(load(u[i])), exp_s[i], eta[i], lo, hi));
    }
  });
}

// put(i, du) takes the cotangent of u. Adds to deta.
template <class S, class Put, class A = acc_t<S>>
void drift_backward_run(const S* dx_out, const S* x, const S* u, const A* exp_s, const A* eta,
                        const RowClip<A>& u_clip, A lo, A hi, S* dx, const Put& put, A* ds, A* deta,
                        int64_t size) {
  u_clip.visit([=](auto clip) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const A ui = load(u[i]);
      const auto d = step::drift_vjp(load(dx_out[i]), load(x[i]), clip(ui), exp_s[i], eta[i], lo, hi);
      dx[i] = Store<S>::from(d.dx);
      put(i, clip.vjp(d.du, ui));
      ds[i] = d.ds;
      deta[i] += d.deta;
    }
  });
}

// ⟨u, cotangent of the clipped u⟩ over one run; the clipped u is scale · u.
template <class S, class A = acc_t<S>>
A drift_inner_product(const S* dx_out, const S* x, const S* u, A scale, const A* exp_s, const A* eta, A lo,
                      A hi, int64_t size) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) {
    const A ui = load(u[i]);
    sum += ui * step::drift_vjp(load(dx_out[i]), load(x[i]), ui * scale, exp_s[i], eta[i], lo, hi).du;
  }
  return sum;
}

// What the drift's backward and the fused pair's backward read of a drift.
template <class S>
struct DriftSide {
  using A = acc_t<S>;
  const S *dx_out, *x, *u;
  ClipArgs clip;
  A lo, hi;

  template <class Args>
  DriftSide(const Args& args, const void* u, const ClipArgs& clip)
      : dx_out(static_cast<const S*>(args.dx_out)),
        x(static_cast<const S*>(args.x)),
        u(static_cast<const S*>(u)),
        clip(clip),
        lo(static_cast<A>(args.lo)),
        hi(static_cast<A>(args.hi)) {}

  RowClip<A> row_clip_of(int64_t row, const Walk& walk, Exponential<A>& exp_s,
                         const SharedRow<A>& eta) const {
    const int64_t first = row * walk.cols;
    return row_clip_vjp(clip, u + first, walk.cols, [&] {
      const A scale = row_clip(clip, u + first, walk.cols).scale;
      A sum = 0;
      walk.for_each_run(row, 1, [&](int64_t col, int64_t at, int64_t size) {
        sum += drift_inner_product(dx_out + at, x + at, u + at, scale, exp_s.of_run(col, at, size),
                                   eta.at(col), lo, hi, size);
      });
      return sum;
    });
  }
};

// The steps of a kick: a, and b of a merged one.
template <class A>
struct KickSteps {
  SharedRow<A> a, b;
  const bool merged;

  KickSteps(const void* step, const void* next_step, const Walk& walk)
      : a(step, walk), b(next_step, walk), merged(next_step != nullptr) {}
  const A* b_at(int64_t col) const { return merged ? b.at(col) : nullptr; }
  static A halves(const void* next_step) { return next_step != nullptr ? A(2) : A(1); }
};

template <class S>
void kick(const GeneralizedLeapfrogKick& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto v = static_cast<const S*>(args.v), force = static_cast<const S*>(args.force);
  const auto v_out = static_cast<S*>(args.v_out);
  const auto log_det = static_cast<A*>(args.log_det);
  const A halves = KickSteps<A>::halves(args.next_step);
  const A* const shared =
      shared_exponential(args.scale, args.cols, static_cast<A*>(args.workspace), parallel);
  const Walk walk(args.cols, args.clip.mode == kClipNorm);
  parallel_for(parallel, args.rows, args.cols, [&](int64_t begin, int64_t end) {
    const KickSteps<A> k(args.step, args.next_step, walk);
    const LogDet<A> log_det_v(args.scale, walk.cols);
    Exponential<A> exp_s(args.scale, shared, walk);
    walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
      const auto clip = row_clip(args.clip, force + row * walk.cols, walk.cols);
      walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
        kick_run(v + at, force + at, exp_s.of_run(col, at, size), k.a.at(col), k.b_at(col), clip, v_out + at,
                 size);
      });
      for (int64_t r = row; r < row + rows; ++r) log_det[r] = halves * log_det_v.of_row(r);
    });
  });
}

template <class S>
void kick_backward(const GeneralizedLeapfrogKickBackward& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto dv_out = static_cast<const S*>(args.dv_out), v = static_cast<const S*>(args.v);
  const auto force = static_cast<const S*>(args.force);
  const auto dv = static_cast<S*>(args.dv), dforce = static_cast<S*>(args.dforce);
  A* const workspace = static_cast<A*>(args.workspace);
  const A* const shared = shared_exponential(args.scale, args.cols, workspace, parallel);
  const ScaleCotangent<A> dscale(args.scale, args.dscale, args.dlog_det,
                                 KickSteps<A>::halves(args.next_step));
  A* const outputs[] = {static_cast<A*>(args.dstep), static_cast<A*>(args.dnext_step),
                        ScaleCotangent<A>::summed(args.scale, args.dscale)};
  const Walk walk(args.cols, args.clip.mode == kClipNorm);
  sum_over_rows(args.rows, walk, outputs, workspace + args.cols, parallel,
                [&](int64_t begin, int64_t end, ColumnSum<A>* sums, A*) {
                  const KickSteps<A> k(args.step, args.next_step, walk);
                  Exponential<A> exp_s(args.scale, shared, walk);
                  A ds[kRun];
                  walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
                    const auto clip = row_clip_vjp(args.clip, force + row * walk.cols, walk.cols, [&] {
                      A sum = 0;
                      walk.for_each_run(row, 1, [&](int64_t col, int64_t at, int64_t size) {
                        sum +=
                            kick_inner_product(Loaded<S>{dv_out + at}, force + at,
                                               exp_s.of_run(col, at, size), k.a.at(col), k.b_at(col), size);
                      });
                      return sum;
                    });
                    walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
                      kick_backward_run(Loaded<S>{dv_out + at}, v + at, force + at,
                                        exp_s.of_run(col, at, size), k.a.at(col), k.b_at(col), clip, dv + at,
                                        dforce + at, ds, sums[0].at(col), sums[1].at(col), size);
                      dscale.take(row, rows, at, size, ds, sums[2].at(col));
                    });
                  });
                });
}

template <class S>
void drift(const GeneralizedLeapfrogDrift& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto x = static_cast<const S*>(args.x), u = static_cast<const S*>(args.u);
  const auto x_out = static_cast<S*>(args.x_out);
  const auto log_det = static_cast<A*>(args.log_det);
  const A* const shared =
      shared_exponential(args.scale, args.cols, static_cast<A*>(args.workspace), parallel);
  const Walk walk(args.cols, args.clip.mode == kClipNorm);
  parallel_for(parallel, args.rows, args.cols, [&](int64_t begin, int64_t end) {
    const SharedRow<A> eta(args.step, walk);
    const LogDet<A> log_det_x(args.scale, walk.cols);
    Exponential<A> exp_s(args.scale, shared, walk);
    walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
      const auto clip = row_clip(args.clip, u + row * walk.cols, walk.cols);
      walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
        drift_run(x + at, u + at, exp_s.of_run(col, at, size), eta.at(col), clip, A(args.lo), A(args.hi),
                  x_out + at, size);
      });
      for (int64_t r = row; r < row + rows; ++r) log_det[r] = log_det_x.of_row(r);
    });
  });
}

template <class S>
void drift_backward(const GeneralizedLeapfrogDriftBackward& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const DriftSide<S> side(args, args.u, args.clip);
  const auto dx = static_cast<S*>(args.dx), du = static_cast<S*>(args.du);
  A* const workspace = static_cast<A*>(args.workspace);
  const A* const shared = shared_exponential(args.scale, args.cols, workspace, parallel);
  const ScaleCotangent<A> dscale(args.scale, args.dscale, args.dlog_det, A(1));
  A* const outputs[] = {static_cast<A*>(args.dstep), ScaleCotangent<A>::summed(args.scale, args.dscale)};
  const Walk walk(args.cols, args.clip.mode == kClipNorm);
  sum_over_rows(args.rows, walk, outputs, workspace + args.cols, parallel,
                [&](int64_t begin, int64_t end, ColumnSum<A>* sums, A*) {
                  const SharedRow<A> eta(args.step, walk);
                  Exponential<A> exp_s(args.scale, shared, walk);
                  A ds[kRun];
                  walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
                    const auto clip = side.row_clip_of(row, walk, exp_s, eta);
                    walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
                      S* const du_run = du + at;
                      const auto put = [=](int64_t i, A value) { du_run[i] = Store<S>::from(value); };
                      drift_backward_run(side.dx_out + at, side.x + at, side.u + at,
                                         exp_s.of_run(col, at, size), eta.at(col), clip, side.lo, side.hi,
                                         dx + at, put, ds, sums[0].at(col), size);
                      dscale.take(row, rows, at, size, ds, sums[1].at(col));
                    });
                  });
                });
}

template <class S>
void kick_drift(const GeneralizedLeapfrogKickDrift& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto x = static_cast<const S*>(args.x), v = static_cast<const S*>(args.v);
  const auto force = static_cast<const S*>(args.force);
  const auto x_out = static_cast<S*>(args.x_out), v_out = static_cast<S*>(args.v_out);
  const auto log_det = static_cast<A*>(args.log_det);
  const A halves = KickSteps<A>::halves(args.next_step);
  A* const workspace = static_cast<A*>(args.workspace);
  const A* const shared_v = shared_exponential(args.scale_v, args.cols, workspace, parallel);
  const A* const shared_x = shared_exponential(args.scale_x, args.cols, workspace + args.cols, parallel);
  const bool drift_norm = args.drift_clip.mode == kClipNorm;
  const Walk walk(args.cols, drift_norm || args.force_clip.mode == kClipNorm);
  parallel_for(parallel, args.rows, args.cols, [&](int64_t begin, int64_t end) {
    const KickSteps<A> k(args.step, args.next_step, walk);
    const SharedRow<A> eta(args.drift_step, walk);
    const LogDet<A> log_det_v(args.scale_v, walk.cols), log_det_x(args.scale_x, walk.cols);
    Exponential<A> exp_v(args.scale_v, shared_v, walk), exp_x(args.scale_x, shared_x, walk);
    walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
      const int64_t first = row * walk.cols;
      const auto force_clip = row_clip(args.force_clip, force + first, walk.cols);
      const auto drift_of = [&](const RowClip<A>& clip, int64_t col, int64_t at, int64_t size) {
        drift_run(x + at, v_out + at, exp_x.of_run(col, at, size), eta.at(col), clip, A(args.lo), A(args.hi),
                  x_out + at, size);
      };
      walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
        kick_run(v + at, force + at, exp_v.of_run(col, at, size), k.a.at(col), k.b_at(col), force_clip,
                 v_out + at, size);
        if (!drift_norm) drift_of(elementwise_clip<A>(args.drift_clip), col, at, size);
      });
      if (drift_norm) {
        const auto clip = row_clip(args.drift_clip, v_out + first, walk.cols);
        walk.for_each_run(row, rows,
                          [&](int64_t col, int64_t at, int64_t size) { drift_of(clip, col, at, size); });
      }
      for (int64_t r = row; r < row + rows; ++r)
        log_det[r] = halves * log_det_v.of_row(r) + log_det_x.of_row(r);
    });
  });
}

template <class S>
void kick_drift_backward(const GeneralizedLeapfrogKickDriftBackward& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const DriftSide<S> side(args, args.v_out, args.drift_clip);
  const auto dv_out = static_cast<const S*>(args.dv_out), v = static_cast<const S*>(args.v);
  const auto force = static_cast<const S*>(args.force);
  const auto dx = static_cast<S*>(args.dx), dv = static_cast<S*>(args.dv),
             dforce = static_cast<S*>(args.dforce);
  A* const workspace = static_cast<A*>(args.workspace);
  const A* const shared_v = shared_exponential(args.scale_v, args.cols, workspace, parallel);
  const A* const shared_x = shared_exponential(args.scale_x, args.cols, workspace + args.cols, parallel);
  const ScaleCotangent<A> dscale_v(args.scale_v, args.dscale_v, args.dlog_det,
                                   KickSteps<A>::halves(args.next_step));
  const ScaleCotangent<A> dscale_x(args.scale_x, args.dscale_x, args.dlog_det, A(1));
  A* const outputs[] = {static_cast<A*>(args.dstep), static_cast<A*>(args.dnext_step),
                        static_cast<A*>(args.ddrift_step),
                        ScaleCotangent<A>::summed(args.scale_v, args.dscale_v),
                        ScaleCotangent<A>::summed(args.scale_x, args.dscale_x)};
  const bool force_norm = args.force_clip.mode == kClipNorm;
  const Walk walk(args.cols, force_norm || args.drift_clip.mode == kClipNorm);
  sum_over_rows(
      args.rows, walk, outputs, workspace + 2 * args.cols, parallel,
      [&](int64_t begin, int64_t end, ColumnSum<A>* sums, A* dy) {
        // dy [D] is the whole cotangent of the momentum after the kick: its own, and what came through the
        // drift.
        const KickSteps<A> k(args.step, args.next_step, walk);
        const SharedRow<A> eta(args.drift_step, walk);
        Exponential<A> exp_v(args.scale_v, shared_v, walk), exp_x(args.scale_x, shared_x, walk);
        A ds[kRun];
        walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
          const auto drift_clip = side.row_clip_of(row, walk, exp_x, eta);
          const auto kick_of = [&](const RowClip<A>& clip, int64_t col, int64_t at, int64_t size) {
            kick_backward_run(Loaded<A>{dy + col}, v + at, force + at, exp_v.of_run(col, at, size),
                              k.a.at(col), k.b_at(col), clip, dv + at, dforce + at, ds, sums[0].at(col),
                              sums[1].at(col), size);
            dscale_v.take(row, rows, at, size, ds, sums[3].at(col));
          };
          walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
            const S* const dv_run = dv_out + at;
            A* const dy_run = dy + col;
            const auto put = [=](int64_t i, A du) { dy_run[i] = load(dv_run[i]) + du; };
            drift_backward_run(side.dx_out + at, side.x + at, side.u + at, exp_x.of_run(col, at, size),
                               eta.at(col), drift_clip, side.lo, side.hi, dx + at, put, ds, sums[2].at(col),
                               size);
            dscale_x.take(row, rows, at, size, ds, sums[4].at(col));
            if (!force_norm) kick_of(elementwise_clip<A>(args.force_clip), col, at, size);
          });
          if (!force_norm) return;
          const auto clip = row_clip_vjp(args.force_clip, force + row * walk.cols, walk.cols, [&] {
            A sum = 0;
            walk.for_each_run(row, 1, [&](int64_t col, int64_t at, int64_t size) {
              sum += kick_inner_product(Loaded<A>{dy + col}, force + at, exp_v.of_run(col, at, size),
                                        k.a.at(col), k.b_at(col), size);
            });
            return sum;
          });
          walk.for_each_run(row, rows,
                            [&](int64_t col, int64_t at, int64_t size) { kick_of(clip, col, at, size); });
        });
      });
}

// `scales` rows for shared exponentials, then what the sums over the batch need.
template <class Args>
int64_t forward_bytes(const Args& args, int64_t scales) {
  return scales * args.cols * accumulator_bytes(args.dtype);
}
template <class Args>
int64_t backward_bytes(const Args& args, int64_t scales, int64_t sums) {
  return forward_bytes(args, scales) +
         sum_workspace_elements(args.rows, args.cols, sums) * accumulator_bytes(args.dtype);
}

}  // namespace

int64_t workspace_bytes(const GeneralizedLeapfrogKick& args) {
  return forward_bytes(args, is_shared(args.scale));
}
int64_t workspace_bytes(const GeneralizedLeapfrogDrift& args) {
  return forward_bytes(args, is_shared(args.scale));
}
int64_t workspace_bytes(const GeneralizedLeapfrogKickDrift& args) {
  return forward_bytes(args, is_shared(args.scale_v) || is_shared(args.scale_x) ? 2 : 0);
}
int64_t workspace_bytes(const GeneralizedLeapfrogKickBackward& args) { return backward_bytes(args, 1, 3); }
int64_t workspace_bytes(const GeneralizedLeapfrogDriftBackward& args) { return backward_bytes(args, 1, 2); }
int64_t workspace_bytes(const GeneralizedLeapfrogKickDriftBackward& args) {
  return backward_bytes(args, 2, 5);
}

void launch(const GeneralizedLeapfrogKick& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { kick<decltype(s)>(args, parallel); });
}
void launch(const GeneralizedLeapfrogKickBackward& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { kick_backward<decltype(s)>(args, parallel); });
}
void launch(const GeneralizedLeapfrogDrift& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { drift<decltype(s)>(args, parallel); });
}
void launch(const GeneralizedLeapfrogDriftBackward& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { drift_backward<decltype(s)>(args, parallel); });
}
void launch(const GeneralizedLeapfrogKickDrift& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { kick_drift<decltype(s)>(args, parallel); });
}
void launch(const GeneralizedLeapfrogKickDriftBackward& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { kick_drift_backward<decltype(s)>(args, parallel); });
}

}  // namespace ADE_ISA
}  // namespace ade
