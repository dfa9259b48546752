// How a batch is cut into tiles, tiles into groups that share one set of sums, and how threads take them.
//
// The cut depends on the batch alone. A group is done by one thread, tile after tile, and the groups' sums
// are added in their order: the results do not depend on the number of threads, nor on which thread did what.
#pragma once

#include "cpu/rows.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

// Few enough for a tile's panels, the packed weights and their sums to share the second-level cache.
constexpr int kTileRows = 56;
constexpr int kFewestRows = 12;

struct Tiles {
  int64_t rows, count;

  // An even number, so that two threads are evenly loaded.
  explicit Tiles(int64_t rows) : rows(rows), count(ceil_div(rows, kTileRows)) {
    if (rows >= 2 * kFewestRows) count += count % 2;
  }
  // Where nothing is summed over samples, tiles may also shrink until every thread has one.
  Tiles(int64_t rows, int64_t workers) : Tiles(rows) {
    count = max_of(count, min_of(workers, rows / kFewestRows));
  }
  int64_t begin(int64_t tile) const { return tile * rows / count; }
  int capacity() const { return static_cast<int>(ceil_div(rows, max_of(count, 1))); }
};

struct Groups {
  int64_t tiles, count;

  explicit Groups(int64_t tiles)
      : tiles(tiles), count(tiles <= 8 ? tiles : max_of(8, min_of(64, ceil_div(tiles, 4) * 2))) {}
  // The larger groups first, so that none of them is left for the end.
  int64_t begin(int64_t group) const { return group * (tiles / count) + min_of(group, tiles % count); }
};

// Tasks 0 .. count - 1, each handed out once.
class Queue {
 public:
  explicit Queue(int64_t count) : count_(count) {}
  // The next task, or -1.
  int64_t next() {
    const int64_t task = __atomic_fetch_add(&taken_, 1, __ATOMIC_RELAXED);
    return task < count_ ? task : -1;
  }

 private:
  int64_t taken_ = 0;
  const int64_t count_;
};

// body(worker): a worker takes tasks from a queue until none is left.
template <class Body>
void run_workers(cpu::Parallel parallel, int64_t workers, const Body& body) {
  const auto call = [](const void* context, int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) (*static_cast<const Body*>(context))(worker);
  };
  if (workers > 0) parallel(workers, 1, call, &body);
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
