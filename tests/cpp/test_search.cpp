// Whole searches with tiny models: the same bits whatever runs beside them and however the work is split, and no page
// left behind.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "errors.h"
#include "search.h"
#include "tiny_search.h"

using namespace ttengine;

// Return and likelihood searches alike.
static std::vector<Trace> plan(
    Search& search, const TinyModel& model, const SearchSettings& settings, const Problems& problems,
    const std::function<void()>& interrupted = [] {}, const std::function<void()>& between = [] {}) {
  return settings.branching ? plan_likelihood(search, model, settings, problems, interrupted, between)
                            : plan_return(search, settings, problems, interrupted, between);
}

// Calls work(model, settings, problems) for rotary and absolute models, with and without goal, for both searches.
template <typename Work>
static void for_all_kinds(const Work& work) {
  std::uint32_t seed = 0;
  for (const bool rotary : {false, true}) {
    for (const bool goal : {false, true}) {
      for (const bool branching : {false, true}) {
        const TinyModel model(rotary, goal, ++seed);
        work(model, tiny_settings(!rotary, branching), random_problems(model, seed, {0, 3, 1}));
      }
    }
  }
}

TEST(rows_part_and_join_so_that_these_searches_are_worth_comparing) {
  for_all_kinds([](const TinyModel& model, const SearchSettings& settings, const Problems& problems) {
    Search search = Making{settings}.search(model);
    const std::vector<Trace> traces = plan(search, model, settings, problems);
    CHECK(!(traces[0] == traces[1]) && !(traces[1] == traces[2]));
    const SearchCounters counters = search.counters();
    CHECK(counters.physical_rows < counters.logical_rows);
    CHECK(settings.window_tokens == 0 ? counters.prefills == 3 : counters.prefills > 3);
    const Search& best = search;
    std::vector<std::int64_t> tokens(best.problems() * best.rows() * best.planned());
    best.copy_tokens(tokens.data());
    CHECK(best.rows() == settings.beam_width);
    const auto end = static_cast<std::ptrdiff_t>(best.planned());
    std::size_t distinct = 0;
    for (auto row = tokens.begin() + end; row != tokens.end(); row += end) {
      distinct += !std::equal(row, row + end, row - end);
    }
    CHECK(distinct >= 3);
  });
}

TEST(the_number_of_threads_changes_no_bit) {
  for_all_kinds([](const TinyModel& model, const SearchSettings& settings, const Problems& problems) {
    for (const Isa isa : available_isas()) {
      Search one = Making{settings, 1, isa}.search(model);
      const std::vector<Trace> expected = plan(one, model, settings, problems);
      for (const std::size_t threads : {2, 3}) {
        Search more = Making{settings, threads, isa}.search(model);
        CHECK(plan(more, model, settings, problems) == expected);
      }
    }
  });
}

TEST(a_problem_is_planned_alike_alone_and_in_a_batch) {
  for_all_kinds([](const TinyModel& model, const SearchSettings& settings, const Problems& problems) {
    Search together = Making{settings}.search(model);
    const std::vector<Trace> expected = plan(together, model, settings, problems);
    for (std::size_t b = 0; b < problems.prefixes.size(); ++b) {
      Search alone = Making{settings, 2}.search(model);
      CHECK(plan(alone, model, settings, problems.only(b)) == std::vector<Trace>{expected[b]});
    }
  });
}

TEST(rows_that_are_computed_once_for_many_have_the_bits_that_each_would_have) {
  for_all_kinds([](const TinyModel& model, SearchSettings settings, const Problems& problems) {
    Search once = Making{settings}.search(model);
    const std::vector<Trace> expected = plan(once, model, settings, problems);
    const std::uint64_t shared = once.counters().physical_rows, pages = once.counters().pages;
    settings.deduplicate = false;
    Search each = Making{settings, 2}.search(model);
    CHECK(plan(each, model, settings, problems) == expected);
    CHECK(each.counters().logical_rows == once.counters().logical_rows);
    // beams that branch are distinct; where windows were cropped they may have become one
    const bool never_equal = settings.branching && settings.window_tokens == 0;
    CHECK(never_equal ? each.counters().physical_rows == shared : each.counters().physical_rows > shared);
    CHECK(each.counters().pages >= pages);
  });
}

TEST(the_next_plan_of_a_search_is_that_of_a_fresh_one) {
  for_all_kinds([](const TinyModel& model, const SearchSettings& settings, const Problems& problems) {
    Search search = Making{settings}.search(model);
    const std::vector<Trace> expected = plan(search, model, settings, problems);
    const std::size_t live = search.live_pages();
    for (const std::vector<std::size_t>& lengths : {std::vector<std::size_t>{2}, {1, 1, 1, 1, 1}, {0, 0}}) {
      const Problems others = random_problems(model, 99, lengths);
      Search fresh = Making{settings}.search(model);
      CHECK(plan(search, model, settings, others) == plan(fresh, model, settings, others));
    }
    CHECK(plan(search, model, settings, problems) == expected);
    CHECK(search.live_pages() == live && live > 0);
  });
}

// every verb leaves as many pages live in the tenth plan as in the second
TEST(the_number_of_live_pages_does_not_grow_from_plan_to_plan) {
  for_all_kinds([](const TinyModel& model, const SearchSettings& settings, const Problems& problems) {
    Search search = Making{settings}.search(model);
    std::vector<std::size_t> live, second;
    std::uint64_t most = 0;
    for (int repeat = 0; repeat < 10; ++repeat) {
      live.clear();
      plan(search, model, settings, problems, [] {}, [&] { live.push_back(search.live_pages()); });
      if (repeat == 1) second = live;
      if (repeat == 1) most = search.counters().pages;
    }
    CHECK(live == second && search.counters().pages == most);
  });
}

// all sizes at which the pools' bounds could be too small; a full pool would throw
TEST(the_pools_are_large_enough_for_every_shape) {
  std::uint32_t seed = 0;
  std::size_t plans = 0;
  for (const std::size_t horizon : {1, 2, 7}) {
    for (const std::size_t width : {1, 5}) {
      for (const std::size_t expand : {1, 3, 12}) {
        for (const std::size_t context : {1, 3}) {
          for (const bool windowed : {false, true}) {
            for (const bool branching : {false, true}) {
              const TinyModel model({1, 1, 5, 1, 1, 8, 3, context, !windowed, horizon == 2}, ++seed);
              SearchSettings settings{};
              settings.horizon = horizon;
              settings.beam_width = width;
              settings.expand = expand;
              settings.window_tokens = windowed ? (context == 1 ? 2 : 3) * 4 - 1 : 0;
              settings.branching = branching;
              settings.deduplicate = seed % 3 > 0;
              Search search = Making{settings}.search(model);
              for (int repeat = 0; repeat < 3; ++repeat) {
                const Problems problems = random_problems(model, seed, {seed % 4, 5});
                plans += plan(search, model, settings, problems).size();
              }
            }
          }
        }
      }
    }
  }
  CHECK(plans == 3 * 2 * 3 * 2 * 2 * 2 * 3 * 2);
}

struct Stop : std::runtime_error {
  using std::runtime_error::runtime_error;
};

TEST(an_interrupt_ends_a_search_at_any_token_and_the_next_plan_is_whole) {
  for_all_kinds([](const TinyModel& model, const SearchSettings& settings, const Problems& problems) {
    Search search = Making{settings, 2}.search(model);
    std::size_t steps = 0;
    const std::vector<Trace> expected = plan(search, model, settings, problems, [&] { ++steps; });
    CHECK(steps + 1 == search.counters().token_steps);  // one callback between every two steps
    for (std::size_t at = 0; at < steps; ++at) {
      std::size_t step = 0;
      const auto interrupted = [&] {
        if (step++ == at) throw Stop("stopped on purpose");
      };
      CHECK_THROWS(plan(search, model, settings, problems, interrupted), Stop, "on purpose");
      CHECK(search.live_pages() == 0);
      CHECK_THROWS(search.observe(), BadArgument, "no search has begun");
      if (at % 5 == 0) CHECK(plan(search, model, settings, problems) == expected);
    }
    CHECK(plan(search, model, settings, problems) == expected);
  });
}

TEST(a_verb_of_another_thread_is_refused_and_changes_nothing) {
  const TinyModel model(true, false);
  const Making making{tiny_settings(false)};
  const Problems problems = random_problems(model, 20, {1});
  Search search = making.search(model);
  const std::vector<Trace> expected = plan_return(search, making.settings, problems);
  std::size_t refused = 0;
  const auto intrude = [&] {
    std::thread([&] {
      CHECK_THROWS(search.observe(), BadArgument, "another thread is planning with this engine");
      CHECK_THROWS(search.prefill(problems.prefixes, problems.goals, problems.keys, {}), BadArgument, "another thread");
      ++refused;
    }).join();
  };
  CHECK(plan_return(search, making.settings, problems, intrude) == expected);
  CHECK(refused + 1 == search.counters().token_steps);
}
