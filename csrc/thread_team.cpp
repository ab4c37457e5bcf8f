// A fixed team of threads that runs one job at a time, all together.
#include "thread_team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ttengine {
namespace {

constexpr int kSpins = 20000;  // about half a millisecond
constexpr int kBarrierSpins = 2000;

void relax() noexcept {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Spins until done() holds; gives the processor away now and then, as another thread of the team may need it.
template <typename Done>
void spin_until(const Done& done) noexcept {
  for (int spins = 0; !done(); ++spins) {
    if (spins < kBarrierSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

ThreadTeam::ThreadTeam(std::size_t threads) {
  try {
    for (std::size_t thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {  // the system has no more threads: those that run have to end before this object does
    stop();
    throw;
  }
}

ThreadTeam::~ThreadTeam() { stop(); }

void ThreadTeam::stop() noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(true);
    job_.fetch_add(1);
  }
  woken_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::start(Call call, const void* context) {
  if (workers_.empty()) return call(context, 0);
  call_ = call;
  context_ = context;
  finished_.store(0, std::memory_order_relaxed);
  bool wake = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    job_.fetch_add(1, std::memory_order_release);
    wake = sleeping_ > 0;
  }
  if (wake) woken_.notify_all();
  call(context, 0);
  spin_until([this] { return finished_.load(std::memory_order_acquire) == workers_.size(); });
}

void ThreadTeam::work(std::size_t thread) {
  for (std::size_t seen = 0;;) {
    for (int spins = 0; spins < kSpins && job_.load(std::memory_order_acquire) == seen; ++spins) relax();
    if (job_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleeping_;
      woken_.wait(lock, [this, seen] { return job_.load(std::memory_order_acquire) != seen; });
      --sleeping_;
    }
    if (stopping_.load()) return;
    ++seen;
    call_(context_, thread);
    finished_.fetch_add(1, std::memory_order_acq_rel);
  }
}

void ThreadTeam::barrier() noexcept {
  if (workers_.empty()) return;
  const std::size_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == workers_.size()) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  spin_until([this, phase] { return phase_.load(std::memory_order_acquire) != phase; });
}

}  // namespace ttengine
