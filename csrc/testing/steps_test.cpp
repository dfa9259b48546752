// steps/: each formula on numbers worked by hand, and each vjp against central differences of its formula.
#include <functional>
#include <initializer_list>
#include <limits>
#include <vector>

#include "check.h"
#include "common/noise.h"
#include "potentials/affine_force.h"
#include "steps/damped_leapfrog.h"
#include "steps/generalized_leapfrog.h"
#include "steps/leapfrog.h"

using namespace ade::base;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// d(dy * f)/d(argument i) at `at`, which are f's arguments, against `vjp`.
void check_vjp(const char* name, const std::function<double(const std::vector<double>&)>& f,
               std::vector<double> at, double dy, const std::vector<double>& vjp) {
  for (size_t i = 0; i < vjp.size(); ++i) {
    const double h = 1e-6, here = at[i];
    at[i] = here + h;
    const double above = f(at);
    at[i] = here - h;
    const double below = f(at);
    at[i] = here;
    const double numeric = dy * (above - below) / (2 * h);
    if (!(std::fabs(numeric - vjp[i]) < 1e-8)) {
      std::fprintf(stderr, "%s: argument %zu: vjp %.12g, difference quotient %.12g\n", name, i, vjp[i],
                   numeric);
      ++failures;
    }
  }
}

void values() {
  CHECK(leapfrog::kick(1.0, 2.0, 0.25) == 1.5);
  CHECK(leapfrog::drift(1.0, 2.0, 0.25, -1.0, 1.25) == 1.25);
  CHECK(damped_leapfrog::kick(4.0, 2.0, 0.25, 0.5) == 2.5);
  CHECK(generalized_leapfrog::half_kick(1.0, 2.0, 3.0, 0.25) == 3.5);
  CHECK(generalized_leapfrog::merged_kick(1.0, 2.0, 3.0, 0.25, 0.5) == 11.5);
  CHECK(generalized_leapfrog::drift(1.0, 2.0, 3.0, 0.25, -kInf, kInf) == 3.5);
  CHECK(affine_force::force(2.0, 3.0, {0.5, 0.25, 1.0}) == 0.5);
  CHECK(affine_force::value(3.0, {0.5, 0.25, 1.0}) == -0.5);
  CHECK(add_noise(1.0, 2.0, 0.25, -kInf, kInf) == 1.5);
  CHECK(add_noise(1.0, 2.0, 0.25, -1.0, 1.25) == 1.25);

  // Absent pointers are the identity; rows are those of the kick.
  const double scale[] = {0.5, 0.75}, pull[] = {1, 2, 3, 4}, centre[] = {5, 6, 7, 8};
  const auto none = affine_force::Coefficients<double>::at(nullptr, nullptr, nullptr, 1, 2, 1);
  CHECK(none.scale == 1 && none.pull == 0 && none.centre == 0);
  const auto all = affine_force::Coefficients<double>::at(scale, pull, centre, 1, 2, 0);
  CHECK(all.scale == 0.75 && all.pull == 3 && all.centre == 7);
}

void vjps() {
  const double dy = 0.7;
  const auto kick = leapfrog::kick_vjp(dy, 0.4, 0.3);
  check_vjp("leapfrog::kick", [](auto& a) { return leapfrog::kick(a[0], a[1], a[2]); }, {1.2, 0.4, 0.3}, dy,
            {kick.dv, kick.dforce, kick.dk});
  const auto damped = damped_leapfrog::kick_vjp(dy, 0.4, 0.3, 0.9);
  check_vjp("damped_leapfrog::kick", [](auto& a) { return damped_leapfrog::kick(a[0], a[1], a[2], 0.9); },
            {1.2, 0.4, 0.3}, dy, {damped.dv, damped.dforce, damped.dk});
  for (const double hi : {10.0, 1.0}) {  // free, and held at the upper end of the range
    const auto drift = leapfrog::drift_vjp(dy, 1.2, 0.4, 0.3, -1.0, hi);
    check_vjp("leapfrog::drift", [&](auto& a) { return leapfrog::drift(a[0], a[1], a[2], -1.0, hi); },
              {1.2, 0.4, 0.3}, dy, {drift.dx, drift.du, drift.deta});
    const auto scaled = generalized_leapfrog::drift_vjp(dy, 1.2, 0.4, std::exp(0.2), 0.3, -1.0, hi);
    check_vjp(
        "generalized_leapfrog::drift",
        [&](auto& a) { return generalized_leapfrog::drift(a[0], a[1], std::exp(a[2]), a[3], -1.0, hi); },
        {1.2, 0.4, 0.2, 0.3}, dy, {scaled.dx, scaled.du, scaled.ds, scaled.deta});
  }
  const auto of = [](const std::vector<double>& a) {
    return affine_force::Coefficients<double>{a[2], a[3], a[4]};
  };
  const std::vector<double> at{0.4, 1.2, 0.8, 0.6, -0.3};  // F, x, scale, pull, centre
  const auto force = affine_force::force_vjp(dy, at[0], at[1], of(at));
  check_vjp("affine_force::force", [&](auto& a) { return affine_force::force(a[0], a[1], of(a)); }, at, dy,
            {force.dgrad, force.dx, force.dscale, force.dpull, force.dcentre});
  check_vjp("affine_force::value",
            [&](auto& a) { return affine_force::value(a[0], of({0, 0, 1, 0.6, -0.3})); }, {1.2}, dy,
            {affine_force::value_vjp(dy, 1.2, of(at))});
  for (const double hi : {10.0, 1.0}) {
    const auto noise = add_noise_vjp(dy, 1.2, 0.4, 0.3, -1.0, hi);
    const auto refresh = [&](auto& a) { return add_noise(a[0], 0.4, a[1], -1.0, hi); };
    check_vjp("add_noise", refresh, {1.2, 0.3}, dy, {noise.dy, noise.dsigma});
  }
  const auto half = generalized_leapfrog::half_kick_vjp(dy, 1.2, 0.4, std::exp(0.2), 0.3);
  check_vjp("generalized_leapfrog::half_kick",
            [](auto& a) { return generalized_leapfrog::half_kick(a[0], a[1], std::exp(a[2]), a[3]); },
            {1.2, 0.4, 0.2, 0.3}, dy, {half.dv, half.dforce, half.ds, half.da});
  const auto merged = generalized_leapfrog::merged_kick_vjp(dy, 1.2, 0.4, std::exp(0.2), 0.3, 0.6);
  check_vjp("generalized_leapfrog::merged_kick",
            [](auto& a) { return generalized_leapfrog::merged_kick(a[0], a[1], std::exp(a[2]), a[3], a[4]); },
            {1.2, 0.4, 0.2, 0.3, 0.6}, dy, {merged.dv, merged.dforce, merged.ds, merged.da, merged.db});
}

}  // namespace

int main() {
  values();
  vjps();
  return failures;
}
