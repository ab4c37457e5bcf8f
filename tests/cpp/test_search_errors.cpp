// Searches refuse what is not finite or does not fit, with a reason; whatever went wrong, the next plan is right.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "errors.h"
#include "search.h"
#include "tiny_search.h"

using namespace ttengine;

static void make(const TinyModel& model, const SearchSettings& settings, std::size_t threads = 1) {
  Making{settings, threads}.search(model);
}

TEST(weights_that_are_not_finite_are_refused_by_name) {
  for (const bool rotary : {false, true}) {
    TinyModel model(rotary, true);
    make(model, tiny_settings(!rotary));
    const auto names = model.weights;
    for (const auto& [name, tensor] : names) {
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        std::vector<float>& numbers = model.weights[name].first;
        const float good = numbers.back();
        numbers.back() = bad;
        const std::string reason = name + " holds NaN or infinity at element " + std::to_string(numbers.size() - 1);
        CHECK_THROWS(make(model, tiny_settings(!rotary)), NonFinite, reason);
        numbers.back() = good;
      }
    }
  }
}

TEST(weights_that_are_missing_or_of_another_shape_are_refused_by_name) {
  TinyModel model(true, false);
  model.weights["blocks.1.mlp_in.weight"].second = {8, 32};
  CHECK_THROWS(make(model, tiny_settings(false)), BadArgument,
               "blocks.1.mlp_in.weight has shape [8, 32], expected [32, 8]");
  model.weights.erase("blocks.1.mlp_in.weight");
  CHECK_THROWS(make(model, tiny_settings(false)), BadArgument, "the model has no tensor blocks.1.mlp_in.weight");
}

TEST(sizes_and_settings_out_of_range_are_refused) {
  const TinyModel model(true, false);
  const SearchSettings good = tiny_settings(false);
  const auto with = [&](auto change) {
    SearchSettings settings = good;
    change(settings);
    make(model, settings);
  };
  CHECK_THROWS(with([](SearchSettings& s) { s.horizon = 0; }), BadArgument, "horizon is 0, allowed is 1 to 64");
  CHECK_THROWS(with([](SearchSettings& s) { s.horizon = 65; }), BadArgument, "horizon is 65");
  CHECK_THROWS(with([](SearchSettings& s) { s.beam_width = 0; }), BadArgument, "beam_width is 0");
  CHECK_THROWS(with([](SearchSettings& s) { s.beam_width = 513; }), BadArgument, "allowed is 1 to 512");
  CHECK_THROWS(with([](SearchSettings& s) { s.expand = 0; }), BadArgument, "expand is 0");
  CHECK_THROWS(make(model, good, 0), BadArgument, "threads is 0, allowed is 1 to 256");
  CHECK_THROWS(make(model, good, 257), BadArgument, "threads is 257");
  TinyModel few_edges = model;
  few_edges.edges.pop_back();
  CHECK_THROWS(make(few_edges, good), BadArgument, "edges");
  TinyModel odd = model;
  odd.shape.heads = 3;
  CHECK_THROWS(make(odd, good), BadArgument, "width is not a multiple of heads");
  odd.shape.n_bins = 1025;
  CHECK_THROWS(make(odd, good), BadArgument, "n_bins is 1025, allowed is 2 to 1024");
}

TEST(prefixes_goals_and_keys_have_to_fit) {
  for (const bool goal : {false, true}) {
    const TinyModel model(true, goal);
    const Making making{tiny_settings(false)};
    Search search = making.search(model);
    const Problems good = random_problems(model, 5, {2, 0});
    const auto with = [&](auto change) {
      Problems problems = good;
      change(problems);
      search.prefill(good.prefixes, good.goals, good.keys, {});
      search.expand(2);
      search.prefill(problems.prefixes, problems.goals, problems.keys, {});
    };
    CHECK_THROWS(with([](Problems& p) { p = {}; }), BadArgument, "do not belong together");
    CHECK_THROWS(with([](Problems& p) { p.keys.pop_back(); }), BadArgument, "do not belong together");
    CHECK_THROWS(with([](Problems& p) { p.goals.push_back({0, 0}); }), BadArgument, "do not belong together");
    CHECK_THROWS(with([](Problems& p) { p.prefixes[1] = {}; }), BadArgument, "a prefix has 0 tokens");
    CHECK_THROWS(with([](Problems& p) { p.prefixes[1].push_back(0); }), BadArgument, "a prefix has 3 tokens");
    CHECK_THROWS(with([](Problems& p) { p.prefixes[0][3] = -1; }), BadArgument, "or a token out of range");
    CHECK_THROWS(with([](Problems& p) { p.prefixes[0][3] = 7; }), BadArgument, "or a token out of range");
    if (goal) {
      CHECK_THROWS(with([](Problems& p) { p.goals[1] = {0}; }), BadArgument, "not an observation's tokens");
      CHECK_THROWS(with([](Problems& p) { p.goals[1] = {0, 6}; }), BadArgument, "not an observation's tokens");
      CHECK_THROWS(with([](Problems& p) { p.goals[1] = {-1, 0}; }), BadArgument, "not an observation's tokens");
    }
    with([](Problems& p) { p.prefixes[0][3] = 6; });  // the stop token is a token
    Search fresh = making.search(model);
    CHECK(plan_return(search, making.settings, good) == plan_return(fresh, making.settings, good));
  }
}

TEST(verbs_before_a_prefill_or_out_of_range_are_refused_and_end_the_search) {
  const TinyModel model(true, true);
  const Making making{tiny_settings(false)};
  const Problems problems = random_problems(model, 6, {1, 2});
  Search fresh = making.search(model), search = making.search(model);
  const std::vector<Trace> expected = plan_return(fresh, making.settings, problems);
  std::vector<float> logs(1000);
  CHECK_THROWS(search.expand(3), BadArgument, "no search has begun; prefill comes first");
  const auto refused = [&](auto verb, const char* reason) {
    search.prefill(problems.prefixes, problems.goals, problems.keys, {});
    search.expand(2);
    CHECK(search.live_pages() > 0);
    CHECK_THROWS(verb(), BadArgument, reason);
    CHECK(search.live_pages() == 0 && search.problems() == 0 && search.rows() == 0);
    CHECK_THROWS(search.select({0}), BadArgument, "no search has begun");
  };
  refused([&] { search.expand(2); }, "expand follows prefill or observe");
  refused(
      [&] {
        search.observe();
        search.select({0});
      },
      "select follows expand");
  refused(
      [&] {
        search.observe();
        search.observe();
      },
      "observe follows expand and select");
  refused([&] { search.expand(0); }, "copies is 0, allowed is 1 to 64");
  refused([&] { search.expand(65); }, "copies is 65");
  refused([&] { search.select({0, 16}); }, "row 16 does not exist");
  refused([&] { search.next_log_probabilities(logs.data()); }, "made for returns, not for likelihoods");
  refused([&] { search.branch({0, 1}, {0}); }, "beams and tokens differ in number");
  CHECK(plan_return(search, making.settings, problems) == expected);
  CHECK_THROWS(search.expand(1), BadArgument, "the horizon is reached");
  CHECK(search.live_pages() == 0);
}

TEST(a_likelihood_search_ends_at_its_horizon_and_takes_no_unknown_token) {
  const TinyModel model(true, false);
  const Making making{tiny_settings(false, true)};
  const Problems problems = random_problems(model, 7, {1});
  Search search = making.search(model);
  const std::vector<Trace> expected = plan_likelihood(search, model, making.settings, problems);
  CHECK_THROWS(search.branch({0}, {0}), BadArgument, "the horizon is reached");
  CHECK(search.live_pages() == 0);
  for (const std::int32_t token : {-1, 7, 1000000}) {
    search.prefill(problems.prefixes, problems.goals, problems.keys, {});
    CHECK_THROWS(search.branch({0, 0}, {6, token}), BadArgument, "a token is out of range");
    CHECK(search.live_pages() == 0);
  }
  CHECK(plan_likelihood(search, model, making.settings, problems) == expected);
}

// Finite weights whose sums overflow: one token's embedding is so large that a row with it is NaN, and its pages too.
TEST(a_token_that_makes_logits_nan_ends_this_search_and_not_the_next) {
  for (const bool rotary : {false, true}) {
    for (const bool branching : {false, true}) {
      TinyModel model(rotary, false);
      std::vector<float>& embedding = model.weights["token_embedding.weight"].first;
      const std::size_t bad = 3;  // as the first of an observation's tokens
      for (std::size_t d = 0; d < model.shape.width; ++d) embedding[bad * model.shape.width + d] = 3e38f;
      const Making making{tiny_settings(!rotary, branching), 2};
      Problems good = random_problems(model, 8, {1, 1});
      for (TokenRow& prefix : good.prefixes) {
        for (std::int32_t& token : prefix) token = token == 3 ? 2 : token;
      }
      Problems poisoned = good;
      poisoned.prefixes[1][5] = 3;
      // short of where a plan could observe the bad token itself
      const auto first_round = [&](Search& search) {
        search.prefill(good.prefixes, good.goals, good.keys, {});
        std::vector<float> numbers(2 * model.shape.outputs());
        if (branching) {
          search.next_log_probabilities(numbers.data());
          return numbers;
        }
        search.expand(3);
        numbers.resize(search.problems() * search.rows());
        search.copy_values(numbers.data());
        return numbers;
      };
      Search search = making.search(model), fresh = making.search(model);
      const std::vector<float> expected = first_round(fresh);
      for (int repeat = 0; repeat < 3; ++repeat) {
        CHECK_THROWS(search.prefill(poisoned.prefixes, poisoned.goals, poisoned.keys, {}), NonFinite,
                     "logits hold NaN or infinity at token 0 of the plan");
        CHECK(search.live_pages() == 0 && search.problems() == 0);
        CHECK(same_bits(first_round(search), expected));
      }
    }
  }
}

TEST(logits_that_overflow_in_the_midst_of_a_plan_end_it) {
  TinyModel model(true, false);
  std::vector<float>& head = model.weights["head.weight"].first;
  const std::size_t per_column = model.shape.outputs() * model.shape.width;
  // the head of the column before the reward's predicts the reward
  for (std::size_t i = 2 * per_column; i < 3 * per_column; ++i) head[i] = i % 2 == 0 ? 3e38f : -3e38f;
  const Making making{tiny_settings(false), 3};
  const Problems problems = random_problems(model, 9, {2, 0});
  Search search = making.search(model);
  for (int repeat = 0; repeat < 2; ++repeat) {
    search.prefill(problems.prefixes, problems.goals, problems.keys, {});
    CHECK(search.live_pages() > 0);
    CHECK_THROWS(search.expand(2), NonFinite, "logits hold NaN or infinity at token 1 of the plan");
    CHECK(search.live_pages() == 0);
  }
}
