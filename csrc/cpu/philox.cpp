// Normals of common/philox.h on the CPU, in runs (cpu/philox_run.h). Compiled once per instruction set
// (cpu/dispatch.cpp chooses).
#include "launch/philox.h"

#include "cpu/philox_run.h"

namespace ade {
namespace ADE_ISA {
namespace {

using philox::Blocks;
using philox::kRunBlocks;
using philox::Run;

constexpr int64_t kBlockCost = 16;  // in elements of a step kernel

template <class S>
void launch_as(const PhiloxNormal& args, cpu::Parallel parallel) {
  const auto blocks = Blocks::of<acc_t<S>>(args.cols, args.step, *static_cast<const uint64_t*>(args.seed));
  S* const noise = static_cast<S*>(args.noise);
  parallel_for(parallel, args.rows * blocks.per_row, kBlockCost, [&](int64_t begin, int64_t end) {
    Run<acc_t<S>> run;
    for (int64_t first = begin; first < end; first += kRunBlocks) {
      const int count = static_cast<int>(min_of(kRunBlocks, end - first));
      run.draw(blocks, first, count);
      store_blocks(run, blocks, first, count, 0, noise);
    }
  });
}

}  // namespace

int64_t workspace_bytes(const PhiloxNormal&) { return 0; }
void launch(const PhiloxNormal& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto storage) { launch_as<decltype(storage)>(args, parallel); });
}

}  // namespace ADE_ISA
}  // namespace ade
