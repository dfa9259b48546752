#include "bind/pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

namespace ade {
namespace bind {
namespace pool {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kCacheLine = 64;

// Sizes are rounded up to an eighth of their power of two, so that a batch that varies a little finds its
// block again.
size_t rounded(int64_t bytes) {
  size_t step = 4096;
  while (static_cast<size_t>(bytes) > 16 * step) step *= 2;
  return (static_cast<size_t>(bytes) + step - 1) / step * step;
}

class Pool {
 public:
  void* take(int64_t bytes) {
    const size_t size = rounded(bytes);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = waiting_.size(); i-- > 0;) {  // the latest first: it may be in a cache yet
        if (waiting_[i].size != size) continue;
        const Block found = waiting_[i];
        waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
        waiting_bytes_ -= size;
        note_taken(found, bytes);
        return found.data;
      }
    }
    const Block fresh = {allocate(size), size};
    const std::lock_guard<std::mutex> lock(mutex_);
    note_taken(fresh, bytes);
    return fresh.data;
  }

  void give_back(void* data) {
    std::vector<Block> surplus;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = taken_.find(data);
      const Block block = {data, found->second.size};
      taken_bytes_ -= found->second.asked;
      taken_.erase(found);
      waiting_.push_back(block);
      waiting_bytes_ += block.size;
      while (waiting_bytes_ > limit_) {  // the oldest go
        surplus.push_back(waiting_.front());
        waiting_bytes_ -= waiting_.front().size;
        waiting_.erase(waiting_.begin());
      }
    }
    for (const Block& block : surplus) free(block.data);
  }

  void release() {
    std::vector<Block> all;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      all.swap(waiting_);
      waiting_bytes_ = 0;
    }
    for (const Block& block : all) free(block.data);
  }

  int64_t bytes_taken() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return taken_bytes_;
  }
  int64_t bytes_waiting() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int64_t>(waiting_bytes_);
  }

 private:
  struct Block {
    void* data;
    size_t size;
  };
  struct Taken {
    size_t size;
    int64_t asked;
  };

  static void* allocate(size_t size) {
    const bool huge = size >= 2 * kHugePage;
    void* data = nullptr;
    if (posix_memalign(&data, huge ? kHugePage : kCacheLine, size) != 0) throw std::bad_alloc();
    if (huge) madvise(data, size, MADV_HUGEPAGE);  // a wish: it may be refused
    return data;
  }
  void note_taken(const Block& block, int64_t asked) {
    taken_[block.data] = {block.size, asked};
    taken_bytes_ += asked;
  }

  std::mutex mutex_;
  std::vector<Block> waiting_;  // the oldest first
  std::unordered_map<void*, Taken> taken_;
  size_t waiting_bytes_ = 0;
  int64_t taken_bytes_ = 0;
  // Of the machine's memory, a sixteenth may wait.
  const size_t limit_ =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) / 16 * static_cast<size_t>(sysconf(_SC_PAGESIZE));
};

// Never destroyed: tensors may be freed after the module's own end.
Pool& the_pool() {
  static Pool* const pool = new Pool;
  return *pool;
}

}  // namespace

void* take(int64_t bytes) { return the_pool().take(bytes); }
void give_back(void* block) { the_pool().give_back(block); }
int64_t bytes_taken() { return the_pool().bytes_taken(); }
int64_t bytes_waiting() { return the_pool().bytes_waiting(); }
void release() { the_pool().release(); }

}  // namespace pool
}  // namespace bind
}  // namespace ade
