// Rolling contexts: pages kept from the last control step give the plan that a search without them would make, bit for
// bit, with less work.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "check.h"
#include "search.h"
#include "tiny_search.h"

using namespace ttengine;

// An episode of a controller: the past transitions that can influence a plan, and the current observation.
struct Episode {
  const TinyModel* model;
  std::size_t capacity;
  TokenRow prefix;

  Episode(const TinyModel& tiny, Random& random, std::size_t transitions)
      : model(&tiny), capacity(tiny.shape.layers * tiny.shape.context), prefix(tiny.prefix(random, transitions)) {}

  // An action, a reward, a value and the next observation; the oldest transition goes when there are too many.
  void step(Random& random) {
    const std::size_t K = model->shape.transition_dim(), V = model->shape.n_bins, N = model->shape.observation_dim;
    const auto before = static_cast<std::size_t>(prefix[prefix.size() - N]);
    for (std::size_t i = 0; i < K; ++i) prefix.push_back(static_cast<std::int32_t>(random.below(V)));
    // never the same observation twice in a row: an episode could go on from either
    prefix[prefix.size() - N] = static_cast<std::int32_t>((before + 1 + random.below(V - 1)) % V);
    if (prefix.size() / K > capacity) prefix.erase(prefix.begin(), prefix.begin() + static_cast<std::ptrdiff_t>(K));
  }
};

static std::vector<Trace> plan(Search& search, const TinyModel& model, const SearchSettings& settings,
                               const Problems& problems) {
  return settings.branching ? plan_likelihood(search, model, settings, problems)
                            : plan_return(search, settings, problems);
}

// Calls work(model, making) for models of several depths and contexts, with and without goal, for both searches.
template <typename Work>
static void for_all_kinds(const Work& work) {
  std::uint32_t seed = 0;
  for (const std::size_t layers : {1, 2, 3}) {
    for (const std::size_t context : {1, 2}) {
      const bool goal = ++seed % 2 == 0, branching = seed > 3;
      const TinyModel model({2, 1, 6, layers, 2, 8, 4, context, true, goal}, seed);
      SearchSettings settings = tiny_settings(false, branching);
      settings.horizon = 2;
      work(model, Making{settings, 1 + seed % 2});
    }
  }
}

static std::uint64_t prefill_rows(Search& search, const Problems& problems) {
  search.prefill(problems.prefixes, problems.goals, problems.keys, {});
  return search.counters().physical_rows;
}

TEST(a_plan_from_kept_pages_is_that_of_a_fresh_search_over_12_control_steps) {
  for_all_kinds([](const TinyModel& model, const Making& making) {
    Random random(11);
    Search search = making.search(model);
    Episode episode(model, random, 0);
    const Problems start = random_problems(model, 12, {0});
    const std::size_t K = model.shape.transition_dim(), N = model.shape.observation_dim;
    for (std::uint32_t step = 0; step < 12; ++step) {
      const Problems problems{{episode.prefix}, start.goals, {{7, step}}};
      Search fresh = making.search(model);
      CHECK(plan(search, model, making.settings, problems) == plan(fresh, model, making.settings, problems));
      episode.step(random);
      // only the executed transition and the observation after it are computed, less a value that nobody attends to
      Search other = making.search(model);
      const Problems next{{episode.prefix}, start.goals, {{7, step + 1}}};
      const std::uint64_t fewer = prefill_rows(search, next), all = prefill_rows(other, next);
      CHECK(fewer == K - 1);
      CHECK(all == (episode.prefix.size() - N) / K * (K - 1) + N);
    }
  });
}

TEST(kept_pages_of_a_batch_are_found_by_their_tokens_whatever_the_order) {
  for_all_kinds([](const TinyModel& model, const Making& making) {
    Random random(13);
    Search search = making.search(model);
    std::vector<Episode> episodes;
    for (const std::size_t length : {0, 3, 9}) episodes.emplace_back(model, random, length);
    const Problems start = random_problems(model, 14, {0, 0, 0});
    for (std::uint32_t step = 0; step < 6; ++step) {
      Problems problems{{}, {}, {{1, step}, {2, step}, {3, step}}};
      for (std::size_t b = 0; b < 3; ++b) {
        const std::size_t e = (b + step) % 3;
        problems.prefixes.push_back(episodes[e].prefix);
        if (model.shape.goal) problems.goals.push_back(start.goals[e]);
      }
      Search fresh = making.search(model);
      CHECK(plan(search, model, making.settings, problems) == plan(fresh, model, making.settings, problems));
      for (Episode& episode : episodes) episode.step(random);
    }
  });
}

// what a controller may do: begin anew, change the goal, skip a plan, plan twice, or be told another past
TEST(an_episode_that_does_not_go_on_as_before_is_planned_like_any_other) {
  for_all_kinds([](const TinyModel& model, const Making& making) {
    Random random(15);
    Search search = making.search(model);
    Problems problems = random_problems(model, 16, {2});
    Episode episode(model, random, 2);
    const std::size_t K = model.shape.transition_dim();
    for (std::uint32_t step = 0; step < 40; ++step) {
      switch (random.below(9)) {
        case 0:
          episode = Episode(model, random, random.below(episode.capacity + 3));
          break;
        case 1: {
          std::int32_t& token = episode.prefix[random.below(episode.prefix.size())];
          token = (token + 1) % static_cast<std::int32_t>(model.shape.n_bins);
          break;
        }
        case 2:
          if (model.shape.goal) problems.goals[0] = model.goal(random);
          break;
        case 3:  // forgets its oldest transitions
          if (episode.prefix.size() > K)
            episode.prefix.erase(episode.prefix.begin(), episode.prefix.begin() + static_cast<std::ptrdiff_t>(K));
          break;
        case 4:
          break;
        case 5:
          episode.step(random);
          [[fallthrough]];
        default:
          episode.step(random);
      }
      problems.prefixes[0] = episode.prefix;
      Search fresh = making.search(model);
      CHECK(plan(search, model, making.settings, problems) == plan(fresh, model, making.settings, problems));
    }
  });
}

TEST(kept_pages_are_few_and_do_not_grow_with_the_episode) {
  for_all_kinds([](const TinyModel& model, const Making& making) {
    Random random(17);
    Search search = making.search(model);
    const Problems start = random_problems(model, 18, {0});
    Episode episode(model, random, 0);
    std::vector<std::size_t> live;
    for (int step = 0; step < 20; ++step) {
      prefill_rows(search, {{episode.prefix}, start.goals, start.keys});
      live.push_back(search.live_pages());
      episode.step(random);
    }
    // a whole prefix, or what was kept and a new page; and the goal's
    const std::size_t most =
        std::max(episode.capacity + 1, model.shape.context + 3) + (model.shape.goal ? std::size_t{1} : std::size_t{0});
    for (const std::size_t pages : live) CHECK(pages <= most);
    CHECK(live[19] == live[12] && live[18] == live[12]);
  });
}

TEST(absolute_positions_keep_no_pages) {
  const TinyModel model(false, false);
  const Making making{tiny_settings(true)};
  Search search = making.search(model);
  const Problems problems = random_problems(model, 19, {1});
  const std::uint64_t rows = prefill_rows(search, problems);
  CHECK(rows == 4 + 2 && prefill_rows(search, problems) == rows);
}
