// A tiny random model, and whole searches with it driven through the verbs of Search, as ttengine's objectives do.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "random_numbers.h"
#include "search.h"

using TokenRow = std::vector<std::int32_t>;

// A model's sizes and weights, random but large enough that rows part.
struct TinyModel {
  ttengine::ModelShape shape;
  std::map<std::string, std::pair<std::vector<float>, std::vector<std::size_t>>> weights;
  std::vector<float> edges;

  TinyModel(bool rotary, bool goal, std::uint32_t seed = 1) : TinyModel({2, 1, 6, 2, 2, 8, 4, 2, rotary, goal}, seed) {}

  TinyModel(const ttengine::ModelShape& sizes, std::uint32_t seed) : shape(sizes) {
    Random random(seed);
    const std::size_t D = shape.width, K = shape.transition_dim(), V = shape.n_bins;
    const auto add = [&](const std::string& name, std::vector<std::size_t> dims, float scale) {
      std::size_t size = 1;
      for (const std::size_t dim : dims) size *= dim;
      weights[name] = {random.normals(size, scale), std::move(dims)};
    };
    add("token_embedding.weight", {V * K + 1, D}, 1.0f);
    if (shape.rotary) add("column_embedding", {K, D}, 0.5f);
    if (!shape.rotary) add("position_embedding", {shape.window * K - 1, D}, 0.5f);
    if (shape.goal) add("goal_embedding.weight", {V * shape.observation_dim, D}, 1.0f);
    for (std::size_t i = 0; i < shape.layers; ++i) {
      const std::string at = "blocks." + std::to_string(i) + ".";
      for (const char* norm : {"attention_norm", "mlp_norm"}) {
        add(at + norm + ".weight", {D}, 1.0f);
        add(at + norm + ".bias", {D}, 0.3f);
      }
      const auto linear = [&](const std::string& name, std::size_t n, std::size_t k) {
        add(at + name + ".weight", {n, k}, 0.5f);
        add(at + name + ".bias", {n}, 0.3f);
      };
      linear("qkv", 3 * D, D);
      linear("projection", D, D);
      linear("mlp_in", 4 * D, D);
      linear("mlp_out", D, 4 * D);
    }
    add("final_norm.weight", {D}, 1.0f);
    add("final_norm.bias", {D}, 0.3f);
    add("head.weight", {K, V + 1, D}, 0.5f);
    for (std::size_t i = 0; i <= V; ++i) edges.push_back(static_cast<float>(i) - 0.4f * static_cast<float>(V));
  }

  ttengine::Tensors tensors() const {
    ttengine::Tensors result;
    for (const auto& [name, tensor] : weights) result[name] = {tensor.first.data(), tensor.second};
    return result;
  }

  // `transitions` past ones and an observation; rarely a stop token.
  TokenRow prefix(Random& random, std::size_t transitions) const {
    TokenRow tokens(transitions * shape.transition_dim() + shape.observation_dim);
    for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random.below(shape.n_bins));
    if (random.below(10) == 0) tokens[random.below(tokens.size())] = static_cast<std::int32_t>(shape.n_bins);
    return tokens;
  }

  TokenRow goal(Random& random) const {
    TokenRow tokens(shape.observation_dim);
    for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random.below(shape.n_bins));
    return tokens;
  }
};

// A return search of 3 rounds, 4 beams and 3 expansions; `branching`: a likelihood search. Windows crop at 2
// transitions.
inline ttengine::SearchSettings tiny_settings(bool windowed, bool branching = false) {
  ttengine::SearchSettings settings{};
  settings.horizon = 3;
  settings.beam_width = 4;
  settings.expand = 3;
  settings.window_tokens = windowed ? 2 * 5 - 1 : 0;  // of a model with 5 tokens per transition
  settings.branching = branching;
  settings.deduplicate = true;
  settings.observation.k = branching ? std::nullopt : std::optional<std::size_t>(1);
  if (!branching) settings.action = {{}, 0.2f, 1.2f};
  if (!branching) settings.value.k = 3;
  return settings;
}

// How to make a Search, all but the model.
struct Making {
  ttengine::SearchSettings settings;
  std::size_t threads = 1;
  ttengine::Isa isa = ttengine::best_kernels().isa;

  ttengine::Search search(const TinyModel& model) const {
    return {model.shape, model.tensors(), model.edges, model.edges, settings, threads, isa};
  }
};

// B problems, one after the other in every array.
struct Problems {
  std::vector<TokenRow> prefixes, goals;
  std::vector<ttengine::NoiseKey> keys;

  Problems only(std::size_t b) const {
    return {{prefixes[b]}, goals.empty() ? goals : std::vector<TokenRow>{goals[b]}, {keys[b]}};
  }
};

inline Problems random_problems(const TinyModel& model, std::uint32_t seed, const std::vector<std::size_t>& lengths) {
  Random random(seed);
  Problems problems;
  for (const std::size_t length : lengths) {
    problems.prefixes.push_back(model.prefix(random, length));
    if (model.shape.goal) problems.goals.push_back(model.goal(random));
    problems.keys.push_back({random.below(1000), static_cast<std::uint32_t>(random.below(1000))});
  }
  return problems;
}

// Everything that one problem's search made, round by round.
struct Trace {
  std::vector<std::int64_t> tokens;
  std::vector<float> numbers;

  bool operator==(const Trace& other) const { return tokens == other.tokens && same_bits(numbers, other.numbers); }
};

// The `width` highest scores of each problem's `count`, lower indices first on ties, in index order; over all problems.
inline std::vector<std::uint32_t> keep_best(const std::vector<double>& scores, std::size_t count, std::size_t width) {
  std::vector<std::uint32_t> kept;
  for (std::size_t first = 0; first < scores.size(); first += count) {
    std::vector<std::uint32_t> order(count);
    std::iota(order.begin(), order.end(), static_cast<std::uint32_t>(first));
    std::stable_sort(order.begin(), order.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return scores[a] > scores[b]; });
    order.resize(std::min(width, count));
    std::sort(order.begin(), order.end());
    kept.insert(kept.end(), order.begin(), order.end());
  }
  return kept;
}

// Appends a part of `from`, problem b's of B, to `to`.
template <typename T>
void append_share(const std::vector<T>& from, std::size_t b, std::size_t B, std::vector<T>& to) {
  const auto size = static_cast<std::ptrdiff_t>(from.size() / B);
  const auto begin = from.begin() + static_cast<std::ptrdiff_t>(b) * size;
  to.insert(to.end(), begin, begin + size);
}

inline void record(const ttengine::Search& search, const std::vector<std::vector<float>>& numbers,
                   std::vector<Trace>& traces) {
  std::vector<std::int64_t> tokens(search.problems() * search.rows() * search.planned());
  search.copy_tokens(tokens.data());
  for (std::size_t b = 0; b < traces.size(); ++b) {
    append_share(tokens, b, traces.size(), traces[b].tokens);
    for (const std::vector<float>& array : numbers) append_share(array, b, traces.size(), traces[b].numbers);
  }
}

// A whole return search, as ttengine/objectives.py; `between` is called after every verb.
inline std::vector<Trace> plan_return(
    ttengine::Search& search, const ttengine::SearchSettings& settings, const Problems& problems,
    const std::function<void()>& interrupted = [] {}, const std::function<void()>& between = [] {}) {
  std::vector<Trace> traces(problems.prefixes.size());
  search.prefill(problems.prefixes, problems.goals, problems.keys, interrupted);
  between();
  for (std::size_t round = 1; round <= settings.horizon; ++round) {
    search.expand(settings.expand);
    between();
    const std::size_t rows = search.rows(), all = rows * search.problems();
    std::vector<float> rewards(all * search.rounds()), values(all);
    search.copy_rewards(rewards.data());
    search.copy_values(values.data());
    record(search, {rewards, values}, traces);
    std::vector<double> scores(values.begin(), values.end());
    for (std::size_t i = 0; i < rewards.size(); ++i) scores[i / search.rounds()] += rewards[i];
    search.select(keep_best(scores, rows, settings.beam_width));
    between();
    if (round < settings.horizon) search.observe();
    between();
  }
  return traces;
}

// A whole likelihood search, a beam's score being the sum of its tokens' log-probabilities.
inline std::vector<Trace> plan_likelihood(
    ttengine::Search& search, const TinyModel& model, const ttengine::SearchSettings& settings,
    const Problems& problems, const std::function<void()>& interrupted = [] {},
    const std::function<void()>& between = [] {}) {
  const std::size_t B = problems.prefixes.size(), n = model.shape.outputs();
  std::vector<Trace> traces(B);
  std::vector<double> scores(B, 0.0);
  search.prefill(problems.prefixes, problems.goals, problems.keys, interrupted);
  between();
  for (std::size_t token = 0; token < settings.horizon * model.shape.transition_dim(); ++token) {
    std::vector<float> logs(scores.size() * n);
    search.next_log_probabilities(logs.data());
    record(search, {logs}, traces);
    std::vector<double> next(logs.size());
    for (std::size_t i = 0; i < logs.size(); ++i) next[i] = scores[i / n] + logs[i];
    const std::vector<std::uint32_t> kept = keep_best(next, next.size() / B, settings.beam_width);
    std::vector<std::uint32_t> beams;
    TokenRow tokens;
    scores.clear();
    for (const std::uint32_t i : kept) {
      beams.push_back(i / static_cast<std::uint32_t>(n));
      tokens.push_back(static_cast<std::int32_t>(i % n));
      scores.push_back(next[i]);
    }
    search.branch(beams, tokens);
    between();
  }
  record(search, {}, traces);
  return traces;
}
