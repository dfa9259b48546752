// Parts of a workspace, one after the other. Run once without memory, it measures what the run with memory
// takes.
#pragma once

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

class WorkspaceParts {
 public:
  explicit WorkspaceParts(void* base) : base_(static_cast<char*>(base)) {}

  // Of `bytes` bytes.
  template <class T>
  T* take(int64_t bytes) {
    const int64_t at = bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(base_ == nullptr ? nullptr : base_ + at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignment = 256;

  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
