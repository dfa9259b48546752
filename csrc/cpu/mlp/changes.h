// Which bits of φ' of a layer have changed from one point of a chain to the next. Points of a chain lie close
// together, and most units stay on their side: a sum over all units then costs no more than its few terms
// that are others now.
#pragma once

#include <cstring>

#include "cpu/mlp/arena.h"
#include "cpu/rows.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

// Each row by itself, so that its results do not depend on the tile it is in.
class Changes {
 public:
  // From so many on, the sum over all units is had at once (cpu/mlp/subsets.h).
  static constexpr int kMost = 32;

  Changes() = default;
  Changes(int units, int64_t capacity, Arena& arena)
      : row_bytes_(units / 8),
        before_(arena.take<uint8_t>(capacity * row_bytes_)),
        whole_bits_(arena.take<uint8_t>(capacity * row_bytes_)),
        whole_(arena.take<int32_t>(capacity)),
        count_(arena.take<int32_t>(capacity)),
        unit_(arena.take<int16_t>(capacity * kMost)) {}

  // The next rows are new to the sums.
  void forget() { known_ = false; }

  // bits: [rows, ...], `stride` bytes from one row to the next.
  void find(int rows, const uint8_t* bits, int64_t stride) {
    whole_count_ = 0;
    for (int r = 0; r < rows; ++r) {
      const uint8_t* const now = bits + r * stride;
      uint8_t* const before = before_ + r * row_bytes_;
      if (!known_ || !compare(now, before, r)) {
        count_[r] = 0;
        memcpy(whole_bits_ + whole_count_ * row_bytes_, now, row_bytes_);
        whole_[whole_count_++] = r;
      }
      memcpy(before, now, row_bytes_);
    }
    known_ = true;
  }

  // Rows whose sums are to be had at once: the i-th is row whole(i), its bits [units / 8] at whole_bits().
  int whole_count() const { return whole_count_; }
  int whole(int i) const { return whole_[i]; }
  const uint8_t* whole_bits() const { return whole_bits_; }
  int64_t row_bytes() const { return row_bytes_; }

  // Of the other rows the units that have changed: of the i-th, whether its bit is set now.
  int count(int r) const { return count_[r]; }
  int unit(int r, int i) const { return unit_[r * kMost + i] >> 1; }
  bool set(int r, int i) const { return (unit_[r * kMost + i] & 1) != 0; }

 private:
  // Writes down row r's changes; whether they are few.
  bool compare(const uint8_t* now, const uint8_t* before, int r) {
    int count = 0;
    for (int64_t byte = 0; byte < row_bytes_; byte += 4) {
      uint32_t word, other;
      memcpy(&word, now + byte, 4);
      memcpy(&other, before + byte, 4);
      for (uint32_t changed = word ^ other; changed != 0; changed &= changed - 1) {
        if (count == kMost) return false;
        const int bit = __builtin_ctz(changed);
        unit_[r * kMost + count++] = static_cast<int16_t>((byte * 8 + bit) * 2 + (word >> bit & 1));
      }
    }
    count_[r] = count;
    return true;
  }

  int64_t row_bytes_ = 0;
  uint8_t* before_ = nullptr;      // [rows, units / 8]
  uint8_t* whole_bits_ = nullptr;  // [rows, units / 8]
  int32_t* whole_ = nullptr;       // [rows]
  int32_t* count_ = nullptr;       // [rows]
  int16_t* unit_ = nullptr;        // [rows, kMost], twice the unit and its bit
  int whole_count_ = 0;
  bool known_ = false;
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
