// The host backend: runs a CUDA kernel's body on every block of its grid under g++ (cuda/block.h).
#pragma once

#include "cuda/arguments.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// Blocks, and the warps of a block between two barriers, run in one order or the other: a result that depends
// on it is a race.
struct HostBackend {
  WarpOrder order = WarpOrder::kAscending;
  int64_t blocks_run = 0;
  int64_t limit = 0;
  bool intact = true;

  int64_t memory_limit() const { return limit; }

  template <class Body>
  int run(int64_t grid_x, int64_t grid_y, const typename Body::Args& args, int64_t memory_bytes = 0) {
    const int64_t blocks = grid_x * grid_y;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t at = order == WarpOrder::kAscending ? i : blocks - 1 - i;
      HostBlock<Body> block(at % grid_x, at / grid_x, order, memory_bytes);
      Body::run(block, &args);
      block.sync();
      intact &= block.intact();
    }
    blocks_run += blocks;
    return 0;
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
