// A fixed team of threads that runs one job at a time, all together.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

namespace ttengine {

// The caller is thread 0. Waiting threads spin for a fraction of a millisecond, about the time between two verbs of a
// plan, and then sleep, so that an idle planner costs nothing.
class ThreadTeam {
 public:
  explicit ThreadTeam(std::size_t threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  std::size_t size() const noexcept { return workers_.size() + 1; }

  // Calls job(thread) on every thread and returns when all have returned. The job must not throw.
  template <typename Job>
  void run(const Job& job) {
    start([](const void* context, std::size_t thread) { (*static_cast<const Job*>(context))(thread); }, &job);
  }

  // Within a job: waits until every thread has come here.
  void barrier() noexcept;

 private:
  using Call = void (*)(const void*, std::size_t);

  void start(Call call, const void* context);
  void work(std::size_t thread);
  void stop() noexcept;

  std::vector<std::thread> workers_;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<std::size_t> job_{0};       // counts jobs
  std::atomic<std::size_t> finished_{0};  // workers done with this job
  std::atomic<std::size_t> arrived_{0}, phase_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable woken_;
  std::size_t sleeping_ = 0;
};

// The part [first, end) of `count` things that falls to one of `threads`.
struct Share {
  std::size_t first, end;
  Share(std::size_t count, std::size_t threads, std::size_t thread)
      : first(count * thread / threads), end(count * (thread + 1) / threads) {}
};

}  // namespace ttengine
