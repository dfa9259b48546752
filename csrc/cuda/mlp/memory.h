// Where the buffers of a block are: in its shared memory as far as that goes, and beyond in its own part of
// the workspace. (The largest networks' parts of all blocks together, hundreds of megabytes, are more than a
// second-level cache holds.) The kernels reach both by the same pointers; the results do not depend on it.
#pragma once

#include "cuda/block.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// Bytes from the start of shared memory or, below 0, ~at bytes from the start of the block's part of the
// workspace.
struct Buffer {
  int64_t at;
};

// Hands out both, first come, first served.
class BlockMemory {
 public:
  explicit BlockMemory(int64_t shared_limit) : limit_(shared_limit) {}

  Buffer take(int64_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (fits(bytes)) {
      shared_ += bytes;
      return {shared_ - bytes};
    }
    own_ += bytes;
    return {~(own_ - bytes)};
  }
  bool fits(int64_t bytes) const { return shared_ + bytes <= limit_; }
  int64_t shared_bytes() const { return shared_; }
  int64_t own_bytes() const { return own_; }

 private:
  static constexpr int64_t kAlignment = 64;

  int64_t limit_, shared_ = 0, own_ = 0;
};

// A block's view of it.
struct BlockBuffers {
  char* shared;
  char* own;

  template <class T>
  ADE_HD T* at(Buffer buffer) const {
    return reinterpret_cast<T*>(buffer.at >= 0 ? shared + buffer.at : own + ~buffer.at);
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
