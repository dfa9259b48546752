// cuda/plan.h: a plan depends on shape and options, covers every row and column, and stays within the grid's
// limits.
#include <initializer_list>

#include "check.h"
#include "cuda/arguments.h"
#include "cuda/mlp/launch.h"

using namespace ade;
using namespace ade::base::kernels;

namespace {

GeneralizedLeapfrogKickDriftBackward arguments(int64_t rows, int64_t cols) {
  GeneralizedLeapfrogKickDriftBackward args = {};
  args.dtype = kFloat32;
  args.rows = rows;
  args.cols = cols;
  return args;
}

void group_sizes() {
  CHECK(group_bits_for(1, 4) == 0 && group_bits_for(4, 4) == 0);
  CHECK(group_bits_for(5, 4) == 3 && group_bits_for(32, 4) == 3);
  CHECK(group_bits_for(33, 4) == 5 && group_bits_for(256, 4) == 5);
  CHECK(group_bits_for(257, 4) == 8 && group_bits_for(1 << 20, 4) == 8);
}

void coverage() {
  using Body = StepBackward<float, GeneralizedLeapfrog, KickDrift>;
  for (const int64_t rows : {1, 15, 17, 64, 1000, 65536, 1 << 20})
    for (const int64_t cols : {1, 2, 5, 33, 257, 3072, 1 << 20}) {
      StepArgs<float> args = {};
      args.rows = rows;
      args.cols = cols;
      plan_backward<Body>(args, nullptr);
      CHECK(args.chunks * args.chunk_rows >= rows && (args.chunks - 1) * args.chunk_rows < rows);
      CHECK(args.chunks <= kMaxGridY);
      CHECK(column_tiles<Body>(args) * args.width() * Body::N >= cols);
      plan_forward<StepForward<float, GeneralizedLeapfrog, KickDrift>>(args);
      CHECK(args.splits >= 1 && args.splits <= kMaxGridY);
      CHECK(row_blocks(args) * (kThreads / args.group()) >= rows);
    }
}

// A row that must be summed belongs to one block; any other is split when there are few.
void splits() {
  StepArgs<float> args = {};
  args.rows = 8;
  args.cols = 3072;
  plan_forward<StepForward<float, Leapfrog, Kick>>(args);
  CHECK(args.splits == 3);
  args.force_clip.mode = kClipNorm;
  plan_forward<StepForward<float, Leapfrog, Kick>>(args);
  CHECK(args.splits == 1);
}

// Partial sums stay a small part of the traffic, and a norm clip costs four numbers per row.
void workspace() {
  CHECK(workspace_bytes(arguments(0, 64)) == 0);
  CHECK(workspace_bytes(arguments(64, 0)) == 0);
  CHECK(workspace_bytes(arguments(8, 3072)) == 0);  // one chunk: straight to the sums
  const int64_t state = 65536ll * 128 * 4;
  CHECK(workspace_bytes(arguments(65536, 128)) > 0 && workspace_bytes(arguments(65536, 128)) < state / 8);
  auto clipped = arguments(17, 5);
  clipped.force_clip.mode = kClipNorm;
  CHECK(workspace_bytes(clipped) - workspace_bytes(arguments(17, 5)) ==
        320);  // 17 * 16 bytes, to a multiple of 64
}

// Whether the weights of an MLP stay in a block's shared memory, of which Hopper has 227 KiB.
template <class Launch>
bool resident(int layers, int width, int precision, int64_t memory = 226 * 1024) {
  Launch args = {};
  args.shape = {2, layers, {width, width, width, width}, kSilu, 0};
  args.precision = precision;
  WorkspaceParts workspace(nullptr);
  const MlpPlan plan = plan_mlp(workspace, args, memory);
  CHECK(plan.shared_bytes <= memory);
  return plan.resident;
}
template <class Launch>
void weights_stay() {
  for (const int precision : {1, 2, 3}) CHECK(resident<Launch>(3, 128, precision));
  CHECK(resident<Launch>(4, 128, 2) && !resident<Launch>(4, 128, 3));
  CHECK(resident<Launch>(2, 256, 1) && !resident<Launch>(3, 256, 1));
  CHECK(resident<Launch>(3, 128, 1, 99 * 1024) && !resident<Launch>(3, 128, 2, 99 * 1024));
  CHECK(!resident<Launch>(1, 32, 1, 0));
}

}  // namespace

int main() {
  group_sizes();
  coverage();
  splits();
  workspace();
  weights_stay<MlpUnroll>();
  weights_stay<MlpUnrollBackward>();
  weights_stay<MlpFieldBackward>();
  return failures;
}
