// A thread team runs every job on every thread, in step at its barriers, and sleeps between jobs without losing one.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

#include "check.h"
#include "thread_team.h"

using ttengine::Share;
using ttengine::ThreadTeam;

// many times as long as a worker spins before it sleeps
constexpr auto kPause = std::chrono::milliseconds(40);

static const std::size_t kSizes[] = {1, 2, 3, 8};

// plain counters, one a thread: TSan sees whether a job is over before run() returns
TEST(every_thread_runs_every_job_once) {
  for (const std::size_t threads : kSizes) {
    ThreadTeam team(threads);
    CHECK(team.size() == threads);
    std::vector<int> runs(threads, 0);
    bool in_step = true;
    for (int job = 1; job <= 300; ++job) {
      team.run([&](std::size_t thread) { ++runs[thread]; });
      in_step = in_step && runs == std::vector<int>(threads, job);
    }
    CHECK(in_step);
  }
}

TEST(the_caller_is_thread_0_and_the_others_are_not_the_caller) {
  ThreadTeam team(3);
  std::vector<std::thread::id> ids(3);
  team.run([&](std::size_t thread) { ids[thread] = std::this_thread::get_id(); });
  CHECK(ids[0] == std::this_thread::get_id());
  CHECK(ids[1] != ids[0] && ids[2] != ids[0] && ids[1] != ids[2]);
}

// what a thread wrote before a barrier is there for all the others behind it
TEST(a_barrier_separates_phases) {
  for (const std::size_t threads : kSizes) {
    ThreadTeam team(threads);
    std::vector<int> slots(threads, -1), wrong(threads, 0);
    for (int job = 0; job < 6; ++job) {
      team.run([&](std::size_t thread) {
        for (int phase = 0; phase < 15; ++phase) {
          slots[thread] = 100 * job + phase;
          team.barrier();
          for (const int slot : slots) wrong[thread] += slot != 100 * job + phase;
          team.barrier();
        }
      });
    }
    CHECK(wrong == std::vector<int>(threads, 0));
  }
}

TEST(sleeping_workers_wake_up_for_the_next_job) {
  ThreadTeam team(3);
  std::vector<int> runs(3, 0);
  for (int job = 1; job <= 5; ++job) {
    std::this_thread::sleep_for(kPause);
    for (int more = 0; more < 2; ++more) team.run([&](std::size_t thread) { ++runs[thread]; });
    CHECK(runs == std::vector<int>(3, 2 * job));
  }
}

// pauses around the time after which a worker goes to sleep: none may be missed on its way to bed
TEST(a_job_that_comes_while_workers_fall_asleep_is_not_lost) {
  ThreadTeam team(4);
  std::vector<int> runs(4, 0);
  for (int job = 1; job <= 200; ++job) {
    std::this_thread::sleep_for(std::chrono::microseconds(10 * job));
    team.run([&](std::size_t thread) { ++runs[thread]; });
  }
  CHECK(runs == std::vector<int>(4, 200));
}

TEST(a_slow_thread_is_waited_for) {
  ThreadTeam team(3);
  for (std::size_t slow = 0; slow < 3; ++slow) {
    std::vector<int> done(3, 0);
    team.run([&](std::size_t thread) {
      if (thread == slow) std::this_thread::sleep_for(kPause);
      done[thread] = 1;
    });
    CHECK(done == std::vector<int>(3, 1));
  }
}

TEST(a_team_can_go_away_at_any_time) {
  for (const std::size_t threads : kSizes) {
    {
      const ThreadTeam unused(threads);
    }
    std::vector<int> runs(threads, 0);
    {
      ThreadTeam busy(threads);
      busy.run([&](std::size_t thread) { ++runs[thread]; });
    }
    {
      ThreadTeam asleep(threads);
      asleep.run([&](std::size_t thread) { ++runs[thread]; });
      std::this_thread::sleep_for(kPause);
    }
    CHECK(runs == std::vector<int>(threads, 2));
  }
}

TEST(shares_cover_everything_once_and_differ_by_at_most_one) {
  for (const std::size_t threads : {1, 2, 3, 7, 8}) {
    for (std::size_t count = 0; count < 40; ++count) {
      std::size_t next = 0, least = count, most = 0;
      for (std::size_t thread = 0; thread < threads; ++thread) {
        const Share share(count, threads, thread);
        CHECK(share.first == next && share.end >= share.first);
        next = share.end;
        least = std::min(least, share.end - share.first);
        most = std::max(most, share.end - share.first);
      }
      CHECK(next == count && most - least <= 1);
    }
  }
}
