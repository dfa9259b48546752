// From Python's keyword arguments and numpy arrays to launch structs, and a workspace with a fence behind it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "launch/clips.h"

namespace ade {

namespace py = pybind11;

// Fills a launch struct from Python's keyword arguments and remembers what it used.
class Reader {
 public:
  explicit Reader(const py::dict& fields) : fields_(fields) {}

  Reader& operator()(const char* name, const void*& pointer) {
    pointer = array(name);
    return *this;
  }
  Reader& operator()(const char* name, void*& pointer) {
    pointer = array(name);
    return *this;
  }
  Reader& operator()(const char* name, uint8_t*& pointer) {
    pointer = static_cast<uint8_t*>(array(name));
    return *this;
  }
  Reader& operator()(const char* name, const uint8_t*& pointer) {
    pointer = static_cast<const uint8_t*>(array(name));
    return *this;
  }
  // A list of arrays, as many as there are; None: none.
  template <class Pointer, size_t N>
  Reader& operator()(const char* name, Pointer (&pointers)[N]) {
    const py::object given = take(name);
    if (given.is_none()) return *this;
    const auto list = given.cast<py::list>();
    if (list.size() > N) throw std::invalid_argument(std::string(name) + " are too many");
    for (size_t i = 0; i < list.size(); ++i) pointers[i] = data_of(name, list[i]);
    return *this;
  }
  Reader& operator()(const char* name, std::vector<int64_t>& values) {
    values = take(name).cast<std::vector<int64_t>>();
    return *this;
  }
  Reader& operator()(const char* name, double& value) {
    value = take(name).cast<double>();
    return *this;
  }
  Reader& operator()(const char* name, bool& value) {
    value = take(name).cast<bool>();
    return *this;
  }
  Reader& operator()(const char* name, int64_t& value) {
    value = take(name).cast<int64_t>();
    return *this;
  }
  Reader& operator()(const char* name, ClipArgs& clip) {
    const auto pair = take(name).cast<std::pair<int32_t, double>>();
    clip = {pair.first, pair.second};
    return *this;
  }
  // None, [1, D] (shared by the batch) or [B, D].
  Reader& operator()(const char* name, ScaleArgs& scale) {
    scale = {array(name), 0};
    if (scale.data != nullptr) {
      const auto shape = fields_[name].cast<py::array>();
      scale.row_stride = shape.shape(0) == 1 ? 0 : shape.shape(1);
    }
    return *this;
  }
  Reader& operator()(const char* name, Dtype& dtype) {
    const auto text = take(name).cast<std::string>();
    if (text != "float32" && text != "float64" && text != "bfloat16")
      throw std::invalid_argument("dtype " + text);
    dtype = text == "float32" ? kFloat32 : text == "float64" ? kFloat64 : kBFloat16;
    return *this;
  }
  void finish() const {
    if (used_ != fields_.size())
      throw std::invalid_argument("unknown argument among " + py::str(fields_).cast<std::string>());
  }

 private:
  py::object take(const char* name) {
    if (!fields_.contains(name)) throw std::invalid_argument(std::string("missing argument ") + name);
    ++used_;
    return fields_[name];
  }
  void* array(const char* name) {
    const py::object value = take(name);
    return value.is_none() ? nullptr : data_of(name, value);
  }
  static void* data_of(const char* name, const py::object& value) {
    const auto data = value.cast<py::array>();
    if (!(data.flags() & py::array::c_style))
      throw std::invalid_argument(std::string(name) + " is not contiguous");
    return const_cast<void*>(data.data());
  }

  py::dict fields_;
  size_t used_ = 0;
};

// Memory of `bytes` at a multiple of 64, filled with NaN, with a fence behind it.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes), storage_(bytes + 2 * kFence, char(0xff)) {
    start_ = storage_.data() + (kFence - reinterpret_cast<uintptr_t>(storage_.data()) % kFence);
    std::memset(start_ + bytes_, 0x5a, fence());
  }
  void* data() { return start_; }
  bool intact() const {
    for (int64_t i = 0; i < fence(); ++i)
      if (start_[bytes_ + i] != 0x5a) return false;
    return true;
  }

 private:
  static constexpr int64_t kFence = 64;
  int64_t fence() const { return storage_.data() + storage_.size() - (start_ + bytes_); }
  int64_t bytes_;
  std::vector<char> storage_;
  char* start_;
};

}  // namespace ade
