// common/scalar.h: every bfloat16 survives the round trip; rounding is to nearest, ties to even; NaN and
// infinity stay.
#include "common/scalar.h"

#include <limits>

#include "check.h"

using namespace ade::base;

namespace {

uint16_t rounded(float a) { return Store<bf16>::from(a).bits; }

void round_trip() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float wide = load(bf16{static_cast<uint16_t>(bits)});
    if (wide != wide) {
      const float again = load(Store<bf16>::from(wide));
      CHECK(again != again);
    } else {
      CHECK(rounded(wide) == bits);
    }
  }
}

void rounding() {
  CHECK(rounded(1.0f) == 0x3f80);
  CHECK(rounded(1.0f + 0x1p-8f) == 0x3f80);             // half way, down to even
  CHECK(rounded(1.0f + 3 * 0x1p-8f) == 0x3f82);         // half way, up to even
  CHECK(rounded(1.0f + 0x1p-8f + 0x1p-20f) == 0x3f81);  // just above half way
  CHECK(rounded(-1.0f - 3 * 0x1p-8f) == 0xbf82);
  CHECK(rounded(std::numeric_limits<float>::max()) == 0x7f80);  // beyond the largest bfloat16: infinity
  CHECK(rounded(std::numeric_limits<float>::infinity()) == 0x7f80);
  CHECK(rounded(0x1p-149f) == 0);
  // A NaN whose payload would round up to infinity.
  uint32_t bits = 0x7f800001u;
  float nan;
  memcpy(&nan, &bits, sizeof nan);
  const float stored = load(Store<bf16>::from(nan));
  CHECK(stored != stored);
}

}  // namespace

int main() {
  round_trip();
  rounding();
  return failures;
}
