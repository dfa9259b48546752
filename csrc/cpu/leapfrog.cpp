// Leapfrog and damped leapfrog on the CPU: loops over rows around steps/leapfrog.h and
// steps/damped_leapfrog.h. Compiled once per instruction set (cpu/dispatch.cpp chooses). A *_run function is
// one vectorised loop over one run.
#include "launch/leapfrog.h"

#include "cpu/rows.h"
#include "steps/damped_leapfrog.h"
#include "steps/leapfrog.h"

namespace ade {
namespace ADE_ISA {
namespace {

template <class A>
struct PlainKick {
  A operator()(A v, A force, A k) const { return leapfrog::kick(v, force, k); }
  leapfrog::KickVjp<A> vjp(A dv_out, A force, A k) const { return leapfrog::kick_vjp(dv_out, force, k); }
};
template <class A>
struct DampedKick {
  A m;
  A operator()(A v, A force, A k) const { return damped_leapfrog::kick(v, force, k, m); }
  leapfrog::KickVjp<A> vjp(A dv_out, A force, A k) const {
    return damped_leapfrog::kick_vjp(dv_out, force, k, m);
  }
};
template <class A, class Body>
void visit_kick(A damping, const Body& body) {
  if (damping == A(1)) {
    body(PlainKick<A>{});
  } else {
    body(DampedKick<A>{damping});
  }
}

template <class S, class A = acc_t<S>>
void kick_run(const S* v, const S* grad, const A* k, A damping, const RowClip<A>& grad_clip, S* v_out,
              int64_t size) {
  visit_kick(damping, [=](auto kick) {
    grad_clip.visit([=](auto clip) {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i)
        v_out[i] = Store<S>::from(kick(load(v[i]), clip(load(grad[i])), k[i]));
    });
  });
}

// dy(i) is the cotangent of the momentum after the kick. Adds to dk.
template <class S, class Cotangent, class A = acc_t<S>>
void kick_backward_run(const Cotangent& dy, const S* grad, const A* k, A damping, const RowClip<A>& grad_clip,
                       S* dv, S* dgrad, A* dk, int64_t size) {
  visit_kick(damping, [=](auto kick) {
    grad_clip.visit([=](auto clip) {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        const A u = load(grad[i]);
        const auto d = kick.vjp(dy(i), clip(u), k[i]);
        dv[i] = Store<S>::from(d.dv);
        dgrad[i] = Store<S>::from(clip.vjp(d.dforce, u));
        dk[i] += d.dk;
      }
    });
  });
}

template <class S, class A = acc_t<S>>
void drift_run(const S* x, const S* v, const A* eta, const RowClip<A>& momentum_clip, A lo, A hi, S* x_out,
               int64_t size) {
  momentum_clip.visit([=](auto clip) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      x_out[i] = Store<S>::from(leapfrog::drift(load(x[i]), clip(load(v[i])), eta[i], lo, hi));
    }
  });
}

// put(i, dv) takes the momentum's cotangent. Adds to deta.
template <class S, class Put, class A = acc_t<S>>
void drift_backward_run(const S* dx_out, const S* x, const S* v, const A* eta,
                        const RowClip<A>& momentum_clip, A lo, A hi, S* dx, const Put& put, A* deta,
                        int64_t size) {
  momentum_clip.visit([=](auto clip) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const A u = load(v[i]);
      const auto d = leapfrog::drift_vjp(load(dx_out[i]), load(x[i]), clip(u), eta[i], lo, hi);
      dx[i] = Store<S>::from(d.dx);
      put(i, clip.vjp(d.du, u));
      deta[i] += d.deta;
    }
  });
}

// ⟨grad, k dy⟩ over one row: what the kick's norm clip needs to know of its cotangent.
template <class S, class Cotangent, class A = acc_t<S>>
A kick_inner_product(const Cotangent& dy, const S* grad, const A* k, int64_t cols) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < cols; ++i) sum += load(grad[i]) * leapfrog::kick_vjp(dy(i), A(0), k[i]).dforce;
  return sum;
}

// ⟨v, du⟩ over one row, with du the cotangent of the clipped momentum u = scale v.
template <class S, class A = acc_t<S>>
A drift_inner_product(const S* dx_out, const S* x, const S* v, A scale, const A* eta, A lo, A hi,
                      int64_t cols) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < cols; ++i) {
    const A u = load(v[i]);
    sum += u * leapfrog::drift_vjp(load(dx_out[i]), load(x[i]), u * scale, eta[i], lo, hi).du;
  }
  return sum;
}

template <class S>
void kick(const LeapfrogKick& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto v = static_cast<const S*>(args.v), grad = static_cast<const S*>(args.grad);
  const auto v_out = static_cast<S*>(args.v_out);
  const Walk walk(args.cols, args.grad_clip.mode == kClipNorm);
  parallel_for(parallel, args.rows, args.cols, [&](int64_t begin, int64_t end) {
    const SharedRow<A> k(args.step, walk);
    walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
      const auto clip = row_clip(args.grad_clip, grad + row * walk.cols, walk.cols);
      walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
        kick_run(v + at, grad + at, k.at(col), A(args.damping), clip, v_out + at, size);
      });
    });
  });
}

template <class S>
void kick_backward(const LeapfrogKickBackward& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto dv_out = static_cast<const S*>(args.dv_out), grad = static_cast<const S*>(args.grad);
  const auto dv = static_cast<S*>(args.dv), dgrad = static_cast<S*>(args.dgrad);
  A* const outputs[] = {static_cast<A*>(args.dstep)};
  const Walk walk(args.cols, args.grad_clip.mode == kClipNorm);
  sum_over_rows(args.rows, walk, outputs, static_cast<A*>(args.workspace), parallel,
                [&](int64_t begin, int64_t end, ColumnSum<A>* sums, A*) {
                  const SharedRow<A> k(args.step, walk);
                  walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
                    const int64_t first = row * walk.cols;
                    const auto clip = row_clip_vjp(args.grad_clip, grad + first, walk.cols, [&] {
                      return kick_inner_product(Loaded<S>{dv_out + first}, grad + first, k.at(0), walk.cols);
                    });
                    walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
                      kick_backward_run(Loaded<S>{dv_out + at}, grad + at, k.at(col), A(args.damping), clip,
                                        dv + at, dgrad + at, sums[0].at(col), size);
                    });
                  });
                });
}

template <class S>
void drift(const LeapfrogDrift& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto x = static_cast<const S*>(args.x), v = static_cast<const S*>(args.v);
  const auto x_out = static_cast<S*>(args.x_out);
  const Walk walk(args.cols, args.momentum_clip.mode == kClipNorm);
  parallel_for(parallel, args.rows, args.cols, [&](int64_t begin, int64_t end) {
    const SharedRow<A> eta(args.step, walk);
    walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
      const auto clip = row_clip(args.momentum_clip, v + row * walk.cols, walk.cols);
      walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
        drift_run(x + at, v + at, eta.at(col), clip, A(args.lo), A(args.hi), x_out + at, size);
      });
    });
  });
}

// The clip of the momentum row that starts at element `first`, for the drift's vector-Jacobian product. Args
// is the drift's or the fused pair's backward; `v` and `eta` are what that drift read.
template <class S, class Args, class A = acc_t<S>>
RowClip<A> drift_clip_vjp(const Args& args, const S* v, const A* eta, int64_t first) {
  return row_clip_vjp(args.momentum_clip, v + first, args.cols, [&] {
    const A scale = row_clip(args.momentum_clip, v + first, args.cols).scale;
    return drift_inner_product(static_cast<const S*>(args.dx_out) + first,
                               static_cast<const S*>(args.x) + first, v + first, scale, eta, A(args.lo),
                               A(args.hi), args.cols);
  });
}

template <class S>
void drift_backward(const LeapfrogDriftBackward& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto dx_out = static_cast<const S*>(args.dx_out), x = static_cast<const S*>(args.x);
  const auto v = static_cast<const S*>(args.v);
  const auto dx = static_cast<S*>(args.dx), dv = static_cast<S*>(args.dv);
  A* const outputs[] = {static_cast<A*>(args.dstep)};
  const Walk walk(args.cols, args.momentum_clip.mode == kClipNorm);
  sum_over_rows(args.rows, walk, outputs, static_cast<A*>(args.workspace), parallel,
                [&](int64_t begin, int64_t end, ColumnSum<A>* sums, A*) {
                  const SharedRow<A> eta(args.step, walk);
                  walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
                    const auto clip = drift_clip_vjp(args, v, eta.at(0), row * walk.cols);
                    walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
                      S* const dv_run = dv + at;
                      const auto put = [=](int64_t i, A du) { dv_run[i] = Store<S>::from(du); };
                      drift_backward_run(dx_out + at, x + at, v + at, eta.at(col), clip, A(args.lo),
                                         A(args.hi), dx + at, put, sums[0].at(col), size);
                    });
                  });
                });
}

template <class S>
void kick_drift(const LeapfrogKickDrift& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto x = static_cast<const S*>(args.x), v = static_cast<const S*>(args.v);
  const auto grad = static_cast<const S*>(args.grad);
  const auto x_out = static_cast<S*>(args.x_out), v_out = static_cast<S*>(args.v_out);
  const bool momentum_norm = args.momentum_clip.mode == kClipNorm;
  const Walk walk(args.cols, momentum_norm || args.grad_clip.mode == kClipNorm);
  parallel_for(parallel, args.rows, args.cols, [&](int64_t begin, int64_t end) {
    const SharedRow<A> k(args.kick_step, walk), eta(args.drift_step, walk);
    walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
      const int64_t first = row * walk.cols;
      const auto grad_clip = row_clip(args.grad_clip, grad + first, walk.cols);
      const auto drift_of = [&](const RowClip<A>& clip, int64_t col, int64_t at, int64_t size) {
        drift_run(x + at, v_out + at, eta.at(col), clip, A(args.lo), A(args.hi), x_out + at, size);
      };
      const auto elementwise = elementwise_clip<A>(args.momentum_clip);
      walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
        kick_run(v + at, grad + at, k.at(col), A(args.damping), grad_clip, v_out + at, size);
        if (!momentum_norm) drift_of(elementwise, col, at, size);
      });
      if (!momentum_norm) return;
      const auto clip = row_clip(args.momentum_clip, v_out + first, walk.cols);
      walk.for_each_run(row, rows,
                        [&](int64_t col, int64_t at, int64_t size) { drift_of(clip, col, at, size); });
    });
  });
}

template <class S>
void kick_drift_backward(const LeapfrogKickDriftBackward& args, cpu::Parallel parallel) {
  using A = acc_t<S>;
  const auto dx_out = static_cast<const S*>(args.dx_out), dv_out = static_cast<const S*>(args.dv_out);
  const auto x = static_cast<const S*>(args.x), v_out = static_cast<const S*>(args.v_out);
  const auto grad = static_cast<const S*>(args.grad);
  const auto dx = static_cast<S*>(args.dx), dv = static_cast<S*>(args.dv),
             dgrad = static_cast<S*>(args.dgrad);
  A* const outputs[] = {static_cast<A*>(args.dkick_step), static_cast<A*>(args.ddrift_step)};
  const bool grad_norm = args.grad_clip.mode == kClipNorm;
  const Walk walk(args.cols, grad_norm || args.momentum_clip.mode == kClipNorm);
  sum_over_rows(args.rows, walk, outputs, static_cast<A*>(args.workspace), parallel,
                [&](int64_t begin, int64_t end, ColumnSum<A>* sums, A* dy) {
                  // dy [D] is the whole cotangent of the momentum after the kick: its own, and what came
                  // through the drift.
                  const SharedRow<A> k(args.kick_step, walk), eta(args.drift_step, walk);
                  walk.for_each_group(begin, end, [&](int64_t row, int64_t rows) {
                    const int64_t first = row * walk.cols;
                    const auto momentum_clip = drift_clip_vjp(args, v_out, eta.at(0), first);
                    const auto kick_of = [&](const RowClip<A>& clip, int64_t col, int64_t at, int64_t size) {
                      kick_backward_run(Loaded<A>{dy + col}, grad + at, k.at(col), A(args.damping), clip,
                                        dv + at, dgrad + at, sums[0].at(col), size);
                    };
                    const auto elementwise = elementwise_clip<A>(args.grad_clip);
                    walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
                      const S* const dv_run = dv_out + at;
                      A* const dy_run = dy + col;
                      const auto put = [=](int64_t i, A du) { dy_run[i] = load(dv_run[i]) + du; };
                      drift_backward_run(dx_out + at, x + at, v_out + at, eta.at(col), momentum_clip,
                                         A(args.lo), A(args.hi), dx + at, put, sums[1].at(col), size);
                      if (!grad_norm) kick_of(elementwise, col, at, size);
                    });
                    if (!grad_norm) return;
                    const auto clip = row_clip_vjp(args.grad_clip, grad + first, walk.cols, [&] {
                      return kick_inner_product(Loaded<A>{dy}, grad + first, k.at(0), walk.cols);
                    });
                    walk.for_each_run(row, rows, [&](int64_t col, int64_t at, int64_t size) {
                      kick_of(clip, col, at, size);
                    });
                  });
                });
}

template <class Args>
int64_t sum_workspace_bytes(const Args& args, int64_t sums) {
  return sum_workspace_elements(args.rows, args.cols, sums) * accumulator_bytes(args.dtype);
}

}  // namespace

int64_t workspace_bytes(const LeapfrogKick&) { return 0; }
int64_t workspace_bytes(const LeapfrogDrift&) { return 0; }
int64_t workspace_bytes(const LeapfrogKickDrift&) { return 0; }
int64_t workspace_bytes(const LeapfrogKickBackward& args) { return sum_workspace_bytes(args, 1); }
int64_t workspace_bytes(const LeapfrogDriftBackward& args) { return sum_workspace_bytes(args, 1); }
int64_t workspace_bytes(const LeapfrogKickDriftBackward& args) { return sum_workspace_bytes(args, 2); }

void launch(const LeapfrogKick& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { kick<decltype(s)>(args, parallel); });
}
void launch(const LeapfrogKickBackward& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { kick_backward<decltype(s)>(args, parallel); });
}
void launch(const LeapfrogDrift& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { drift<decltype(s)>(args, parallel); });
}
void launch(const LeapfrogDriftBackward& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { drift_backward<decltype(s)>(args, parallel); });
}
void launch(const LeapfrogKickDrift& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { kick_drift<decltype(s)>(args, parallel); });
}
void launch(const LeapfrogKickDriftBackward& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto s) { kick_drift_backward<decltype(s)>(args, parallel); });
}

}  // namespace ADE_ISA
}  // namespace ade
