// The forward kernel of a step: one pass over memory, row reductions in the same pass.
//
// A group of threads owns a row. What a later phase needs of an earlier one (the force after its norm, the
// momentum after its kick) stays in registers while the row fits the group, and is read again, from cache,
// where it does not. Without a row reduction a row may be split over several blocks.
#pragma once

#include "cuda/block.h"
#include "cuda/columns.h"
#include "cuda/dynamics.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class Storage_, class Dynamics, class Parts>
struct StepForward {
  using Storage = Storage_;
  using A = acc_t<Storage>;
  using Args = StepArgs<Storage>;
  static constexpr int N = kVec<Storage>;
  static constexpr int kTiles = N == 8 ? 2 : 4;  // tiles whose values a thread keeps in registers

  static constexpr int kBlocks = Dynamics::scales ? 3 : 4;  // per multiprocessor: as many as leave no spills

  struct State {
    A kept[kTiles][N];  // the force, then the momentum after the kick
    A square_norm;
    A log_det;
    A force_scale, momentum_scale;
  };
  struct Shared {
    A sums[3][kThreads / kWarp];
  };

  // Calls visit(columns, index into `kept`) for the thread's part of each of its row's tiles.
  template <class Visit>
  static ADE_HD void sweep(const Args* args, int64_t split, const Place& place, Visit visit) {
    const int64_t tiles = tiles_of(args->cols, args->group() * N);
    for (int64_t base = split; base < tiles; base += args->splits * kTiles) {
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
        const int64_t tile = base + k * args->splits;
        if (tile < tiles)
          visit(Columns::of<N>(tile, args->group(), place.lane, args->cols, place.has_row, args->aligned), k);
      }
    }
  }
  static ADE_HD bool row_is_kept(const Args* args) {
    return args->cols <= static_cast<int64_t>(args->group()) * N * kTiles;
  }

  static ADE_HD void load_scale(A (&exp_s)[N], A* sum, const Scale<A>& scale, const Place& place,
                                const Columns& at) {
    if (!Dynamics::scales || scale.data == nullptr) {
#pragma unroll
      for (int j = 0; j < N; ++j) exp_s[j] = A(1);
      return;
    }
    load_columns<N>(exp_s, scale.data + place.row * scale.row_stride, at);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      *sum += exp_s[j];
      exp_s[j] = std::exp(exp_s[j]);
    }
  }

  static ADE_HD void drift_columns(const Args* args, State& s, const Place& place, const Columns& at,
                                   const A (&u)[N]) {
    A x[N], step[N], exp_s[N];
    load_columns<N>(x, args->x + place.row * args->cols, at);
    load_columns<N>(step, args->drift_step, at);
    load_scale(exp_s, &s.log_det, args->scale_x, place, at);
#pragma unroll
    for (int j = 0; j < N; ++j)
      x[j] =
          Dynamics::drift(*args, x[j], clip(args->momentum_clip, u[j], s.momentum_scale), exp_s[j], step[j]);
    store_columns<N>(args->x_out + place.row * args->cols, x, at);
  }

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t block_row = block.x(), split = block.y();
    Shared* shared = block.shared();
    const bool force_norm = Parts::kick && args->force_clip.by_norm();
    const bool momentum_norm = Parts::drift && args->momentum_clip.by_norm();
    const bool kept = row_is_kept(args);

    block.each([=](int, State& s) {
      s.log_det = A(0);
      s.force_scale = s.momentum_scale = A(1);
    });

    if constexpr (Parts::kick) {
      if (force_norm) {
        block.each([=](int t, State& s) {
          const Place place(block_row, t, args->group_bits, args->rows);
          s.square_norm = A(0);
          sweep(args, split, place, [&](const Columns& at, int k) {
            load_columns<N>(s.kept[k], args->force + place.row * args->cols, at);
#pragma unroll
            for (int j = 0; j < N; ++j) s.square_norm += s.kept[k][j] * s.kept[k][j];
          });
        });
        group_sum(block, &State::square_norm, args->group(), shared->sums[0]);
        block.each(
            [=](int, State& s) { s.force_scale = norm_clip_scale(s.square_norm, args->force_clip.bound); });
      }
      block.each([=](int t, State& s) {
        const Place place(block_row, t, args->group_bits, args->rows);
        A log_det_v = A(0);
        s.square_norm = A(0);
        sweep(args, split, place, [&](const Columns& at, int k) {
          A v[N], step[N], next_step[N], exp_s[N];
          if (!(force_norm && kept)) load_columns<N>(s.kept[k], args->force + place.row * args->cols, at);
          load_columns<N>(v, args->v + place.row * args->cols, at);
          load_columns<N>(step, args->step, at);
          if (Dynamics::scales && args->next_step != nullptr) {
            load_columns<N>(next_step, args->next_step, at);
          } else {
#pragma unroll
            for (int j = 0; j < N; ++j) next_step[j] = A(0);
          }
          load_scale(exp_s, &log_det_v, args->scale_v, place, at);
#pragma unroll
          for (int j = 0; j < N; ++j) {
            const A force = clip(args->force_clip, s.kept[k][j], s.force_scale);
            // What the drift sees is the momentum as it is stored.
            s.kept[k][j] = load(
                Store<Storage>::from(Dynamics::kick(*args, v[j], force, exp_s[j], step[j], next_step[j])));
          }
          store_columns<N>(args->v_out + place.row * args->cols, s.kept[k], at);
          if (momentum_norm) {
#pragma unroll
            for (int j = 0; j < N; ++j) s.square_norm += s.kept[k][j] * s.kept[k][j];
          } else if constexpr (Parts::drift) {
            drift_columns(args, s, place, at, s.kept[k]);
          }
        });
        s.log_det += args->next_step != nullptr ? A(2) * log_det_v : log_det_v;
      });
    } else if (momentum_norm) {
      block.each([=](int t, State& s) {
        const Place place(block_row, t, args->group_bits, args->rows);
        s.square_norm = A(0);
        sweep(args, split, place, [&](const Columns& at, int k) {
          load_columns<N>(s.kept[k], args->u + place.row * args->cols, at);
#pragma unroll
          for (int j = 0; j < N; ++j) s.square_norm += s.kept[k][j] * s.kept[k][j];
        });
      });
    }

    if constexpr (Parts::drift) {
      if (momentum_norm) {
        group_sum(block, &State::square_norm, args->group(), shared->sums[1]);
        block.each([=](int, State& s) {
          s.momentum_scale = norm_clip_scale(s.square_norm, args->momentum_clip.bound);
        });
      }
      if (momentum_norm || !Parts::kick) {
        block.each([=](int t, State& s) {
          const Place place(block_row, t, args->group_bits, args->rows);
          const Storage* u = Parts::kick ? args->v_out : args->u;
          sweep(args, split, place, [&](const Columns& at, int k) {
            if (!(momentum_norm && kept)) load_columns<N>(s.kept[k], u + place.row * args->cols, at);
            drift_columns(args, s, place, at, s.kept[k]);
          });
        });
      }
    }

    if constexpr (Dynamics::scales) {
      if (args->scale_v.data != nullptr || args->scale_x.data != nullptr)
        group_sum(block, &State::log_det, args->group(), shared->sums[2]);
      block.each([=](int t, State& s) {
        const Place place(block_row, t, args->group_bits, args->rows);
        if (place.has_row && place.lane == 0 && split == 0) args->log_det[place.row] = s.log_det;
      });
    }
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
