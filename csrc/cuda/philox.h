// The kernel of common/philox.h's normals: a thread for each block of four words.
#pragma once

#include "common/philox.h"
#include "common/scalar.h"
#include "cuda/block.h"
#include "launch/philox.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class Storage>
struct PhiloxNormalArgs {
  int64_t rows, cols, per_row;  // blocks per row
  int64_t step;
  const uint64_t* seed;
  Storage* noise;
};

template <class Storage>
struct PhiloxNormalBody {
  using Args = PhiloxNormalArgs<Storage>;
  using T = acc_t<Storage>;
  struct State {};
  struct Shared {};
  static constexpr int kBlocks = 4;

  static ADE_HD void draw(const Args* args, int64_t row, int64_t block) {
    constexpr int kEach = philox::kNormals<T>;
    philox::bits_t<T> bits[kEach];
    philox::Bits<T>::of(philox::philox4x32(philox::counter_of(args->step, row, block), *args->seed), bits);
    const int64_t first = block * kEach;
    Storage* const out = args->noise + row * args->cols + first;
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int k = 0; k < kEach; k += 2) {
      const T radius = philox::radius(std::log(philox::uniform(bits[k])));
      const auto direction = philox::direction(bits[k + 1]);
      if (first + k < args->cols) out[k] = Store<Storage>::from(radius * direction.cosine);
      if (first + k + 1 < args->cols) out[k + 1] = Store<Storage>::from(radius * direction.sine);
    }
  }

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t first = block.x() * kThreads;
    block.each([=](int t, State&) {
      const int64_t i = first + t;
      if (i < args->rows * args->per_row) draw(args, i / args->per_row, i % args->per_row);
    });
  }
};

template <class Storage, class Backend>
int launch_philox(Backend& backend, const PhiloxNormal& from) {
  constexpr int kEach = philox::kNormals<acc_t<Storage>>;
  const PhiloxNormalArgs<Storage> args = {from.rows,
                                          from.cols,
                                          (from.cols + kEach - 1) / kEach,
                                          from.step,
                                          static_cast<const uint64_t*>(from.seed),
                                          static_cast<Storage*>(from.noise)};
  const int64_t blocks = args.rows * args.per_row;
  if (blocks == 0) return 0;
  return backend.template run<PhiloxNormalBody<Storage>>((blocks + kThreads - 1) / kThreads, 1, args);
}

inline int64_t workspace_bytes(const PhiloxNormal&) { return 0; }
template <class Backend>
int launch(Backend& backend, const PhiloxNormal& from) {
  if (from.dtype == kFloat64) return launch_philox<double>(backend, from);
  if (from.dtype == kBFloat16) return launch_philox<bf16>(backend, from);
  return launch_philox<float>(backend, from);
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
