// The kernels of common/kink.h: a thread for each byte of bits.
#pragma once

#include "common/kink.h"
#include "cuda/block.h"
#include "launch/kink.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class Storage>
struct KinkArgs {
  int64_t size, bytes;
  const Storage* from;
  Storage* to;
  const uint8_t* bits;  // null: they are made
  uint8_t* bits_out;
  acc_t<Storage> slope;
};

template <class Storage>
struct KinkBody {
  using Args = KinkArgs<Storage>;
  struct State {};
  struct Shared {};
  static constexpr int kBlocks = 4;

  static ADE_HD void byte(const Args* args, int64_t at) {
    unsigned bits = args->bits == nullptr ? 0 : args->bits[at];
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int k = 0; k < kink::kEach; ++k) {
      const int64_t i = at * kink::kEach + k;
      if (i >= args->size) break;
      const auto value = load(args->from[i]);
      const bool positive = args->bits == nullptr ? kink::is_positive(value) : (bits >> k & 1u) != 0;
      if (args->bits == nullptr && positive) bits |= 1u << k;
      args->to[i] = Store<Storage>::from(kink::sloped(value, positive, args->slope));
    }
    if (args->bits == nullptr) args->bits_out[at] = static_cast<uint8_t>(bits);
  }

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t first = block.x() * kThreads;
    block.each([=](int t, State&) {
      if (first + t < args->bytes) byte(args, first + t);
    });
  }
};

template <class Storage, class Backend>
int launch_kink(Backend& backend, int64_t size, const void* from, void* to, const uint8_t* bits,
                uint8_t* bits_out, double slope) {
  const int64_t bytes = (size + kink::kEach - 1) / kink::kEach;
  if (bytes == 0) return 0;
  const KinkArgs<Storage> args = {
      size, bytes,    static_cast<const Storage*>(from), static_cast<Storage*>(to),
      bits, bits_out, static_cast<acc_t<Storage>>(slope)};
  return backend.template run<KinkBody<Storage>>((bytes + kThreads - 1) / kThreads, 1, args);
}

template <class Backend, class... Rest>
int launch_kink_as(Backend& backend, Dtype dtype, Rest... rest) {
  if (dtype == kFloat64) return launch_kink<double>(backend, rest...);
  if (dtype == kBFloat16) return launch_kink<bf16>(backend, rest...);
  return launch_kink<float>(backend, rest...);
}

inline int64_t workspace_bytes(const KinkBend&) { return 0; }
inline int64_t workspace_bytes(const KinkSlopes&) { return 0; }
template <class Backend>
int launch(Backend& backend, const KinkBend& from) {
  const uint8_t* const made = nullptr;
  return launch_kink_as(backend, from.dtype, from.rows * from.cols, from.z, from.out, made, from.bits,
                        from.slope);
}
template <class Backend>
int launch(Backend& backend, const KinkSlopes& from) {
  uint8_t* const none = nullptr;
  return launch_kink_as(backend, from.dtype, from.rows * from.cols, from.d, from.out, from.bits, none,
                        from.slope);
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
