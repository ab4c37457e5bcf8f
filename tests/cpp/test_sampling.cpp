// Tokens and numbers from probabilities: ties, ends of the range, and noise with known values.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "check.h"
#include "noise.h"
#include "random_numbers.h"
#include "sampling.h"

using namespace ttengine;

using Floats = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
static const float kLargest = std::nextafter(1.0f, 0.0f);  // below 1

static std::int32_t greedy(const Floats& p) { return greedy_token(p.data(), p.size()); }

static Floats filtered(const Kernels& kernels, const Floats& p, const Sampling& sampling) {
  Floats weights(p.size());
  filter_tokens(kernels, p.data(), p.size(), sampling, weights.data());
  return weights;
}

static std::int32_t drawn(Floats weights, float uniform) {
  accumulate(weights.data(), weights.size());
  return draw_token(weights.data(), weights.size(), uniform);
}

TEST(the_greedy_token_is_the_most_probable_and_the_lower_one_on_ties) {
  CHECK(greedy({0.1f, 0.2f, 0.6f, 0.1f}) == 2);
  CHECK(greedy({0.1f, 0.4f, 0.1f, 0.4f}) == 1);
  CHECK(greedy({0.2f, 0.2f, 0.2f, 0.2f, 0.2f}) == 0);
  CHECK(greedy({0.0f, 0.0f, 1.0f}) == 2);
}

TEST(a_draw_inverts_the_cumulative_weights) {
  const Floats weights{1.0f, 3.0f, 0.0f, 4.0f};
  CHECK(drawn(weights, 0.0f) == 0 && drawn(weights, 0.1249f) == 0);
  CHECK(drawn(weights, 0.125f) == 1 && drawn(weights, 0.4999f) == 1);
  CHECK(drawn(weights, 0.5f) == 3 && drawn(weights, kLargest) == 3);
}

TEST(a_token_without_weight_is_never_drawn_at_either_end) {
  for (const float small : {1e-6f, 0.3f, 1.0f, 1e6f}) {
    const Floats weights{0.0f, 0.0f, small, 0.0f, small, 0.0f, 0.0f};
    CHECK(drawn(weights, 0.0f) == 2);
    CHECK(drawn(weights, kLargest) == 4);
    CHECK(drawn({0.0f, small, 0.0f}, 0.0f) == 1 && drawn({0.0f, small, 0.0f}, kLargest) == 1);
  }
  Random random(1);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    Floats weights = random.normals(17);
    for (float& weight : weights) weight = weight < 0.3f ? 0.0f : weight;
    weights[random.below(17)] = 0.5f;
    for (const float uniform : {0.0f, kLargest, static_cast<float>(random.uniform(0.0, 0.999))}) {
      CHECK(weights[static_cast<std::size_t>(drawn(weights, uniform))] > 0.0f);
    }
  }
}

// u * total rounds up to the total, which happens with subnormal weights alone
TEST(the_largest_noise_draws_the_last_token_that_weighs_anything) {
  const float subnormal = std::numeric_limits<float>::denorm_min();
  CHECK(kLargest * subnormal == subnormal);
  CHECK(drawn({0.0f, subnormal, 0.0f}, kLargest) == 1);
}

TEST(cumulative_weights_are_summed_in_double) {
  Floats weights(1025, 0x1p-24f);
  weights[0] = 1.0f;
  accumulate(weights.data(), weights.size());
  CHECK(weights.back() == 1.0f + 1024 * 0x1p-24f);  // a sum in float would stay at 1
}

TEST(top_k_keeps_ties_and_comes_after_the_cdf_filter) {
  for (const Isa isa : available_isas()) {
    const Kernels& kernels = *find_kernels(isa);
    const Floats p{0.1f, 0.3f, 0.2f, 0.2f, 0.2f};
    CHECK((filtered(kernels, p, {1, {}}) == Floats{0.0f, 0.3f, 0.0f, 0.0f, 0.0f}));
    CHECK((filtered(kernels, p, {2, {}}) == Floats{0.0f, 0.3f, 0.2f, 0.2f, 0.2f}));
    CHECK((filtered(kernels, p, {4, {}}) == Floats{0.0f, 0.3f, 0.2f, 0.2f, 0.2f}));
    CHECK(filtered(kernels, p, {5, {}}) == p && filtered(kernels, p, {100, {}}) == p && filtered(kernels, p, {}) == p);
    CHECK((filtered(kernels, p, {1, 0.05f}) == Floats{0.0f, 0.3f, 0.0f, 0.0f, 0.0f}));
    CHECK((filtered(kernels, p, {{}, 0.05f}) == Floats{0.0f, 0.3f, 0.2f, 0.2f, 0.2f}));
    CHECK((filtered(kernels, p, {3, 0.95f}) == Floats{0.0f, 0.3f, 0.0f, 0.0f, 0.0f}));
    const Floats equal(6, 0.125f);
    CHECK(filtered(kernels, equal, {2, 0.5f}) == Floats(6, 1.0f));  // nothing stays: all, alike; and ties stay
  }
}

TEST(greedy_means_k_1_and_filters_means_any) {
  CHECK((Sampling{1, {}}.greedy()) && !(Sampling{2, {}}.greedy()) && !(Sampling{}.greedy()));
  CHECK((Sampling{1, {}}.filters()) && (Sampling{{}, 0.5f}.filters()) && !(Sampling{{}, {}, 0.5f}.filters()));
}

TEST(log_probabilities_are_those_of_double_arithmetic_with_and_without_a_filter) {
  for (const Isa isa : available_isas()) {
    const Kernels& kernels = *find_kernels(isa);
    Random random(2);
    for (const Sampling& sampling : {Sampling{{}, {}, 1.0f}, Sampling{{}, {}, 0.5f}, Sampling{3, {}, 2.0f}}) {
      const Floats logits = random.normals(9, 4.0f);
      Floats result(9), p(9), weights;
      CHECK(log_probabilities(kernels, logits.data(), 9, sampling, result.data()));
      CHECK(kernels.softmax(logits.data(), 9, sampling.temperature, p.data()));
      weights = filtered(kernels, p, sampling);
      double total = 0.0;
      std::size_t dropped = 0;
      for (const float weight : weights) total += weight;
      for (std::size_t i = 0; i < 9; ++i) {
        dropped += weights[i] == 0.0f;
        if (weights[i] == 0.0f) CHECK(result[i] == -kInfinity);
        if (weights[i] > 0.0f) CHECK(std::abs(result[i] - std::log(weights[i] / total)) < 1e-4);
      }
      CHECK(dropped == (sampling.k ? std::size_t{6} : std::size_t{0}));
    }
    for (const Sampling& sampling : {Sampling{}, Sampling{3, {}}}) {
      for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
        for (std::size_t at = 0; at < 9; ++at) {
          Floats logits(9, 0.5f), result(9);
          logits[at] = bad;
          CHECK(!log_probabilities(kernels, logits.data(), 9, sampling, result.data()));
        }
      }
    }
  }
}

// [V = 3 bins, stop token]
TEST(the_expectation_takes_the_mean_of_a_bins_edges_and_leaves_the_stop_token_out) {
  const Floats edges{-1.0f, 1.0f, 2.0f, 6.0f};
  CHECK(expectation(Floats{0.0f, 1.0f, 0.0f, 0.0f}.data(), edges.data(), 3) == 1.5f);
  CHECK(expectation(Floats{0.25f, 0.5f, 0.25f, 0.0f}.data(), edges.data(), 3) == 1.75f);
  CHECK(expectation(Floats{0.0f, 0.25f, 0.25f, 0.5f}.data(), edges.data(), 3) == 1.375f);  // not renormalised
  CHECK(expectation(Floats{0.0f, 0.0f, 0.0f, 1.0f}.data(), edges.data(), 3) == 0.0f);
}

TEST(a_percentile_is_the_first_bin_that_reaches_its_share_without_the_stop_token) {
  const Floats edges{0.0f, 2.0f, 4.0f, 6.0f, 8.0f};
  const Floats p{0.125f, 0.25f, 0.0f, 0.125f, 0.5f};
  const auto at = [&](float share) { return percentile(p.data(), edges.data(), 4, share, false); };
  CHECK(at(0.0001f) == 1.0f && at(0.25f) == 1.0f);
  CHECK(at(0.2501f) == 3.0f && at(0.75f) == 3.0f);
  CHECK(at(0.7501f) == 7.0f && at(1.0f) == 7.0f);
  const Floats stops{0.0f, 0.0f, 0.0f, 0.0f, 1.0f};
  CHECK(percentile(stops.data(), edges.data(), 4, 0.5f, false) == 1.0f);
}

TEST(a_percentile_as_released_is_one_bin_low_wraps_around_and_counts_the_stop_token) {
  const Floats edges{0.0f, 2.0f, 4.0f, 6.0f, 8.0f};
  const Floats p{0.125f, 0.25f, 0.0f, 0.125f, 0.5f};
  const auto at = [&](float share) { return percentile(p.data(), edges.data(), 4, share, true); };
  CHECK(at(0.125f) == 7.0f);  // bin 0, less one: the last
  CHECK(at(0.126f) == 1.0f && at(0.375f) == 1.0f);
  CHECK(at(0.376f) == 5.0f && at(0.5f) == 5.0f);
  CHECK(at(0.9f) == 7.0f);
}

// computed with philox_uniform of kernels/reference.py; the first is the known answer of Salmon et al.'s Random123
TEST(the_noise_is_that_of_the_reference) {
  struct Known {
    std::uint64_t seed;
    std::uint32_t plan, row, token;
    float draw;  // times 2^24
  };
  constexpr std::uint32_t kMost = 0xFFFFFFFF;
  const Known known[] = {{0, 0, 0, 0, 6694888},
                         {1, 0, 0, 0, 14936070},
                         {0, 1, 0, 0, 8668437},
                         {0, 0, 1, 0, 7000261},
                         {0, 0, 0, 1, 16311500},
                         {~std::uint64_t{0}, kMost, kMost, kMost, 15646776},
                         {0x0123456789ABCDEF, 7, 31, 250, 12989231},
                         {std::uint64_t{1} << 63, 3, 128, 17, 732773}};
  for (const Known& k : known) CHECK(philox_uniform(k.seed, k.plan, k.row, k.token) == k.draw * 0x1p-24f);
}

TEST(the_noise_fills_its_range_evenly) {
  constexpr std::uint32_t kDraws = 20000;
  std::set<float> distinct;
  std::vector<int> tenths(10, 0);
  for (std::uint32_t i = 0; i < kDraws; ++i) {
    const float draw = philox_uniform(42, 0, i / 100, i % 100);
    CHECK(draw >= 0.0f && draw < 1.0f);
    ++tenths[static_cast<std::size_t>(draw * 10.0f)];
    distinct.insert(draw);
  }
  for (const int count : tenths) CHECK(std::abs(count - 2000) < 200);
  CHECK(distinct.size() > kDraws - 60);  // chance repeats about 12
}
