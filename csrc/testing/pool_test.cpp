// bind/pool.cpp from several threads at once: no block serves two, and nothing is lost. ThreadSanitizer's
// test of it.
#include "bind/pool.h"

#include <cstring>
#include <thread>
#include <vector>

#include "check.h"

namespace pool = ade::bind::pool;

namespace {

// Takes and gives back blocks of a few sizes; a block keeps this thread's byte as long as it is taken.
bool keeps_its_own(int thread) {
  std::vector<std::pair<unsigned char*, int64_t>> held;
  bool intact = true;
  for (int i = 0; i < 400; ++i) {
    const int64_t bytes = 1000 * (1 + (i * 7 + thread) % 5);
    auto* const data = static_cast<unsigned char*>(pool::take(bytes));
    std::memset(data, thread, bytes);
    held.emplace_back(data, bytes);
    if (held.size() < 4) continue;
    for (const auto& [block, size] : held) {
      for (int64_t k = 0; k < size; k += 97) intact = intact && block[k] == thread;
      pool::give_back(block);
    }
    held.clear();
    if (i % 100 == 51) pool::release();
  }
  for (const auto& block : held) pool::give_back(block.first);
  return intact;
}

}  // namespace

int main() {
  bool intact[4];
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back([&intact, t] { intact[t] = keeps_its_own(t); });
  for (std::thread& thread : threads) thread.join();
  for (const bool one : intact) CHECK(one);
  CHECK(pool::bytes_taken() == 0);
  CHECK(pool::bytes_waiting() > 0);
  pool::release();
  CHECK(pool::bytes_waiting() == 0);
  return failures;
}
