// What a kernel body may use of its block of threads, with two implementations.
//
// A body is written as phases: `block.each(f)` runs f(thread, state) for every thread, `block.sync()` is the
// barrier. `state` is the thread's own registers and outlives the phase. On the device a phase is the
// thread's own call. On the host the block loops over its threads: it queues the phases up to the next
// barrier and then runs them warp by warp, so that a warp runs ahead of the others as far as the barriers let
// it. A missing barrier therefore changes the result between the two orders of warps, and registers and
// shared memory start as NaN, as nobody may rely on them.
//
// `block.each_warp(f)` is a phase of warps (cuda/warp.h): f(warp). `block.memory()` is shared memory whose
// size is chosen at the launch.
//
// Rules that follow: phases capture by value, and what decides whether a phase runs is the same for the whole
// block.
#pragma once

#include "cuda/warp.h"

#ifndef __CUDACC__
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>
#endif

namespace ade {
namespace ADE_ISA {
namespace kernels {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

#ifdef __CUDACC__

template <class Body>
class DeviceBlock {
 public:
  using State = typename Body::State;
  using Shared = typename Body::Shared;

  __device__ __forceinline__ DeviceBlock(Shared* shared, char* memory) : shared_(shared), memory_(memory) {}
  __device__ __forceinline__ int64_t x() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t y() const { return blockIdx.y; }
  __device__ __forceinline__ Shared* shared() const { return shared_; }
  __device__ __forceinline__ char* memory() const { return memory_; }

  template <class Phase>
  __device__ __forceinline__ void each(Phase phase) {
    phase(static_cast<int>(threadIdx.x), state_);
  }
  template <class Phase>
  __device__ __forceinline__ void each_warp(Phase phase) {
    DeviceWarp warp;
    phase(warp);
  }
  __device__ __forceinline__ void sync() { __syncthreads(); }

  // Sum over aligned groups of `width` lanes (a power of two up to 32); every lane gets it. Butterfly: fixed
  // order.
  template <class T>
  __device__ __forceinline__ void lane_sum(T State::* value, int width) {
    T sum = state_.*value;
    for (int apart = width / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    state_.*value = sum;
  }

 private:
  Shared* shared_;
  char* memory_;
  State state_;
};

#else

enum class WarpOrder { kAscending, kDescending };

template <class Body>
class HostBlock {
 public:
  using State = typename Body::State;
  using Shared = typename Body::Shared;
  static_assert(std::is_trivially_copyable<State>::value && std::is_trivially_copyable<Shared>::value,
                "registers and shared memory are plain data");

  HostBlock(int64_t x, int64_t y, WarpOrder order, int64_t memory_bytes = 0)
      : x_(x),
        y_(y),
        order_(order),
        shared_(new Shared),
        memory_(memory_bytes + kFence, char(0xff)),
        states_(kThreads) {
    std::memset(static_cast<void*>(shared_.get()), 0xff, sizeof(Shared));
    std::memset(static_cast<void*>(states_.data()), 0xff, sizeof(State) * states_.size());
  }
  int64_t x() const { return x_; }
  int64_t y() const { return y_; }
  Shared* shared() const { return shared_.get(); }
  char* memory() { return memory_.data(); }
  // Nothing was written behind the memory.
  bool intact() const {
    for (size_t i = memory_.size() - kFence; i < memory_.size(); ++i)
      if (memory_[i] != char(0xff)) return false;
    return true;
  }

  template <class Phase>
  void each(Phase phase) {
    queue_.push_back([this, phase](int first) {
      for (int t = first; t < first + kWarp; ++t) phase(t, states_[t]);
    });
  }
  template <class Phase>
  void each_warp(Phase phase) {
    queue_.push_back([phase](int first) {
      HostWarp warp(first / kWarp);
      phase(warp);
    });
  }
  void sync() {
    for (int i = 0; i < kThreads / kWarp; ++i) {
      const int warp = order_ == WarpOrder::kAscending ? i : kThreads / kWarp - 1 - i;
      for (auto& phase : queue_) phase(warp * kWarp);
    }
    queue_.clear();
  }

  template <class T>
  void lane_sum(T State::* value, int width) {
    queue_.push_back([this, value, width](int first) {
      for (int apart = width / 2; apart > 0; apart /= 2) {
        T before[kWarp];
        for (int lane = 0; lane < kWarp; ++lane) before[lane] = states_[first + lane].*value;
        for (int lane = 0; lane < kWarp; ++lane)
          states_[first + lane].*value = before[lane] + before[lane ^ apart];
      }
    });
  }

 private:
  static constexpr size_t kFence = 64;

  int64_t x_, y_;
  WarpOrder order_;
  std::unique_ptr<Shared> shared_;
  std::vector<char> memory_;
  std::vector<State> states_;
  std::vector<std::function<void(int)> > queue_;
};

#endif  // __CUDACC__

// Sum over aligned groups of `group` threads: a power of two up to 32, or the whole block. Every thread gets
// it. `slot` is shared memory for kThreads / kWarp values that nothing else uses until the next barrier but
// one.
template <class Block, class State, class T>
ADE_HD void group_sum(Block& block, T State::* value, int group, T* slot) {
  block.lane_sum(value, group < kWarp ? group : kWarp);
  if (group <= kWarp) return;
  block.each([=](int t, State& s) {
    if (t % kWarp == 0) slot[t / kWarp] = s.*value;
  });
  block.sync();
  block.each([=](int, State& s) {
    T sum = slot[0];
    for (int warp = 1; warp < kThreads / kWarp; ++warp) sum += slot[warp];
    s.*value = sum;
  });
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
