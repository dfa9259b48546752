// What every op's binding does, in this order: check, allocate, fill the struct, guard and run. Both devices
// share it. Torch's stable ABI only: the extension is built once, and runs under every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "launch/generalized_leapfrog.h"
#include "launch/kink.h"
#include "launch/leapfrog.h"
#include "launch/mlp.h"
#include "launch/philox.h"
#include "launch/planar_flow.h"
#include "launch/spline.h"

namespace ade {
namespace bind {

using torch::stable::Tensor;

// The checks of one call, against the states [B, D] of its first argument, or its numbers [B].
class Op {
 public:
  // `states` decides dtype, device, rows and cols; dims: 2, or 1, and there is one column.
  Op(const char* name, const char* argument, const Tensor& states, size_t dims = 2);
  // A first argument of any shape decides dtype and device alone.
  struct AnyShape {};
  Op(const char* name, const char* argument, const Tensor& tensor, AnyShape);

  Dtype dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  bool on_cuda() const { return device_type_ == aoti_torch_device_type_cuda(); }

  // Each checks one argument and returns its data, made contiguous. S is the states' dtype, A the
  // accumulation dtype.
  const void* states(const char* argument, const Tensor& tensor);              // [B, D] S
  const void* row(const char* argument, const Tensor& tensor);                 // [D] A
  const void* row(const char* argument, const std::optional<Tensor>& tensor);  // [D] A, or null
  const void* per_sample(const char* argument, const Tensor& tensor);          // [B] A
  const void* of_shape(const char* argument, const Tensor& tensor, const char* meaning,
                       std::initializer_list<int64_t> shape);                      // any shape, S
  const void* of_any_shape(const char* argument, size_t k, const Tensor& tensor);  // the k-th of a list, S
  const uint8_t* bytes(const char* argument, const Tensor& tensor, const char* meaning,
                       std::initializer_list<int64_t> shape);  // any shape, uint8
  const void* integers(const char* argument, const Tensor& tensor, const char* meaning,
                       std::initializer_list<int64_t> shape);                  // any shape, int64
  ScaleArgs scale(const char* argument, const std::optional<Tensor>& tensor);  // [B, D] or [1, D] A, or null
  ClipArgs clip(const char* argument, int64_t mode, double bound) const;
  double finite(const char* argument, double value) const;
  double number(const char* argument, const Tensor& tensor) const;  // [] float32 or float64, on the CPU
  void range(double lo, double hi) const;
  void not_bfloat16(const char* argument) const;  // the first one

  // The states' device can run the MLP kernels.
  void mlp_device() const;

  // Outputs, uninitialised.
  Tensor new_states() const;                                   // [B, D] S
  Tensor new_row() const;                                      // [D] A
  Tensor new_per_sample() const;                               // [B] A
  Tensor new_scale(const std::optional<Tensor>& scale) const;  // of the scale's shape; absent() without one
  Tensor absent() const;                                       // [0] A
  Tensor new_of_shape(std::initializer_list<int64_t> shape) const;  // S
  Tensor new_number() const;                                        // [] S
  // For the backward pass: on the CPU from the pool.
  Tensor keep_of_shape(std::initializer_list<int64_t> shape) const;  // S
  Tensor keep_bytes(std::initializer_list<int64_t> shape) const;     // uint8

  // Runs on the states' device, on torch's threads or current stream. Throws where the device reports an
  // error.
  template <class Args>
  void run(Args& args) const;
  template <class Args>
  void run_on_cpu(Args& args) const;

  [[noreturn]] void fail(const std::string& message) const;

 private:
  void check(const char* argument, const Tensor& tensor, int32_t torch_dtype, const char* meaning,
             std::initializer_list<int64_t> shape) const;
  void check_kind(const char* argument, const Tensor& tensor, int32_t torch_dtype) const;
  const void* contiguous_data(const Tensor& tensor);
  Tensor empty(std::initializer_list<int64_t> shape, int32_t torch_dtype) const;
  Tensor pooled(std::initializer_list<int64_t> shape, int32_t torch_dtype, int64_t itemsize) const;
  std::optional<Tensor> workspace(int64_t bytes) const;
  void check_cuda(int code) const;
  void* cuda_stream() const;

  const char* const name_;
  const char* const like_;  // the name of the argument that the others must match
  Dtype dtype_;
  int64_t rows_, cols_;
  int32_t torch_dtype_, accumulate_, device_type_, device_index_;
  std::vector<Tensor> held_;  // contiguous copies, alive until the kernels are queued
};

// torch's threads, for the CPU kernels.
inline void parallel(int64_t count, int64_t grain, void (*body)(const void*, int64_t, int64_t),
                     const void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

template <class Args>
void Op::run_on_cpu(Args& args) const {
  const auto memory = workspace(cpu::workspace_bytes(args));
  args.workspace = memory.has_value() ? memory->data_ptr() : nullptr;
  cpu::launch(args, &parallel);
}

template <class Args>
void Op::run(Args& args) const {
  if (device_type_ == aoti_torch_device_type_cpu()) return run_on_cpu(args);
#ifdef ADE_WITH_CUDA
  const torch::stable::accelerator::DeviceGuard guard(device_index_);
  const auto memory = workspace(cuda::workspace_bytes(args));
  args.workspace = memory.has_value() ? memory->data_ptr() : nullptr;
  check_cuda(cuda::launch(args, cuda_stream()));
#else
  fail("this build of ade_fast has no CUDA kernels; install nvcc and rebuild with ADE_FAST_CUDA=1");
#endif
}

}  // namespace bind
}  // namespace ade
