// The sums of all blocks, added in the blocks' order and written out row-major.
#pragma once

#include "cuda/mlp/dynamics.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// One result [rows, columns], of which each block has floats, or tiles of floats with `across` of them in a
// row of tiles, or `terms` floats for each element.
struct MlpSum {
  float* to;
  const float* from;       // of the first block
  int64_t blocks, stride;  // floats from a block to the next
  int32_t rows, columns;
  int32_t across;  // 0: no tiles
  int32_t terms;   // 1, unless there are no tiles
};

struct MlpReduceArgs {
  MlpSum sums[2 * kLayerSlots + 9];
  int32_t count;
};

// Grid (x, y): elements of result y, a thread each.
struct MlpReduce {
  using Args = MlpReduceArgs;
  using State = MlpState;
  struct Shared {};
  static constexpr int kBlocks = 2;

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t first = block.x() * kThreads;
    const int which = static_cast<int>(block.y());
    block.each([=](int t, MlpState&) {
      const MlpSum& sum = args->sums[which];
      const int64_t index = first + t;
      if (index >= int64_t{1} * sum.rows * sum.columns) return;
      const int row = static_cast<int>(index / sum.columns), column = static_cast<int>(index % sum.columns);
      const int64_t place = sum.across == 0
                                ? index * sum.terms
                                : (int64_t{row / kTile} * sum.across + column / kTile) * kTileElements +
                                      float_index(row % kTile, column % kTile);
      float total = 0;
      for (int64_t b = 0; b < sum.blocks; ++b) {
#pragma unroll 1
        for (int i = 0; i < sum.terms; ++i) total += sum.from[b * sum.stride + place + i];
      }
      sum.to[index] = total;
    });
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
