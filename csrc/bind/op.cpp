#include "bind/op.h"

#include <dlfcn.h>

#include <cmath>
#include <sstream>
#include <stdexcept>

#include "bind/pool.h"

// Renamed between 2.11 and 2.13.
#ifdef STABLE_TORCH_ERROR_CODE_CHECK
#define ADE_TORCH_CHECK STABLE_TORCH_ERROR_CODE_CHECK
#else
#define ADE_TORCH_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace ade {
namespace bind {
namespace {

int32_t torch_dtype_of(const Tensor& tensor) {
  int32_t dtype;
  ADE_TORCH_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

std::string dtype_name(int32_t dtype) {
  if (dtype == aoti_torch_dtype_float32()) return "float32";
  if (dtype == aoti_torch_dtype_float64()) return "float64";
  if (dtype == aoti_torch_dtype_bfloat16()) return "bfloat16";
  if (dtype == aoti_torch_dtype_float16()) return "float16";
  if (dtype == aoti_torch_dtype_int64()) return "int64";
  if (dtype == aoti_torch_dtype_int32()) return "int32";
  if (dtype == aoti_torch_dtype_bool()) return "bool";
  return "another dtype";
}

void device_of(const Tensor& tensor, int32_t* type, int32_t* index) {
  ADE_TORCH_CHECK(aoti_torch_get_device_type(tensor.get(), type));
  ADE_TORCH_CHECK(aoti_torch_get_device_index(tensor.get(), index));
}

std::string device_name(int32_t type, int32_t index) {
  if (type == aoti_torch_device_type_cpu()) return "cpu";
  if (type == aoti_torch_device_type_cuda()) return "cuda:" + std::to_string(index);
  return "another device";
}

template <class Sizes>
std::string shape_name(const Sizes& sizes) {
  std::ostringstream text;
  text << "(";
  const char* separator = "";
  for (const int64_t size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

template <class Sizes>
bool same_shape(const Sizes& sizes, std::initializer_list<int64_t> shape) {
  if (sizes.size() != shape.size()) return false;
  size_t i = 0;
  for (const int64_t size : shape) {
    if (sizes[i++] != size) return false;
  }
  return true;
}

}  // namespace

void Op::fail(const std::string& message) const {
  throw std::runtime_error(std::string(name_) + ": " + message);
}

Op::Op(const char* name, const char* argument, const Tensor& states, size_t dims)
    : Op(name, argument, states, AnyShape{}) {
  const auto sizes = states.sizes();
  if (sizes.size() != dims) {
    fail(std::string(argument) + " must be " + (dims == 1 ? "[B]" : "[B, D]") + ", got shape " +
         shape_name(sizes));
  }
  rows_ = sizes[0];
  cols_ = dims == 1 ? 1 : sizes[1];
}

Op::Op(const char* name, const char* argument, const Tensor& tensor, AnyShape)
    : name_(name), like_(argument), rows_(0), cols_(0) {
  torch_dtype_ = torch_dtype_of(tensor);
  if (torch_dtype_ == aoti_torch_dtype_float32()) {
    dtype_ = kFloat32;
  } else if (torch_dtype_ == aoti_torch_dtype_float64()) {
    dtype_ = kFloat64;
  } else if (torch_dtype_ == aoti_torch_dtype_bfloat16()) {
    dtype_ = kBFloat16;
  } else {
    fail(std::string(argument) + " must be float32, float64 or bfloat16, got " + dtype_name(torch_dtype_));
  }
  accumulate_ = dtype_ == kFloat64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  device_of(tensor, &device_type_, &device_index_);
}

void Op::check(const char* argument, const Tensor& tensor, int32_t torch_dtype, const char* meaning,
               std::initializer_list<int64_t> shape) const {
  const auto sizes = tensor.sizes();
  if (!same_shape(sizes, shape)) {
    const std::string of =
        meaning == nullptr ? std::string(like_) + "'s shape" : std::string(meaning) + ", shape";
    fail(std::string(argument) + " must have " + of + " " + shape_name(shape) + ", got " + shape_name(sizes));
  }
  check_kind(argument, tensor, torch_dtype);
}

void Op::check_kind(const char* argument, const Tensor& tensor, int32_t torch_dtype) const {
  const int32_t dtype = torch_dtype_of(tensor);
  if (dtype != torch_dtype) {
    fail(std::string(argument) + " must be " + dtype_name(torch_dtype) + " (" + like_ + " is " +
         dtype_name(torch_dtype_) + "), got " + dtype_name(dtype));
  }
  int32_t type, index;
  device_of(tensor, &type, &index);
  if (type != device_type_ || index != device_index_) {
    fail(std::string(argument) + " must be on " + like_ + "'s device " +
         device_name(device_type_, device_index_) + ", got " + device_name(type, index));
  }
}

const void* Op::contiguous_data(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor.data_ptr();
  held_.push_back(torch::stable::contiguous(tensor));
  return held_.back().data_ptr();
}

const void* Op::states(const char* argument, const Tensor& tensor) {
  check(argument, tensor, torch_dtype_, nullptr, {rows_, cols_});
  return contiguous_data(tensor);
}

const void* Op::row(const char* argument, const Tensor& tensor) {
  check(argument, tensor, accumulate_, "one entry per column", {cols_});
  return contiguous_data(tensor);
}

const void* Op::row(const char* argument, const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? row(argument, *tensor) : nullptr;
}

const void* Op::per_sample(const char* argument, const Tensor& tensor) {
  check(argument, tensor, accumulate_, "one entry per sample", {rows_});
  return contiguous_data(tensor);
}

const void* Op::of_shape(const char* argument, const Tensor& tensor, const char* meaning,
                         std::initializer_list<int64_t> shape) {
  check(argument, tensor, torch_dtype_, meaning, shape);
  return contiguous_data(tensor);
}

const void* Op::of_any_shape(const char* argument, size_t k, const Tensor& tensor) {
  int32_t type, index;
  device_of(tensor, &type, &index);
  if (torch_dtype_of(tensor) != torch_dtype_ || type != device_type_ || index != device_index_)
    check_kind((std::string(argument) + "[" + std::to_string(k) + "]").c_str(), tensor, torch_dtype_);
  return contiguous_data(tensor);
}

const uint8_t* Op::bytes(const char* argument, const Tensor& tensor, const char* meaning,
                         std::initializer_list<int64_t> shape) {
  check(argument, tensor, aoti_torch_dtype_uint8(), meaning, shape);
  return static_cast<const uint8_t*>(contiguous_data(tensor));
}

const void* Op::integers(const char* argument, const Tensor& tensor, const char* meaning,
                         std::initializer_list<int64_t> shape) {
  check(argument, tensor, aoti_torch_dtype_int64(), meaning, shape);
  return contiguous_data(tensor);
}

ScaleArgs Op::scale(const char* argument, const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return {nullptr, 0};
  const auto sizes = tensor->sizes();
  const bool shared = sizes.size() == 2 && sizes[0] == 1;
  check(argument, *tensor, accumulate_, "one row per sample or a single one", {shared ? 1 : rows_, cols_});
  return {contiguous_data(*tensor), shared ? 0 : cols_};
}

ClipArgs Op::clip(const char* argument, int64_t mode, double bound) const {
  if (mode < kClipNone || mode > kClipNorm) {
    fail(std::string(argument) + " must be 0 (none), 1 (value) or 2 (norm), got " + std::to_string(mode));
  }
  if (mode != kClipNone && !(bound > 0)) {
    fail(std::string(argument) + "'s bound must be positive, got " + std::to_string(bound));
  }
  return {static_cast<int32_t>(mode), bound};
}

double Op::finite(const char* argument, double value) const {
  if (!std::isfinite(value)) fail(std::string(argument) + " must be finite, got " + std::to_string(value));
  return value;
}

double Op::number(const char* argument, const Tensor& tensor) const {
  const int32_t dtype = torch_dtype_of(tensor);
  int32_t type, index;
  device_of(tensor, &type, &index);
  if (tensor.dim() != 0 || type != aoti_torch_device_type_cpu() ||
      (dtype != aoti_torch_dtype_float32() && dtype != aoti_torch_dtype_float64())) {
    fail(std::string(argument) + " must be a float32 or float64 number on the CPU, got " + dtype_name(dtype) +
         " " + shape_name(tensor.sizes()) + " on " + device_name(type, index));
  }
  if (dtype == aoti_torch_dtype_float64()) return *static_cast<const double*>(tensor.data_ptr());
  return *static_cast<const float*>(tensor.data_ptr());
}

void Op::range(double lo, double hi) const {
  if (!(lo <= hi))
    fail("lo must not exceed hi, got lo " + std::to_string(lo) + " and hi " + std::to_string(hi));
}

void Op::not_bfloat16(const char* argument) const {
  if (dtype_ == kBFloat16) fail(std::string(argument) + " must be float32 or float64, got bfloat16");
}

// Returns the number of entries.
static int64_t contiguous_strides(std::initializer_list<int64_t> shape, int64_t* strides) {
  const int64_t* const sizes = shape.begin();
  int64_t stride = 1, count = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
    count *= sizes[i];
  }
  return count;
}

Tensor Op::empty(std::initializer_list<int64_t> shape, int32_t torch_dtype) const {
  const int64_t* const sizes = shape.begin();
  int64_t strides[4];
  contiguous_strides(shape, strides);
  AtenTensorHandle handle;
  ADE_TORCH_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), sizes, strides, torch_dtype,
                                           device_type_, device_index_, &handle));
  return Tensor(handle);
}

// torch has a pool of its own on CUDA, and small blocks do not go back to the operating system.
Tensor Op::pooled(std::initializer_list<int64_t> shape, int32_t torch_dtype, int64_t itemsize) const {
  constexpr int64_t kSmall = 64 << 10;
  const int64_t* const sizes = shape.begin();
  int64_t strides[4];
  const int64_t bytes = itemsize * contiguous_strides(shape, strides);
  if (bytes < kSmall || on_cuda()) return empty(shape, torch_dtype);
  void* const block = pool::take(bytes);
  AtenTensorHandle handle;
  const auto deleter = [](void* data, void*) { pool::give_back(data); };
  const auto error =
      torch_from_blob(block, static_cast<int64_t>(shape.size()), sizes, strides, 0, torch_dtype, device_type_,
                      device_index_, &handle, aoti_torch_layout_strided(), nullptr, 0, deleter, nullptr);
  if (error) pool::give_back(block);
  ADE_TORCH_CHECK(error);
  return Tensor(handle);
}

std::optional<Tensor> Op::workspace(int64_t bytes) const {
  return bytes > 0 ? std::optional<Tensor>(pooled({bytes}, aoti_torch_dtype_uint8(), 1)) : std::nullopt;
}

Tensor Op::new_states() const { return empty({rows_, cols_}, torch_dtype_); }
Tensor Op::new_row() const { return empty({cols_}, accumulate_); }
Tensor Op::new_per_sample() const { return empty({rows_}, accumulate_); }
Tensor Op::new_scale(const std::optional<Tensor>& scale) const {
  return scale.has_value() ? empty({scale->size(0), cols_}, accumulate_) : absent();
}
Tensor Op::absent() const { return empty({0}, accumulate_); }
Tensor Op::new_of_shape(std::initializer_list<int64_t> shape) const { return empty(shape, torch_dtype_); }
Tensor Op::new_number() const { return empty({}, torch_dtype_); }
Tensor Op::keep_of_shape(std::initializer_list<int64_t> shape) const {
  return pooled(shape, torch_dtype_, dtype_ == kFloat64 ? 8 : dtype_ == kFloat32 ? 4 : 2);
}
Tensor Op::keep_bytes(std::initializer_list<int64_t> shape) const {
  return pooled(shape, aoti_torch_dtype_uint8(), 1);
}

void Op::mlp_device() const {
#ifdef ADE_WITH_CUDA
  if (!on_cuda()) return;
  const torch::stable::accelerator::DeviceGuard guard(device_index_);
  if (!cuda::runs_mlp())
    fail("the GPU has no bfloat16 tensor cores, which the MLP kernels need (compute capability 8.0)");
#endif
}

#ifdef ADE_WITH_CUDA
void Op::check_cuda(int code) const {
  if (code == 0) return;
  fail(std::string("CUDA error: ") + cuda::error_string(code) +
       " (built with CUDA " ADE_CUDA_VERSION " for " ADE_CUDA_ARCHS
       "; `ade-fast info` says what that needs)");
}

// The stable ABI has no other way to the current stream at a 2.11 target, and only libtorch_cuda has this
// function: a build made against a CPU torch must find it when it runs.
void* Op::cuda_stream() const {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const GetStream get_stream = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<GetStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  if (get_stream == nullptr) fail("this torch has no CUDA stream (libtorch_cuda.so is not loaded)");
  void* stream = nullptr;
  ADE_TORCH_CHECK(get_stream(device_index_, &stream));
  return stream;
}
#endif

}  // namespace bind
}  // namespace ade
