// What an objective sums up, on the CPU. Compiled once per instruction set (cpu/dispatch.cpp chooses).
#include "launch/sums.h"

#include <cmath>

#include "cpu/rows.h"

namespace ade {
namespace ADE_ISA {
namespace {

template <class T>
double sum_of_squares(const void* elements, int64_t size) {
  const T* const u = static_cast<const T*>(elements);
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(u[i]) * static_cast<double>(u[i]);
  return sum;
}

template <class T>
void launch_as(const Kinetic& args, cpu::Parallel parallel) {
  const T* const v = static_cast<const T*>(args.v);
  T* const energy = static_cast<T*>(args.energy);
  const int64_t cols = args.cols;
  parallel_for(parallel, args.rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      energy[b] = static_cast<T>(0.5 * args.weight * sum_of_squares<T>(v + b * cols, cols));
  });
}

template <class T>
void launch_as(const KineticBackward& args, cpu::Parallel parallel) {
  const T *const denergy = static_cast<const T*>(args.denergy), *const v = static_cast<const T*>(args.v);
  T* const dv = static_cast<T*>(args.dv);
  const int64_t cols = args.cols;
  const T weight = static_cast<T>(args.weight);
  parallel_for(parallel, args.rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const T factor = weight * denergy[b];
#pragma omp simd
      for (int64_t d = 0; d < cols; ++d) dv[b * cols + d] = factor * v[b * cols + d];
    }
  });
}

template <class T>
void launch_as(const MeanSquare& args) {
  double sum = 0;
  for (int k = 0; k < 2; ++k) sum += sum_of_squares<T>(args.u[k], args.size[k]);
  *static_cast<T*>(args.mean) = static_cast<T>(sum / static_cast<double>(args.rows));
}

template <class T>
void launch_as(const MeanSquareBackward& args) {
  const T factor = T(2) / static_cast<T>(args.rows) * *static_cast<const T*>(args.dmean);
  for (int k = 0; k < 2; ++k) {
    const T* const u = static_cast<const T*>(args.u[k]);
    T* const du = static_cast<T*>(args.du[k]);
#pragma omp simd
    for (int64_t i = 0; i < args.size[k]; ++i) du[i] = factor * u[i];
  }
}

template <class T>
void launch_as(const Means& args) {
  for (int64_t k = 0; k < args.count; ++k) {
    const T* const u = static_cast<const T*>(args.parts[k]);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < args.size[k]; ++i) sum += static_cast<double>(u[i]);
    *static_cast<T*>(args.means[k]) = static_cast<T>(sum / static_cast<double>(args.size[k]));
  }
}

template <class T>
void launch_as(const TotalNorms& args) {
  double sums[2] = {0, 0};
  for (int64_t k = 0; k < args.count; ++k)
    sums[k >= args.first] += sum_of_squares<T>(args.parts[k], args.size[k]);
  for (int i = 0; i < 2; ++i) static_cast<T*>(args.norms)[i] = static_cast<T>(std::sqrt(sums[i]));
}

}  // namespace

int64_t workspace_bytes(const Kinetic&) { return 0; }
int64_t workspace_bytes(const KineticBackward&) { return 0; }
int64_t workspace_bytes(const MeanSquare&) { return 0; }
int64_t workspace_bytes(const MeanSquareBackward&) { return 0; }
int64_t workspace_bytes(const Means&) { return 0; }
int64_t workspace_bytes(const TotalNorms&) { return 0; }
void launch(const Kinetic& args, cpu::Parallel parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args, parallel) : launch_as<float>(args, parallel);
}
void launch(const KineticBackward& args, cpu::Parallel parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args, parallel) : launch_as<float>(args, parallel);
}
void launch(const MeanSquare& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}
void launch(const MeanSquareBackward& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}
void launch(const Means& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}
void launch(const TotalNorms& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}

}  // namespace ADE_ISA
}  // namespace ade
