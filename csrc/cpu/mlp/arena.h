// A bump allocator over memory that the caller owns. Run once without memory, it measures what the run with
// memory takes.
#pragma once

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

class Arena {
 public:
  explicit Arena(void* memory) : base_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    T* const taken = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    // Whole cache lines and a few more: buffers of 2^n bytes would all fall on the same sets of the
    // first-level cache.
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64 + 192;
    return taken;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
