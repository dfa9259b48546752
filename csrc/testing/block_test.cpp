// cuda/block.h on the host: barriers, sums over groups, and that the two orders of warps tell a missing
// barrier.
#include <initializer_list>

#include "cuda/block.h"

#include "check.h"

using namespace ade::base::kernels;

namespace {

struct Group {
  struct State {
    double sum;
  };
  struct Shared {
    double sums[kThreads / kWarp];
  };
  template <class Block>
  static void run(Block& block, int group, double* out) {
    block.each([=](int t, State& s) { s.sum = t; });
    group_sum(block, &State::sum, group, block.shared()->sums);
    block.each([=](int t, State& s) { out[t] = s.sum; });
  }
};

void sums_over_groups() {
  for (const int group : {1, 2, 8, 32, 256}) {
    double out[kThreads];
    HostBlock<Group> block(0, 0, WarpOrder::kDescending);
    Group::run(block, group, out);
    block.sync();
    for (int t = 0; t < kThreads; ++t) {
      const int first = t / group * group;
      CHECK(out[t] == group * first + group * (group - 1) / 2.0);
    }
  }
}

// Each thread hands its number to the thread one warp away, with or without a barrier in between.
struct Neighbour {
  struct State {
    int unused;
  };
  struct Shared {
    double values[kThreads];
  };
  template <class Block>
  static void run(Block& block, bool with_barrier, double* out) {
    Shared* shared = block.shared();
    block.each([=](int t, State&) { shared->values[t] = t; });
    if (with_barrier) block.sync();
    block.each([=](int t, State&) { out[t] = shared->values[(t + kWarp) % kThreads]; });
  }
};

int wrong_values(bool with_barrier, WarpOrder order) {
  double out[kThreads];
  HostBlock<Neighbour> block(0, 0, order);
  Neighbour::run(block, with_barrier, out);
  block.sync();
  int wrong = 0;
  for (int t = 0; t < kThreads; ++t) wrong += !(out[t] == (t + kWarp) % kThreads);
  return wrong;
}

void a_missing_barrier_shows() {
  for (const WarpOrder order : {WarpOrder::kAscending, WarpOrder::kDescending}) {
    CHECK(wrong_values(true, order) == 0);
    CHECK(wrong_values(false, order) > 0);
  }
}

struct Untouched {
  struct State {
    float value;
  };
  struct Shared {
    float value;
  };
};

void memory_starts_as_nan() {
  HostBlock<Untouched> block(3, 4, WarpOrder::kAscending);
  bool all_nan = block.shared()->value != block.shared()->value;
  bool* seen = &all_nan;
  block.each([=](int, Untouched::State& s) { *seen = *seen && s.value != s.value; });
  block.sync();
  CHECK(all_nan);
  CHECK(block.x() == 3 && block.y() == 4);
}

}  // namespace

int main() {
  sums_over_groups();
  a_missing_barrier_shows();
  memory_starts_as_nan();
  return failures;
}
