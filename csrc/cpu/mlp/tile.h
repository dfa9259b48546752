// A tile: the samples that one thread takes through the network together, with all that the sweeps of
// potentials/mlp.h leave for each other. Everything is panels [width, rows] (product.h) in one arena, few
// enough rows for the second-level cache. The sweeps themselves are in gradient.h (first order) and
// second_order.h.
#pragma once

#include <cstring>

#include "cpu/mlp/changes.h"
#include "cpu/mlp/network.h"
#include "cpu/mlp/vector_math.h"
#include "cpu/rows.h"
#include "potentials/mlp.h"
#include "potentials/mlp_activations.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

// What a tile is built for: cotangents of the gradient, of the value, or none; and whether it goes along
// chains of points (follow.h).
struct TileUse {
  bool dgradient, dvalue;
  bool follows = false;

  bool curvature(const MlpShape& shape) const { return dgradient && !piecewise_linear(shape.activation); }
  // The value's cotangent comes as tangents, too: of a piecewise-linear potential, and where it is alone.
  bool homogeneous(const MlpShape& shape) const { return dvalue && !curvature(shape); }
};

// The products through hidden layers, z_l (l >= 2, of a smooth φ) and G_l (l < L) or P_d for G_1, kept from
// the forward unroll for the backward pass: panels [panel, B, kPanel] of one step. Their order is this
// folder's own.
template <class T>
struct Products {
  T* data;              // at the tile's first row, or null: not kept
  int64_t rows;         // B
  bool known;           // to be read, not computed
  T* hidden = nullptr;  // h_l of a piecewise-linear potential (hidden_columns), or null: not kept

  // Step t of `kept` [T+1, ...], the tile's rows from `first` on; hidden: of this step, or null.
  static Products at(void* kept, const MlpShape& shape, int64_t rows, int64_t t, int64_t first, bool known,
                     void* hidden = nullptr) {
    if (!kept) return {nullptr, 0, false};
    T* const h = hidden && piecewise_linear(shape.activation) ? static_cast<T*>(hidden) : nullptr;
    return {static_cast<T*>(kept) + t * rows * product_columns(shape) + first * kPanel<T>, rows, known,
            h ? h + first * kPanel<T> : nullptr};
  }
  // The field's, which lie behind its products.
  static Products of_field(void* kept, const MlpShape& shape, int64_t rows, int64_t first, bool known) {
    return at(kept, shape, rows, 0, first, known, static_cast<T*>(kept) + rows * product_columns(shape));
  }
};

// Whence an activation knows G_l: not yet, from the forward unroll, or because it is w.
enum class Grad { kLater, kKept, kTop };

template <class T>
class Tile {
 public:
  Tile(const Network<T>& network, TileUse use, int capacity, Arena& arena);

  // The samples at hand: rows of x, where the piecewise-linear bits live (null: in the tile), and where the
  // products do. What is known of h_l is read.
  void begin(int rows, uint8_t* bits, Products<T> products);
  // What weight_gradient adds to, from begin_sums on; complete after end_sums.
  void begin_sums(WeightSums<T>& sums);
  void end_sums();

  // Before points that do not follow those of the last evaluation, or where sums over a chain's changes are
  // to begin anew.
  void forget();

  int layers() const { return shape_.layers; }

  // First order.
  void forward(int l);
  void seed_from_bits();
  void backward(int l);
  void input_gradient();

  // Second order.
  void tangent(int l);
  void curvature(int l);
  void input_product() { project(zeta_[1], dx); }
  void weight_gradient(int l);

  Wanted want;   // of the sweep at hand
  T* x;          // [rows, D]
  T* value;      // [rows], f
  T* gradient;   // [rows, D], F
  T* dvalue;     // [rows], df, or null: 0
  T* dgradient;  // [rows, D], u
  T* dx;         // [rows, D]

 private:
  using V = simd::Vector<T>;
  static constexpr int kLanes = simd::kLanes<T>;
  static constexpr int kRegisters = simd::kPanelRegisters<T>;

  int columns(int l) const { return width(shape_, l); }
  int panel_count(int l) const { return columns(l) / kPanel<T>; }
  int64_t panel_size() const { return static_cast<int64_t>(rows_) * kPanel<T>; }
  bool linear() const { return piecewise_linear(shape_.activation); }
  bool bends() const { return want.tangent && use_.curvature(shape_); }
  bool by_bits(int l) const { return l == shape_.layers && top_is_bits(shape_); }
  bool bottom_by_bits() const { return bottom_is_bits(shape_); }
  bool homogeneous() const { return use_.homogeneous(shape_); }
  int bottom_dims() const { return shape_.dim + (homogeneous() ? 1 : 0); }  // of N

  // out [rows, kPanel] = start + (activations of layer l) times a packed panel.
  void multiply(const T* activations, int l, const T* packed, const T* start, T* out);
  // Where panel p of z_l and of G_l is computed, or lies already (products_.known).
  T* z_panel(int l, int p) const {
    const bool kept = products_.data && l > 1 && !linear();
    return kept ? products_.data + (first_z_ + first_unit_[l] + p * kPanel<T>)*products_.rows : panel_;
  }
  T* grad_panel(int l, int p) const {
    return products_.data ? products_.data + (first_grad_ + first_unit_[l] + p * kPanel<T>)*products_.rows
                          : panel_;
  }
  T* bottom_panel(int d, int p) const {  // of P_d
    const int64_t column = static_cast<int64_t>(d) * columns(2) + p * kPanel<T>;
    return products_.data ? products_.data + column * products_.rows : bottom_ + column * rows_;
  }
  // Whether h_l is used beyond the next layer, and not only its bits; copies it to or from the products.
  bool has_hidden(int l) const { return !by_bits(l) && !(l == 1 && bottom_by_bits()); }
  void store_hidden(int l) const { copy_hidden<true>(l); }
  void load_hidden(int l) const { copy_hidden<false>(l); }
  template <bool Store>
  void copy_hidden(int l) const;
  // out [rows, D] = a W_1 for panels a of layer 1.
  void project(const T* a, T* out);
  template <int D, int R>
  void project_narrow(const T* a, T* out, int row);
  // A panel of G_{L-1} = φ'_L diag(w) W_L, and M += Σ φ'_L t_{L-1}ᵀ, by the bits of φ'_L.
  void multiply_top(int p, T* out);
  void add_top_weight_gradient();
  // By the bits of φ'_1 (bottom_is_bits): a panel of every P_d,
  void multiply_bottom(int p);
  // of P_d, or for d = D of P_c, as finish(element, register of columns),
  template <class Finish>
  void multiply_bottom(int d, int p, const Finish& finish);
  // of z_2, beside those of P,
  template <int D>
  void bottom_forward(int p, T* z);
  // the same, and G_{L-1}, from those of a chain's last point (follow.h),
  template <int D>
  void follow_bottom(int p, T* z);
  T* follow_top(int p);
  template <class Sums, class Table>
  void sum_whole_rows(const Changes& changes, int dims, int64_t size, const Sums& sums, const Table& table);
  // F from P and δ_2,
  template <int D>
  void bottom_gradient();
  // a panel of ż_2 from P and u,
  template <int D>
  void bottom_tangent(int p, T* out);
  // With df and a piecewise-linear φ: u becomes u + df x, or at the bottom u + df (x - c), and db_l, db.
  void complete_direction();
  void add_bias_gradient(int l);
  // N += the tile's terms, and in the end dW_1, db_1 and dW_2 from N.
  void add_bottom_weight_gradient();
  template <int D>
  void add_bottom_sums();
  // to[unit * kPanel ...] += a register of columns of the table at hand, by the bits of each unit.
  void add_unit_product(int units, T* to);

  uint8_t* bits_of_panel(int l, int p, int row) const {
    return bits_ + row * bit_stride_ + (first_unit_[l] + p * kPanel<T>) / 8;
  }
  // φ' of the piecewise-linear activation for one row of a panel.
  V slope_from_bits(uint32_t bits, int j) const;
  uint32_t load_bits(int l, int p, int row) const;
  void store_bits(int l, int p, int row, uint32_t bits) const;

  template <class Function>
  void activate_smooth(int l, int p, const T* z);
  template <class Function, Grad Known, bool Value>
  void activate_smooth_rows(int l, int p, const T* z);
  void activate_linear(int l, int p, const T* z);
  void backward_smooth(int l, int p, const T* grad);
  void backward_linear(int l, int p, const T* grad);

  // sums [kPanel] += total
  static void add_to(T* sums, const V (&total)[kRegisters]) {
    for (int j = 0; j < kRegisters; ++j) {
      simd::store<T>(sums + j * kLanes, simd::load(sums + j * kLanes) + total[j]);
    }
  }

  const Network<T>& network_;
  const MlpShape shape_;
  const TileUse use_;
  T parameter_;
  int rows_;
  T* zeros_;                          // [kPanel]
  T* panel_;                          // [rows, kPanel], the product at hand
  T* hidden_[kMaxHiddenLayers + 1];   // h_l
  T* slope_[kMaxHiddenLayers + 1];    // φ'_l, of a smooth φ
  T* delta_[kMaxHiddenLayers + 1];    // δ_l
  T* tangent_[kMaxHiddenLayers + 1];  // t_l
  T* zeta_[kMaxHiddenLayers + 1];     // φ''_l, then φ''_l G_l, then φ''_l G_l ż_l, then ζ_l
  T* bottom_;                         // P_d, panels [n_2, rows] for each d
  T* bottom_centre_;                  // P_c, and
  T* top_grad_;                       // G_{L-1}, panels, where the tile follows chains
  Changes bottom_changes_;            // of φ'_1, and
  Changes top_changes_;               // of φ'_L
  T* bottom_sums_;                    // N_d, panels [n_2, n_1] for each d, and with df N_c
  T* subsets_;                        // a table of t_{L-1}'s rows, or of δ_2's times u_d or df
  uint64_t* unit_bits_;               // bits of φ'_L or φ'_1 by units
  WeightSums<T>* sums_;
  uint8_t* own_bits_;
  uint8_t* bits_;       // [rows, Σ n_l / 8]
  int64_t bit_stride_;  // bytes of one row
  Products<T> products_;
  int first_z_;                             // column of the kept z_2, less first_unit_[2]
  int first_grad_;                          // of the kept G_l, less first_unit_[l]
  int first_hidden_[kMaxHiddenLayers + 1];  // of the kept h_l
  int first_unit_[kMaxHiddenLayers + 2];
};

template <class T>
Tile<T>::Tile(const Network<T>& network, TileUse use, int capacity, Arena& arena)
    : network_(network), shape_(network.shape), use_(use), rows_(capacity), sums_(nullptr) {
  const int layers = shape_.layers;
  const bool smooth = !linear(), curvature = use.curvature(shape_);
  const bool tangents = use.dgradient || homogeneous();
  parameter_ = linear() ? lower_slope<T>(shape_) : static_cast<T>(shape_.parameter);
  first_unit_[1] = 0;
  for (int l = 1; l <= layers; ++l) first_unit_[l + 1] = first_unit_[l] + columns(l);
  bit_stride_ = first_unit_[layers + 1] / 8;
  first_z_ = first_unit_[layers] - columns(1);
  first_grad_ = bottom_by_bits() ? shape_.dim * columns(2) - columns(1) : 0;

  for (int l = 1, at = 0; l <= layers; ++l) {
    first_hidden_[l] = at;
    at += has_hidden(l) ? columns(l) : 0;
  }

  const int64_t points = static_cast<int64_t>(capacity) * shape_.dim;
  zeros_ = arena.take<T>(kPanel<T>);
  panel_ = arena.take<T>(static_cast<int64_t>(capacity) * kPanel<T>);
  x = arena.take<T>(points);
  gradient = arena.take<T>(points);
  dgradient = arena.take<T>(points);
  dx = arena.take<T>(points);
  value = arena.take<T>(capacity);
  dvalue = use.dvalue ? arena.take<T>(capacity) : nullptr;
  own_bits_ = linear() ? arena.take<uint8_t>(capacity * bit_stride_) : nullptr;
  for (int l = 1; l <= layers; ++l) {
    const bool bottom = l == 1 && bottom_by_bits();
    const bool bits = !has_hidden(l);  // h_l and δ_l are not needed
    const int64_t size = static_cast<int64_t>(capacity) * columns(l);
    // Without a use for h or φ' later, δ_l takes their place: h_l is read by layer l + 1 before δ_l is
    // written.
    hidden_[l] = bits ? nullptr : arena.take<T>(size);
    slope_[l] = smooth ? arena.take<T>(size) : nullptr;
    const bool own_delta = (curvature || tangents || layers == 1) && !bits;
    delta_[l] = own_delta ? arena.take<T>(size) : (smooth ? slope_[l] : hidden_[l]);
    tangent_[l] = tangents && l < layers && !bottom ? arena.take<T>(size) : nullptr;
    zeta_[l] = curvature ? arena.take<T>(size) : nullptr;
  }
  const int64_t bottom_size = bottom_by_bits() ? static_cast<int64_t>(shape_.dim) * columns(2) : 0;
  bottom_ = arena.take<T>(bottom_size * capacity);
  const bool follows_bottom = use.follows && bottom_by_bits(), follows_top = use.follows && by_bits(layers);
  bottom_centre_ = follows_bottom ? arena.take<T>(static_cast<int64_t>(capacity) * columns(2)) : nullptr;
  top_grad_ = follows_top ? arena.take<T>(static_cast<int64_t>(capacity) * columns(layers - 1)) : nullptr;
  if (follows_bottom) bottom_changes_ = Changes(columns(1), capacity, arena);
  if (follows_top) top_changes_ = Changes(columns(layers), capacity, arena);
  const int64_t sums = bottom_by_bits() ? bottom_dims() * columns(2) * static_cast<int64_t>(columns(1)) : 0;
  bottom_sums_ = tangents ? arena.take<T>(sums) : nullptr;
  const bool top_gradient = by_bits(layers) && tangents;
  subsets_ = top_gradient ? arena.take<T>(subset_table_size<T>(capacity)) : nullptr;
  unit_bits_ = top_gradient ? arena.take<uint64_t>(max_of(columns(layers), columns(1))) : nullptr;
  if (zeros_) {
    for (int c = 0; c < kPanel<T>; ++c) zeros_[c] = 0;
  }
}

template <class T>
void Tile<T>::begin(int rows, uint8_t* bits, Products<T> products) {
  rows_ = rows;
  products_ = products;
  bits_ = bits ? bits : own_bits_;
  for (int l = 1; products_.known && products_.hidden && l <= shape_.layers; ++l) {
    if (has_hidden(l)) load_hidden(l);
  }
}

template <class T>
template <bool Store>
void Tile<T>::copy_hidden(int l) const {
  for (int p = 0; p < panel_count(l); ++p) {
    T* const kept = products_.hidden + (first_hidden_[l] + p * kPanel<T>)*products_.rows;
    T* const own = hidden_[l] + p * panel_size();
    memcpy(Store ? kept : own, Store ? own : kept, panel_size() * sizeof(T));
  }
}

template <class T>
void Tile<T>::multiply(const T* activations, int l, const T* packed, const T* start, T* out) {
  if (l == 0) {
    product<T, 0, 1>(rows_, {activations, shape_.dim, 1, 0}, {packed, 0}, 1, shape_.dim, {start, 0}, out);
  } else {
    product<T, kPanel<T>, 1>(rows_, {activations, kPanel<T>, 1, panel_size()},
                             {packed, kPanel<T> * kPanel<T>}, panel_count(l), kPanel<T>, {start, 0}, out);
  }
}

template <class T>
inline uint32_t Tile<T>::load_bits(int l, int p, int row) const {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, bits_of_panel(l, p, row), kPanel<T> / 8);
  return bits;
}
template <class T>
inline void Tile<T>::store_bits(int l, int p, int row, uint32_t bits) const {
  __builtin_memcpy(bits_of_panel(l, p, row), &bits, kPanel<T> / 8);
}
template <class T>
inline simd::Vector<T> Tile<T>::slope_from_bits(uint32_t bits, int j) const {
  const simd::Mask<T> m = simd::mask_of<T>(bits >> (j * kLanes));
  return m ? simd::broadcast<T>(1) : simd::broadcast<T>(parameter_);
}

template <class T>
template <class Finish>
void Tile<T>::multiply_bottom(int d, int p, const Finish& finish) {
  const int64_t size = network_.bottom_table_size();
  const T* const tables = network_.bottom + d * network_.bottom_size() + p * kRegisters * size;
  for (int j = 0; j < kRegisters; ++j) {
    subset_product(rows_, bits_of_panel(1, 0, 0), bit_stride_, columns(1) / kSubsetTerms, tables + j * size,
                   [&](int r, V sum) { finish(r * kPanel<T> + j * kLanes, sum); });
  }
}

template <class T>
void Tile<T>::multiply_bottom(int p) {
  for (int d = 0; d < shape_.dim; ++d) {
    T* const out = bottom_panel(d, p);
    multiply_bottom(d, p, [&](int64_t at, V sum) { simd::store<T>(out + at, sum); });
  }
}

template <class T>
template <int D>
void Tile<T>::bottom_forward(int p, T* z) {
  multiply_bottom(p);
  const T* const bias = network_.bias[2] + p * kPanel<T>;
  multiply_bottom(D, p, [&](int64_t at, V sum) {
    const T* const x_r = x + at / kPanel<T> * D;
#pragma GCC unroll 2
    for (int d = 0; d < D; ++d) sum += (x_r[d] - network_.centre[d]) * simd::load(bottom_panel(d, p) + at);
    simd::store<T>(z + at, simd::load(bias + at % kPanel<T>) + sum);
  });
}

template <class T>
void Tile<T>::multiply_top(int p, T* out) {
  const int units = columns(shape_.layers);
  for (int j = 0; j < kRegisters; ++j) {
    const T* const table = network_.top + (p * kRegisters + j) * network_.top_table_size();
    subset_product(rows_, bits_of_panel(shape_.layers, 0, 0), bit_stride_, units / kSubsetTerms, table,
                   [&](int r, V sum) { simd::store<T>(out + r * kPanel<T> + j * kLanes, sum); });
  }
}

template <int N>
struct Constant {
  static constexpr int value = N;
};

template <class T>
void Tile<T>::project(const T* a, T* out) {
  const int dim = shape_.dim;
  const auto narrow = [&](auto d, auto group) {
    constexpr int D = decltype(d)::value, R = decltype(group)::value;
    int row = 0;
    for (; row + R <= rows_; row += R) project_narrow<D, R>(a, out, row);
    for (; row < rows_; ++row) project_narrow<D, 1>(a, out, row);
  };
  if (dim == 1) return narrow(Constant<1>{}, Constant<8>{});
  if (dim == 2) return narrow(Constant<2>{}, Constant<4>{});
  if (dim == 3) return narrow(Constant<3>{}, Constant<2>{});
  if (dim == 4) return narrow(Constant<4>{}, Constant<2>{});
  for (int p = 0; p < panels(dim, kPanel<T>); ++p) {
    multiply(a, 1, network_.backward[1] + static_cast<int64_t>(p) * columns(1) * kPanel<T>, zeros_, panel_);
    const int first = p * kPanel<T>, size = dim - first < kPanel<T> ? dim - first : kPanel<T>;
    for (int r = 0; r < rows_; ++r) {
      for (int c = 0; c < size; ++c) out[r * dim + first + c] = panel_[r * kPanel<T> + c];
    }
  }
}

// R rows of out against the D columns of W_1, as dot products along the units: a padded panel would waste
// most of its columns.
template <class T>
template <int D, int R>
void Tile<T>::project_narrow(const T* a, T* out, int row) {
  V dot[R][D] = {};
  for (int p = 0; p < panel_count(1); ++p) {
    const T* const a_p = a + p * panel_size() + row * kPanel<T>;
    const T* const w_p = network_.forward[1] + static_cast<int64_t>(p) * D * kPanel<T>;
#pragma GCC unroll 4
    for (int j = 0; j < kRegisters; ++j) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V a_r = simd::load(a_p + r * kPanel<T> + j * kLanes);
#pragma GCC unroll 4
        for (int c = 0; c < D; ++c) dot[r][c] += a_r * simd::load(w_p + c * kPanel<T> + j * kLanes);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < D; ++c) out[(row + r) * D + c] = simd::sum<T>(dot[r][c]);
  }
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
