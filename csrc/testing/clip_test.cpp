// common/clip.h: values, derivatives at and beyond the bounds, NaN, rows of norm 0.
#include "common/clip.h"

#include <initializer_list>
#include <limits>

#include "check.h"

using namespace ade::base;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

void value_clip() {
  CHECK(clamp(0.3, -1.0, 1.0) == 0.3);
  CHECK(clamp(-7.0, -1.0, 1.0) == -1.0);
  CHECK(clamp(7.0, -1.0, 1.0) == 1.0);
  CHECK(clamp(kInf, -1.0, 1.0) == 1.0);
  CHECK(clamp(3.0, -kInf, kInf) == 3.0);
  CHECK(std::isnan(clamp(kNan, -1.0, 1.0)));  // a NaN is not hidden

  CHECK(clamp_vjp(2.0, 0.3, -1.0, 1.0) == 2.0);
  CHECK(clamp_vjp(2.0, 1.0, -1.0, 1.0) == 2.0);  // closed interval
  CHECK(clamp_vjp(2.0, -1.0, -1.0, 1.0) == 2.0);
  CHECK(clamp_vjp(2.0, 1.001, -1.0, 1.0) == 0.0);
  CHECK(clamp_vjp(2.0, kNan, -1.0, 1.0) == 0.0);
  CHECK(clamp_vjp(2.0, kNan, -1.0, kInf) == 0.0);
  CHECK(clamp_vjp(2.0, kNan, -kInf, kInf) == 2.0);  // no clip at all
}

void norm_clip() {
  CHECK(norm_clip_scale(25.0, 10.0) == 1.0);
  CHECK(norm_clip_scale(25.0, 5.0) == 1.0);
  CHECK_CLOSE(norm_clip_scale(25.0, 2.0), 0.4, 1e-15);
  CHECK(norm_clip_scale(0.0, 1.0) == 1.0);
  CHECK(norm_clip_scale(kInf, 1.0) == 0.0);
  CHECK(norm_clip_scale(kNan, 1.0) == 1.0);  // the NaN itself stays in the row
  CHECK(norm_clip_shrink(0.0, 0.0, 1.0) == 0.0);
  CHECK(norm_clip_shrink(25.0, 3.0, 10.0) == 0.0);
  CHECK(norm_clip_vjp(3.0, 0.0, 1.0, norm_clip_shrink(0.0, 0.0, 1.0)) == 3.0);
}

// The vjp against central differences of y = u min(1, c / |u|), in both regimes.
void norm_clip_vjp_is_the_derivative() {
  const int n = 3;
  const double u[n] = {0.7, -1.1, 0.4}, dy[n] = {0.3, 0.8, -0.5};
  for (const double c : {0.5, 5.0}) {
    const auto loss = [&](const double* at) {
      double square = 0, value = 0;
      for (int i = 0; i < n; ++i) square += at[i] * at[i];
      for (int i = 0; i < n; ++i) value += dy[i] * at[i] * norm_clip_scale(square, c);
      return value;
    };
    double square = 0, inner = 0;
    for (int i = 0; i < n; ++i) square += u[i] * u[i], inner += u[i] * dy[i];
    for (int i = 0; i < n; ++i) {
      const double h = 1e-6;
      double above[n] = {u[0], u[1], u[2]}, below[n] = {u[0], u[1], u[2]};
      above[i] += h, below[i] -= h;
      const double du =
          norm_clip_vjp(dy[i], u[i], norm_clip_scale(square, c), norm_clip_shrink(square, inner, c));
      CHECK_CLOSE(du, (loss(above) - loss(below)) / (2 * h), 1e-9);
    }
  }
}

}  // namespace

int main() {
  value_clip();
  norm_clip();
  norm_clip_vjp_is_the_derivative();
  return failures;
}
