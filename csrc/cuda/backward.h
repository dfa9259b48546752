// The backward kernels of a step.
//
// RowClipSums   per row: the statistics of its norm clips (only where a clip is by norm).
// StepBackward  a block owns a tile of columns and a chunk of rows; its threads run down the rows, write the
// row
//               cotangents and keep the sums over the batch (steps, shared scales) in registers.
// ColumnSum     adds the chunks' sums, in order. No atomics: the same result on every run.
#pragma once

#include "cuda/adjoint.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class Storage_, class Dynamics, class Parts>
struct RowClipSums {
  using Storage = Storage_;
  using A = acc_t<Storage>;
  using Args = StepArgs<Storage>;
  static constexpr int N = kVec<Storage>;
  static constexpr int kBlocks = Dynamics::scales ? 2 : 3;  // per multiprocessor: as many as leave no spills

  struct State {
    A force_norm, momentum_norm, inner;
    RowClips<A> clips;
  };
  struct Shared {
    A sums[4][kThreads / kWarp];
  };

  template <class Visit>
  static ADE_HD void sweep(const Args* args, const Place& place, Visit visit) {
    const int64_t tiles = tiles_of(args->cols, args->group() * N);
    for (int64_t tile = 0; tile < tiles; ++tile)
      visit(Columns::of<N>(tile, args->group(), place.lane, args->cols, place.has_row, args->aligned));
  }
  static ADE_HD A square_norm(const Args* args, const Storage* rows, const Place& place) {
    A sum = A(0);
    sweep(args, place, [&](const Columns& at) {
      A u[N];
      load_columns<N>(u, rows + place.row * args->cols, at);
#pragma unroll
      for (int j = 0; j < N; ++j) sum += u[j] * u[j];
    });
    return sum;
  }

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t block_row = block.x();
    Shared* shared = block.shared();
    const bool force_norm = Parts::kick && args->force_clip.by_norm();
    const bool momentum_norm = Parts::drift && args->momentum_clip.by_norm();

    block.each([=](int, State& s) { s.clips = {{A(1), A(0)}, {A(1), A(0)}}; });
    if constexpr (Parts::drift) {
      if (momentum_norm) {
        block.each([=](int t, State& s) {
          s.momentum_norm = square_norm(args, args->u, Place(block_row, t, args->group_bits, args->rows));
        });
        group_sum(block, &State::momentum_norm, args->group(), shared->sums[0]);
        block.each([=](int t, State& s) {
          s.clips.momentum.scale = norm_clip_scale(s.momentum_norm, args->momentum_clip.bound);
          const Place place(block_row, t, args->group_bits, args->rows);
          s.inner = A(0);
          sweep(args, place, [&](const Columns& at) {
            StepColumns<A, N> steps;
            DriftAdjoint<A, N> drift;
            load_steps<Dynamics, Drift>(steps, args, at);
            drift_adjoint<Dynamics>(drift, args, steps, s.clips.momentum, place.row, at);
#pragma unroll
            for (int j = 0; j < N; ++j) s.inner += drift.u[j] * drift.vjp[j].du;
          });
        });
        group_sum(block, &State::inner, args->group(), shared->sums[1]);
        block.each([=](int, State& s) {
          s.clips.momentum.shrink = norm_clip_shrink(s.momentum_norm, s.inner, args->momentum_clip.bound);
        });
      }
    }
    if constexpr (Parts::kick) {
      if (force_norm) {
        block.each([=](int t, State& s) {
          s.force_norm = square_norm(args, args->force, Place(block_row, t, args->group_bits, args->rows));
        });
        group_sum(block, &State::force_norm, args->group(), shared->sums[2]);
        block.each([=](int t, State& s) {
          s.clips.force.scale = norm_clip_scale(s.force_norm, args->force_clip.bound);
          const Place place(block_row, t, args->group_bits, args->rows);
          s.inner = A(0);
          sweep(args, place, [&](const Columns& at) {
            StepColumns<A, N> steps;
            load_steps<Dynamics, Parts>(steps, args, at);
            A dv[N];
            load_columns<N>(dv, args->dv_out + place.row * args->cols, at);
            if constexpr (Parts::drift) {
              DriftAdjoint<A, N> drift;
              drift_adjoint<Dynamics>(drift, args, steps, s.clips.momentum, place.row, at);
#pragma unroll
              for (int j = 0; j < N; ++j)
                dv[j] += clip_vjp(args->momentum_clip, drift.vjp[j].du, drift.u[j], s.clips.momentum);
            }
            KickAdjoint<A, N> kick;
            kick_adjoint<Dynamics>(kick, dv, args, steps, s.clips.force, place.row, at);
#pragma unroll
            for (int j = 0; j < N; ++j) s.inner += kick.force[j] * kick.vjp[j].dforce;
          });
        });
        group_sum(block, &State::inner, args->group(), shared->sums[3]);
        block.each([=](int, State& s) {
          s.clips.force.shrink = norm_clip_shrink(s.force_norm, s.inner, args->force_clip.bound);
        });
      }
    }
    block.each([=](int t, State& s) {
      const Place place(block_row, t, args->group_bits, args->rows);
      if (!place.has_row || place.lane != 0) return;
      A* out = args->row_clips + 4 * place.row;
      out[0] = s.clips.force.scale;
      out[1] = s.clips.force.shrink;
      out[2] = s.clips.momentum.scale;
      out[3] = s.clips.momentum.shrink;
    });
  }
};

// The sums over the batch of each kind of step, in the order of the partial sums in the workspace.
template <class Dynamics, class Parts>
struct BatchSums {
  static constexpr int kKick = Parts::kick ? (Dynamics::scales ? 3 : 1) : 0;
  static constexpr int kCount = kKick + (Parts::drift ? (Dynamics::scales ? 2 : 1) : 0);
  static constexpr int kStep = 0, kNextStep = 1, kScaleV = 2;    // within the kick's
  static constexpr int kDriftStep = kKick, kScaleX = kKick + 1;  // within the drift's
  static ADE_HD Sum meaning(int i) {
    if (i >= kKick) return i == kKick ? kDriftStepSum : kScaleXSum;
    return i == kStep ? kStepSum : i == kNextStep ? kNextStepSum : kScaleVSum;
  }
};

// Adds value[i] over the rows of threads (thread = row of threads * width + column thread) and hands the
// total to out(column thread, i): a tree in shared memory, in fixed order.
template <class Block, class State, class A, int N, class Read, class Write>
ADE_HD void sum_down_block(Block& block, A (*buffer)[N], int width_bits, Read read, Write write) {
  const int width = 1 << width_bits;
  block.each([=](int t, State& s) {
#pragma unroll
    for (int j = 0; j < N; ++j) buffer[t][j] = read(s, j);
  });
  block.sync();
  for (int half = (kThreads >> width_bits) / 2; half > 0; half /= 2) {
    block.each([=](int t, State&) {
      if ((t >> width_bits) >= half) return;
#pragma unroll
      for (int j = 0; j < N; ++j) buffer[t][j] += buffer[t + half * width][j];
    });
    block.sync();
  }
  block.each([=](int t, State&) {
    if (t < width) write(t, buffer[t]);
  });
  // No barrier: the next sum overwrites an element of the buffer in the thread that has just read it.
}

template <class Storage_, class Dynamics, class Parts>
struct StepBackward {
  using Storage = Storage_;
  using A = acc_t<Storage>;
  using Args = StepArgs<Storage>;
  using Sums = BatchSums<Dynamics, Parts>;
  // With scales in float32 beside them, 16 bytes of bfloat16 per thread would spill.
  static constexpr int N = Dynamics::scales && kVec<Storage> == 8 ? 4 : kVec<Storage>;
  static constexpr int kBlocks = Dynamics::scales || N == 8 ? 2 : 3;

  struct State {
    A sums[Sums::kCount][N];
  };
  struct Shared {
    A buffer[kThreads][N];
  };

  static ADE_HD void one_row(const Args* args, State& s, const StepColumns<A, N>& steps, int64_t row,
                             const Columns& at) {
    const int64_t offset = row * args->cols;
    RowClips<A> clips = {{A(1), A(0)}, {A(1), A(0)}};
    if (args->row_clips != nullptr) {
      const A* in = args->row_clips + 4 * row;
      clips = {{in[0], in[1]}, {in[2], in[3]}};
    }
    A dlog_det = A(0);
    if constexpr (Dynamics::scales) dlog_det = args->dlog_det[row];

    A dv[N];
    if constexpr (Parts::kick) load_columns<N>(dv, args->dv_out + offset, at);
    if constexpr (Parts::drift) {
      DriftAdjoint<A, N> drift;
      drift_adjoint<Dynamics>(drift, args, steps, clips.momentum, row, at);
      A dx[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const A du = clip_vjp(args->momentum_clip, drift.vjp[j].du, drift.u[j], clips.momentum);
        dv[j] = Parts::kick ? dv[j] + du : du;
        dx[j] = drift.vjp[j].dx;
        s.sums[Sums::kDriftStep][j] += drift.vjp[j].dstep;
      }
      store_columns<N>(args->dx + offset, dx, at);
      if constexpr (Dynamics::scales) {
        A dscale[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
          dscale[j] = drift.vjp[j].dscale + dlog_det;
          s.sums[Sums::kScaleX][j] += dscale[j];
        }
        if (args->scale_x.per_sample()) store_columns<N>(args->dscale_x + offset, dscale, at);
      }
      if constexpr (!Parts::kick) store_columns<N>(args->du + offset, dv, at);
    }
    if constexpr (Parts::kick) {
      KickAdjoint<A, N> kick;
      kick_adjoint<Dynamics>(kick, dv, args, steps, clips.force, row, at);
      A dforce[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        dv[j] = kick.vjp[j].dv;
        dforce[j] = clip_vjp(args->force_clip, kick.vjp[j].dforce, kick.force[j], clips.force);
        s.sums[Sums::kStep][j] += kick.vjp[j].dstep;
      }
      store_columns<N>(args->dv + offset, dv, at);
      store_columns<N>(args->dforce + offset, dforce, at);
      if constexpr (Dynamics::scales) {
        const A kicks = args->next_step != nullptr ? A(2) : A(1);
        A dscale[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
          dscale[j] = kick.vjp[j].dscale + kicks * dlog_det;
          s.sums[Sums::kNextStep][j] += kick.vjp[j].dnext_step;
          s.sums[Sums::kScaleV][j] += dscale[j];
        }
        if (args->scale_v.per_sample()) store_columns<N>(args->dscale_v + offset, dscale, at);
      }
    }
  }

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t tile = block.x(), chunk = block.y();
    Shared* shared = block.shared();

    block.each([=](int t, State& s) {
#pragma unroll
      for (int i = 0; i < Sums::kCount; ++i) fill<N>(s.sums[i], A(0));
      const Columns at =
          Columns::of<N>(tile, args->width(), t & (args->width() - 1), args->cols, true, args->aligned);
      if (!at.owns(0)) return;
      StepColumns<A, N> steps;
      load_steps<Dynamics, Parts>(steps, args, at);
      const int64_t first = chunk * args->chunk_rows, last = first + args->chunk_rows;
      const int64_t end = last < args->rows ? last : args->rows;
      for (int64_t row = first + (t >> args->width_bits); row < end; row += kThreads >> args->width_bits)
        one_row(args, s, steps, row, at);
    });

#pragma unroll
    for (int i = 0; i < Sums::kCount; ++i) {
      A* total = args->sums[Sums::meaning(i)];
      if (total == nullptr) continue;
      A* out = args->partial_sums == nullptr
                   ? total
                   : args->partial_sums + (static_cast<int64_t>(i) * args->chunks + chunk) * args->cols;
      sum_down_block<Block, State>(
          block, shared->buffer, args->width_bits, [=](const State& s, int j) { return s.sums[i][j]; },
          [=](int t, const A(&sum)[N]) {
            const Columns at = Columns::of<N>(tile, args->width(), t, args->cols, true, args->aligned);
#pragma unroll
            for (int j = 0; j < N; ++j)
              if (at.owns(j)) out[at.first + j * at.step] = sum[j];
          });
    }
  }
};

template <class A_>
struct ColumnSum {
  using A = A_;
  static constexpr int kBlocks = 8;
  struct Args {
    int64_t chunks, cols;
    int32_t width_bits;
    const A* partial_sums[kSums];  // [chunks][cols] each
    A* sums[kSums];                // [cols] each
  };
  struct State {
    A sum;
  };
  struct Shared {
    A buffer[kThreads][1];
  };

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t tile = block.x(), which = block.y();
    const int width = 1 << args->width_bits;
    block.each([=](int t, State& s) {
      const int64_t col = tile * width + (t & (width - 1));
      s.sum = A(0);
      if (col >= args->cols) return;
      for (int64_t chunk = t >> args->width_bits; chunk < args->chunks; chunk += kThreads >> args->width_bits)
        s.sum += args->partial_sums[which][chunk * args->cols + col];
    });
    sum_down_block<Block, State>(
        block, block.shared()->buffer, args->width_bits, [=](const State& s, int) { return s.sum; },
        [=](int t, const A(&sum)[1]) {
          const int64_t col = tile * width + t;
          if (col < args->cols) args->sums[which][col] = sum[0];
        });
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
