// What an objective sums up: kinetic energies, mean squared slopes, means, norms of gradients. Conventions:
// launch/clips.h. Of the CPU alone; sums are in double precision.
#pragma once

#include "launch/clips.h"

namespace ade {

// weight / 2 |v|^2 of each row.
struct Kinetic {
  Dtype dtype;         // float32 or float64
  int64_t rows, cols;  // B, D
  double weight;       // lambda
  const void* v;       // [B, D]
  void* energy;        // [B]
  void* workspace;
};

struct KineticBackward {
  Dtype dtype;
  int64_t rows, cols;
  double weight;
  const void *denergy, *v;  // [B], [B, D]
  void* dv;                 // [B, D]
  void* workspace;
};

// |u|^2 / B, of the rows of one or two u.
struct MeanSquare {
  Dtype dtype;
  int64_t size[2];  // elements; 0: there is no second
  int64_t rows;     // of both together
  const void* u[2];
  void* mean;  // []
  void* workspace;
};

struct MeanSquareBackward {
  Dtype dtype;
  int64_t size[2], rows;
  const void *dmean, *u[2];
  void* du[2];
  void* workspace;
};

// The mean of each of some tensors.
struct Means {
  Dtype dtype;
  int64_t count;
  const int64_t* size;       // [count]
  const void* const* parts;  // [count]
  void* const* means;        // [count], each []
  void* workspace;
};

// The norm of the first tensors' elements, as if they were one, and that of the others'.
struct TotalNorms {
  Dtype dtype;
  int64_t count, first;      // of all, and of the first
  const int64_t* size;       // [count]
  const void* const* parts;  // [count]
  void* norms;               // [2]
  void* workspace;
};

namespace cpu {
int64_t workspace_bytes(const Kinetic& args);
int64_t workspace_bytes(const KineticBackward& args);
int64_t workspace_bytes(const MeanSquare& args);
int64_t workspace_bytes(const MeanSquareBackward& args);
int64_t workspace_bytes(const Means& args);
int64_t workspace_bytes(const TotalNorms& args);
void launch(const Kinetic& args, Parallel parallel);
void launch(const KineticBackward& args, Parallel parallel);
void launch(const MeanSquare& args, Parallel parallel);
void launch(const MeanSquareBackward& args, Parallel parallel);
void launch(const Means& args, Parallel parallel);
void launch(const TotalNorms& args, Parallel parallel);
}  // namespace cpu

}  // namespace ade
