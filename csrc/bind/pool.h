// Host memory for workspaces and for what a forward pass keeps: blocks that are given back wait for the next
// call.
//
// An unroll asks for the same sizes at every update, and pages fresh from the operating system cost more than
// the kernels' work on them: a fault takes 1 to 2 us for 4 kB, which a matrix product fills in a third of
// that. The C library gives large blocks back to the operating system at once.
#pragma once

#include <cstdint>

namespace ade {
namespace bind {
namespace pool {

// Uninitialised, aligned to 64 bytes or more. Throws std::bad_alloc. Any thread.
void* take(int64_t bytes);
void give_back(void* block);

// Bytes that were asked for and are not given back, and bytes of the blocks that wait.
int64_t bytes_taken();
int64_t bytes_waiting();
// Hands the waiting blocks to the operating system.
void release();

}  // namespace pool
}  // namespace bind
}  // namespace ade
