// cuda/warp.h on the host and the products of cuda/mlp/planes.h: fragments, sums over lanes, and matrix
// products of one, two and three planes against float64.
#include <cstdint>
#include <vector>

#include "cuda/mlp/planes.h"

#include "check.h"

using namespace ade::base::kernels;

namespace {

using Warp = HostWarp;
template <class T>
using Reg = Warp::Reg<T>;

struct Matrix {
  int rows, columns;
  std::vector<float> values;

  Matrix(int rows, int columns) : rows(rows), columns(columns), values(rows * columns) {}
  float& at(int r, int c) { return values[r * columns + c]; }
  float at(int r, int c) const { return values[r * columns + c]; }
};

Matrix random(int rows, int columns, uint32_t seed) {
  Matrix m(rows, columns);
  for (float& v : m.values) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<int32_t>(seed)) / 2147483648.0f;
  }
  return m;
}

// S planes of a matrix's tiles, in fragment order or in block order.
template <int S>
std::vector<Quad> planes_of(const Matrix& m, bool blocks = false) {
  const int across = m.columns / kTile;
  std::vector<Quad> quads(S * m.rows / kTile * across * kWarp);
  const int64_t plane = int64_t{m.rows} / kTile * across * kWarp;
  for (int tile = 0; tile < m.rows / kTile * across; ++tile) {
    for (int lane = 0; lane < kWarp; ++lane) {
      Eight e;
      for (int i = 0; i < 8; ++i) {
        e.v[i] =
            m.at(tile / across * kTile + tile_row(lane, i), tile % across * kTile + tile_column(lane, i));
      }
      Quad* const at = quads.data() + tile * kWarp;
      blocks ? store_block_planes<S>(at, plane, lane, e) : store_planes<S>(at, plane, lane, e);
    }
  }
  return quads;
}
Tiles tiles_of(const std::vector<Quad>& quads, const Matrix& m) {
  return {quads.data(), int64_t{m.rows} / kTile * (m.columns / kTile) * kWarp, m.columns / kTile};
}

void a_tile_has_every_element_once() {
  int seen[kTile][kTile] = {}, index[kTileElements] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const int row = tile_row(lane, i), column = tile_column(lane, i);
      ++seen[row][column];
      ++index[float_index(row, column)];
      Four tile[kTileElements / 4] = {};
      Eight e = {};
      e.v[i] = 1;
      store_floats(tile, lane, e);
      CHECK(tile[float_index(row, column) / 4].v[float_index(row, column) % 4] == 1);
      CHECK(load_floats(tile, lane).v[i] == 1);
    }
  }
  for (const auto& row : seen)
    for (const int count : row) CHECK(count == 1);
  for (const int count : index) CHECK(count == 1);
}

template <int S>
void planes_keep_a_number(double tolerance) {
  const Matrix m = random(kTile, kTile, 7);
  const std::vector<Quad> quads = planes_of<S>(m);
  for (int lane = 0; lane < kWarp; ++lane) {
    const Eight e = load_planes<S>(quads.data(), kWarp, lane);
    for (int i = 0; i < 8; ++i) {
      const float value = m.at(tile_row(lane, i), tile_column(lane, i));
      CHECK(std::fabs(e.v[i] - value) <= tolerance * std::fabs(value));
    }
  }
}

// |got - want| against Σ |a| |b|, which rounding errors are relative to.
void check_element(float got, double want, double size, double tolerance) {
  CHECK(std::fabs(got - want) <= tolerance * size);
}

template <int S, bool kTransposed>
void products(double tolerance) {
  Warp warp(0);
  const Matrix a = random(2 * kTile, 3 * kTile, 1);
  const Matrix w = kTransposed ? random(3 * kTile, 2 * kTile, 2) : random(2 * kTile, 3 * kTile, 2);
  const std::vector<Quad> left = planes_of<S>(a), right = planes_of<S>(w, true);
  for (const bool shared : {false, true}) {
    Reg<Eight> c[2][1];
    product<S, kTransposed>(warp, c, tiles_of(left, a), 0,
                            {right.data(), tiles_of(right, w).plane, w.columns / kTile, shared}, 1, 0, 3);
    for (int r = 0; r < 2; ++r) {
      for (int lane = 0; lane < kWarp; ++lane) {
        for (int i = 0; i < 8; ++i) {
          const int column = kTile + tile_column(lane, i);
          double want = 0, size = 0;
          for (int k = 0; k < 3 * kTile; ++k) {
            const double term = double(a.at(r * kTile + tile_row(lane, i), k)) *
                                (kTransposed ? w.at(k, column) : w.at(column, k));
            want += term;
            size += std::fabs(term);
          }
          check_element(c[r][0].at(lane).v[i], want, size, tolerance);
        }
      }
    }
  }
}

// A tensor core truncates: of 1.5 · 2^-23 added to 1 it loses the half.
void sums_are_truncated() {
  Warp warp(0);
  Reg<Quad> a, b;
  Reg<Eight> c;
  const float last = 1.0f / 8388608;
  warp.each([&](int lane) {
    a.at(lane) = b.at(lane) = Quad{};
    c.at(lane) = {{1, -1, 0, 0, 0, 0, 0, 0}};
    // Column 0 of the left operand and row 0 of the right one.
    if (lane % 4 == 0) {
      a.at(lane).v[0] = a.at(lane).v[1] = pack_pair(1, 0);
      b.at(lane).v[0] = pack_pair(1.5f * last, 0);
    }
  });
  warp.mma<0>(c, a, b);
  warp.each([&](int lane) {
    CHECK(c.at(lane).v[0] == 1 + last);  // to nearest, it would be 1 + 2 last
    CHECK(c.at(lane).v[1] == -1 + 1.5f * last);
    CHECK(c.at(lane).v[2] == 1.5f * last && c.at(lane).v[4] == 0);
  });
}

template <int S>
void outer_products(double tolerance) {
  Warp warp(0);
  const Matrix a = random(2 * kTile, 3 * kTile, 3), b = random(2 * kTile, 2 * kTile, 4);
  const std::vector<Quad> left = planes_of<S>(a), right = planes_of<S>(b);
  Reg<Eight> c[2][1];
  clear(warp, c);
  add_outer_product<S>(warp, c, 2, tiles_of(left, a), 1, tiles_of(right, b), 1);
  for (int r = 0; r < 2; ++r) {
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < 8; ++i) {
        double want = 0, size = 0;
        for (int k = 0; k < 2 * kTile; ++k) {
          const double term =
              double(a.at(k, (1 + r) * kTile + tile_row(lane, i))) * b.at(k, kTile + tile_column(lane, i));
          want += term;
          size += std::fabs(term);
        }
        check_element(c[r][0].at(lane).v[i], want, size, tolerance);
      }
    }
  }
}

void sums_over_lanes() {
  Warp warp(0);
  Reg<float> rows;
  Reg<Four> columns;
  Reg<uint32_t> bits;
  warp.each([&](int lane) {
    rows.at(lane) = static_cast<float>(lane);
    columns.at(lane) = {{static_cast<float>(lane), 1, 0, static_cast<float>(-lane)}};
    bits.at(lane) = 1u << lane;
  });
  warp.row_sum(rows);
  warp.column_sum(columns);
  warp.row_or(bits);
  warp.each([&](int lane) {
    const int first = lane / 4 * 4, own = lane % 4;
    CHECK(rows.at(lane) == 4 * first + 6);
    CHECK(bits.at(lane) == 15u << first);
    const float sum = static_cast<float>(8 * own + 4 * 28);
    CHECK(columns.at(lane).v[0] == sum && columns.at(lane).v[3] == -sum);
    CHECK(columns.at(lane).v[1] == 8 && columns.at(lane).v[2] == 0);
  });
}

}  // namespace

int main() {
  a_tile_has_every_element_once();
  planes_keep_a_number<1>(1.0 / 256);
  planes_keep_a_number<2>(1.0 / 65536);
  planes_keep_a_number<3>(0);
  products<1, false>(2.0 / 256);
  products<2, false>(4.0 / 65536);
  products<3, false>(4e-7);
  products<1, true>(2.0 / 256);
  products<2, true>(4.0 / 65536);
  products<3, true>(4e-7);
  sums_are_truncated();
  outer_products<1>(2.0 / 256);
  outer_products<2>(4.0 / 65536);
  outer_products<3>(4e-7);
  sums_over_lanes();
  return failures;
}
