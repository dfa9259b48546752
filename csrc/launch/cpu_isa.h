// Which instruction set the CPU kernels run in.
#pragma once

namespace ade {
namespace cpu {

// "avx512", "avx2" or "base": the widest that this processor has, unless select_isa chose another.
const char* active_isa();

// Chooses one of them, for tests and for tracking down a difference. False if the name is unknown or the
// processor lacks it. Not to be called while kernels run.
bool select_isa(const char* name);

}  // namespace cpu
}  // namespace ade
