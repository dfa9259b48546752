// A C++ test is a main() of CHECKs: it prints what failed and where, and exits with the number of failures.
#pragma once

#include <cstdio>

inline int failures = 0;

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                          \
    }                                                                      \
  } while (false)

#define CHECK_CLOSE(a, b, tolerance)                                                               \
  do {                                                                                             \
    const double a_ = (a), b_ = (b);                                                               \
    if (!(a_ - b_ <= (tolerance) && b_ - a_ <= (tolerance))) {                                     \
      std::fprintf(stderr, "%s:%d: %s = %.17g, %s = %.17g\n", __FILE__, __LINE__, #a, a_, #b, b_); \
      ++failures;                                                                                  \
    }                                                                                              \
  } while (false)
