// Kinks and their bits on the CPU, run by run (common/kink.h): a loop over entries that vectorises, and one
// that packs eight flags into a byte by a product. Compiled once per instruction set (cpu/dispatch.cpp
// chooses).
#include "common/kink.h"

#include "cpu/rows.h"
#include "launch/kink.h"

namespace ade {
namespace ADE_ISA {
namespace {

using kink::kEach;
constexpr int kRunBytes = 64;
constexpr int kRunEntries = kEach * kRunBytes;

// Eight bytes of 0 or 1, the first one lowest, as bits of one byte, and back. No two terms of the products
// meet.
inline uint8_t packed(const uint8_t* flags) {
  uint64_t word;
  memcpy(&word, flags, sizeof word);
  return static_cast<uint8_t>((word * 0x0102040810204080u) >> 56);
}
inline void unpack(uint8_t bits, uint8_t* flags) {
  const uint64_t spread = (bits * 0x8040201008040201u) & 0x8080808080808080u;  // flag k stands in byte 7 - k
  const uint64_t word = __builtin_bswap64(spread >> 7);
  memcpy(flags, &word, sizeof word);
}

template <class S>
void bend_run(const S* z, S* out, uint8_t* flags, acc_t<S> slope, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const acc_t<S> value = load(z[i]);
    const bool positive = kink::is_positive(value);
    flags[i] = positive;
    out[i] = Store<S>::from(kink::sloped(value, positive, slope));
  }
}

template <class S>
void slopes_run(const S* d, const uint8_t* flags, S* out, acc_t<S> slope, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = Store<S>::from(kink::sloped(load(d[i]), flags[i] != 0, slope));
}

// body(first entry, how many, first byte, how many)
template <class Args, class Body>
void each_run(const Args& args, cpu::Parallel parallel, const Body& body) {
  const int64_t size = args.rows * args.cols;
  parallel_for(parallel, ceil_div(size, kRunEntries), kRunEntries, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t first = run * kRunEntries, count = min_of(kRunEntries, size - first);
      body(first, count, run * kRunBytes, ceil_div(count, kEach));
    }
  });
}

template <class S>
void launch_as(const KinkBend& args, cpu::Parallel parallel) {
  const auto slope = static_cast<acc_t<S>>(args.slope);
  each_run(args, parallel, [&](int64_t first, int64_t count, int64_t byte, int64_t bytes) {
    uint8_t flags[kRunEntries];
    for (int64_t i = count; i < bytes * kEach; ++i) flags[i] = 0;
    bend_run(static_cast<const S*>(args.z) + first, static_cast<S*>(args.out) + first, flags, slope, count);
    for (int64_t i = 0; i < bytes; ++i) args.bits[byte + i] = packed(flags + i * kEach);
  });
}

template <class S>
void launch_as(const KinkSlopes& args, cpu::Parallel parallel) {
  const auto slope = static_cast<acc_t<S>>(args.slope);
  each_run(args, parallel, [&](int64_t first, int64_t count, int64_t byte, int64_t bytes) {
    uint8_t flags[kRunEntries];
    for (int64_t i = 0; i < bytes; ++i) unpack(args.bits[byte + i], flags + i * kEach);
    slopes_run(static_cast<const S*>(args.d) + first, flags, static_cast<S*>(args.out) + first, slope, count);
  });
}

}  // namespace

int64_t workspace_bytes(const KinkBend&) { return 0; }
int64_t workspace_bytes(const KinkSlopes&) { return 0; }
void launch(const KinkBend& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto storage) { launch_as<decltype(storage)>(args, parallel); });
}
void launch(const KinkSlopes& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto storage) { launch_as<decltype(storage)>(args, parallel); });
}

}  // namespace ADE_ISA
}  // namespace ade
