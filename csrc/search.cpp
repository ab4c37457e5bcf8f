// A batch of beam searches: the verbs of ttengine/engines/protocol.py, natively.
#include "search.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

#include "errors.h"
#include "noise.h"

namespace ttengine {
namespace {

const Kernels& kernels_for(Isa isa) {
  const Kernels* kernels = find_kernels(isa);
  if (kernels == nullptr) throw BadArgument(std::string("this machine cannot run the ") + isa_name(isa) + " kernels");
  return *kernels;
}

std::size_t checked_range(const char* name, std::size_t value, std::size_t low, std::size_t high) {
  if (value >= low && value <= high) return value;
  throw BadArgument(std::string(name) + " is " + std::to_string(value) + ", allowed is " + std::to_string(low) +
                    " to " + std::to_string(high));
}

bool all_in_range(const std::vector<std::int32_t>& tokens, std::size_t highest) {
  return std::all_of(tokens.begin(), tokens.end(),
                     [highest](std::int32_t t) { return t >= 0 && static_cast<std::size_t>(t) <= highest; });
}

// The largest rotation, plus one: from the oldest page in sight to the last token of the current transition.
std::size_t turns_of(const ModelShape& shape) {
  return shape.rotary ? (shape.context + 2) * shape.transition_dim() : 1;
}

}  // namespace

Search::Search(const ModelShape& shape, const Tensors& tensors, std::vector<float> reward_edges,
               std::vector<float> value_edges, const SearchSettings& settings, std::size_t threads, Isa isa)
    : shape_(shape),
      settings_(settings),
      reward_edges_(std::move(reward_edges)),
      value_edges_(std::move(value_edges)),
      weights_(shape, tensors, kernels_for(isa)),
      team_(checked_range("threads", threads, 1, 256)),
      forward_(weights_, team_, turns_of(shape)) {
  checked_range("horizon", settings.horizon, 1, 64);
  checked_range("beam_width", settings.beam_width, 1, 512);
  checked_range("expand", settings.expand, 1, 64);
  if (reward_edges_.size() != shape.outputs() || value_edges_.size() != shape.outputs()) {
    throw BadArgument("the edges of rewards and values do not fit the model's bins");
  }
  const std::size_t positions = shape.window * shape.transition_dim() - 1;
  if (!shape.rotary) checked_range("window_tokens of absolute positions", settings.window_tokens, 1, positions);
}

template <typename Work>
void Search::guard(const Work& work) {
  const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock.owns_lock()) throw BadArgument("another thread is planning with this engine; give each thread its own");
  if (problems_.empty()) throw BadArgument("no search has begun; prefill comes first");
  try {
    work();
  } catch (...) {
    abandon();
    throw;
  }
}

// Lets go of all rows; the contexts stay for the next search.
void Search::end_search() noexcept {
  if (table_ != nullptr) table_->clear();
  for (Problem& problem : problems_) {
    for (const PageEntry& entry : problem.base) rounds_pool_->release(entry.page);
  }
  problems_.clear();
  logical_.clear();
  physical_.clear();
  ready_ = false;
}

// Ends the search after an error: contexts that it kept may never have been computed.
void Search::abandon() noexcept {
  end_search();
  if (episodes_ != nullptr) episodes_->clear();
}

// The most pages that can be live at once, with prefixes of so many tokens; they are mapped only when written.
std::size_t Search::page_bound(std::size_t problems, std::size_t prefix, PageEntry::Kind kind) const {
  const std::size_t K = shape_.transition_dim(), W = settings_.beam_width;
  const std::size_t rounds_in_sight =
      std::min(settings_.horizon, shape_.rotary ? shape_.context + 1 : shape_.window) + 1;
  if (kind == PageEntry::Kind::single) return settings_.branching ? problems * W * (rounds_in_sight * K + 2) : 1;
  const std::size_t context = 2 * (prefix / K + 2) + shape_.context;
  const std::size_t beams = settings_.window_tokens > 0 ? W * (settings_.window_tokens / K + 2) : W * rounds_in_sight;
  const std::size_t candidates = settings_.branching ? 0 : 2 * W * settings_.expand;
  return problems * (beams + candidates + context + 2);
}

// Makes the pools large enough for a batch; only a larger batch than ever before allocates.
void Search::reserve(std::size_t problems, std::size_t prefix) {
  const std::size_t rounds = page_bound(problems, prefix, PageEntry::Kind::round);
  const std::size_t singles = page_bound(problems, prefix, PageEntry::Kind::single);
  if (rounds_pool_ != nullptr && rounds_pool_->capacity() >= rounds && singles_pool_->capacity() >= singles) return;
  const auto bytes = [&](const PageShape& page) { return shape_.layers * page.layer_floats * sizeof(float); };
  auto rounds_pool = std::make_unique<PagePool>(rounds, bytes(forward_.round_shape()));
  auto singles_pool = std::make_unique<PagePool>(singles, bytes(forward_.single_shape()));
  episodes_.reset();
  table_.reset();
  rounds_pool_ = std::move(rounds_pool);
  singles_pool_ = std::move(singles_pool);
  table_ = std::make_unique<BlockTable>(*rounds_pool_, *singles_pool_);
  episodes_ = std::make_unique<Episodes>(*rounds_pool_, *singles_pool_, shape_.observation_dim, shape_.transition_dim(),
                                         shape_.layers * shape_.context, shape_.context);
}

void Search::prefill(const std::vector<std::vector<std::int32_t>>& prefixes,
                     const std::vector<std::vector<std::int32_t>>& goals, const std::vector<NoiseKey>& keys,
                     std::function<void()> interrupted) {
  const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock.owns_lock()) throw BadArgument("another thread is planning with this engine; give each thread its own");
  end_search();
  const std::size_t B = prefixes.size(), K = shape_.transition_dim();
  if (B == 0 || keys.size() != B || goals.size() != (shape_.goal ? B : 0)) {
    throw BadArgument("prefixes, goals and keys do not belong together");
  }
  for (const auto& prefix : prefixes) {
    if (prefix.size() % K != shape_.observation_dim || !all_in_range(prefix, shape_.n_bins)) {
      throw BadArgument("a prefix has " + std::to_string(prefix.size()) + " tokens or a token out of range; expected " +
                        "whole transitions of " + std::to_string(K) + " and an observation");
    }
  }
  for (const auto& goal : goals) {
    // the stop token, n_bins, is no goal
    if (goal.size() != shape_.observation_dim || !all_in_range(goal, shape_.n_bins - 1)) {
      throw BadArgument("a goal is not an observation's tokens");
    }
  }
  // a full context from the start: pools that grew with an episode would lose its pages
  std::size_t longest =
      settings_.window_tokens > 0 ? settings_.window_tokens : (shape_.layers * shape_.context + 1) * K;
  for (const auto& prefix : prefixes) longest = std::max(longest, prefix.size());
  reserve(B, longest);
  interrupted_ = std::move(interrupted);
  counters_ = {};
  flops_before_ = forward_.flops();
  planned_ = rounds_ = 0;
  tokens_.assign(B * settings_.horizon * K, 0);
  rewards_.assign(B * settings_.horizon, 0.0f);
  for (std::uint32_t b = 0; b < B; ++b) {
    problems_.push_back({prefixes[b], shape_.goal ? goals[b] : std::vector<std::int32_t>(), keys[b], 0, {}});
    logical_.push_back({b, 0.0f});
    physical_.push_back({b, b, prefixes[b].back(), 0});
    table_->add({});
  }
  try {
    crop_windows();
    batch_.clear();
    for (Problem& problem : problems_) {
      if (shape_.goal) push_goal(problem);
    }
    rebuild(std::vector<bool>(B, true));
    predict();
  } catch (...) {
    abandon();
    throw;
  }
}

void Search::expand(std::size_t copies) {
  guard([&] {
    checked_range("copies", copies, 1, 64);
    if (settings_.branching) throw BadArgument("this search was made for likelihoods, not for returns");
    if (rounds_ >= settings_.horizon) throw BadArgument("the horizon is reached; there is no further round");
    check_place(0, "expand follows prefill or observe");
    forward_pending();                                  // before copying: what the copies share is computed once
    if (planned_ == 0) copies *= settings_.beam_width;  // the first round starts from one row, which stands for all
    std::vector<std::uint32_t> rows(logical_.size() * copies);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::uint32_t>(i / copies);
    pick(rows);
    decode(shape_.action_dim);
    forward_pending();
    for (std::size_t i = 0; i < logical_.size(); ++i) {
      rewards_[i * settings_.horizon + rounds_] = numbers_[physical_[logical_[i].physical].output];
    }
    ++rounds_;
    decode(1);
    forward_pending();
    for (Logical& row : logical_) row.value = numbers_[physical_[row.physical].output];
    decode(1);
  });
}

// Throws unless so many tokens of a round are planned: verbs have an order.
void Search::check_place(std::size_t tokens, const char* order) const {
  if (planned_ % shape_.transition_dim() != tokens) throw BadArgument(order);
}

void Search::select(const std::vector<std::uint32_t>& kept) {
  guard([&] {
    if (!settings_.branching) check_place(shape_.action_dim + 2, "select follows expand");
    pick(kept);
  });
}

void Search::observe() {
  guard([&] {
    check_place(shape_.action_dim + 2, "observe follows expand and select");
    decode(shape_.observation_dim);
  });
}

void Search::next_log_probabilities(float* result) {
  guard([&] {
    if (!settings_.branching) throw BadArgument("this search was made for returns, not for likelihoods");
    forward_pending();
    for (std::size_t i = 0; i < logical_.size(); ++i) {
      const float* from = predictions_.data() + physical_[logical_[i].physical].output * outputs();
      std::copy(from, from + outputs(), result + i * outputs());
    }
  });
}

void Search::branch(const std::vector<std::uint32_t>& beams, const std::vector<std::int32_t>& tokens) {
  guard([&] {
    if (tokens.size() != beams.size()) throw BadArgument("beams and tokens differ in number");
    if (!all_in_range(tokens, shape_.n_bins)) throw BadArgument("a token is out of range");
    pick(beams);
    append(tokens);
  });
}

// --- rows ---

// Keeps some logical rows, in the order given, repeats allowed; physical rows that none of them needs let go.
void Search::pick(const std::vector<std::uint32_t>& rows) {
  const std::size_t stride = settings_.horizon * shape_.transition_dim(), H = settings_.horizon;
  std::vector<Logical> logical(rows.size());
  std::vector<std::int32_t> tokens(rows.size() * stride);
  std::vector<float> rewards(rows.size() * H);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] >= logical_.size()) throw BadArgument("row " + std::to_string(rows[i]) + " does not exist");
    logical[i] = logical_[rows[i]];
    std::copy_n(tokens_.begin() + static_cast<std::ptrdiff_t>(rows[i] * stride), planned_,
                tokens.begin() + static_cast<std::ptrdiff_t>(i * stride));
    std::copy_n(rewards_.begin() + static_cast<std::ptrdiff_t>(rows[i] * H), rounds_,
                rewards.begin() + static_cast<std::ptrdiff_t>(i * H));
  }
  constexpr std::uint32_t kUnused = std::numeric_limits<std::uint32_t>::max();
  std::vector<std::uint32_t> renamed(physical_.size(), kUnused), parents;
  std::vector<Physical> physical;
  for (std::size_t i = 0; i < logical.size(); ++i) {
    std::uint32_t& name = renamed[logical[i].physical];
    if (name == kUnused) {
      name = static_cast<std::uint32_t>(physical.size());
      parents.push_back(logical[i].physical);
      physical.push_back(physical_[logical[i].physical]);
      physical.back().sample = static_cast<std::uint32_t>(i);
    }
    logical[i].physical = name;
  }
  table_->fork(parents);
  logical_ = std::move(logical);
  physical_ = std::move(physical);
  tokens_ = std::move(tokens);
  rewards_ = std::move(rewards);
}

// Puts one token behind each logical row. Rows that were one and get the same token stay one.
void Search::append(const std::vector<std::int32_t>& tokens) {
  const std::size_t stride = settings_.horizon * shape_.transition_dim();
  if (planned_ >= stride) throw BadArgument("the horizon is reached; there is no further token");
  constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
  std::vector<std::uint32_t> first_child(physical_.size(), kNone), sibling, parents;
  std::vector<Physical> physical;
  for (std::size_t i = 0; i < logical_.size(); ++i) {
    const std::uint32_t parent = logical_[i].physical;
    std::uint32_t child = settings_.deduplicate ? first_child[parent] : kNone;
    while (child != kNone && physical[child].pending != tokens[i]) child = sibling[child];
    if (child == kNone) {
      child = static_cast<std::uint32_t>(physical.size());
      physical.push_back({physical_[parent].problem, static_cast<std::uint32_t>(i), tokens[i], 0});
      sibling.push_back(first_child[parent]);
      first_child[parent] = child;
      parents.push_back(parent);
    }
    logical_[i].physical = child;
    tokens_[i * stride + planned_] = tokens[i];
  }
  bool same = parents.size() == physical_.size();
  for (std::size_t i = 0; same && i < parents.size(); ++i) same = parents[i] == i;
  if (!same) table_->fork(parents);
  physical_ = std::move(physical);
  ++planned_;
  ready_ = false;
}

void Search::decode(std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    forward_pending();
    append(draw());
  }
}

std::vector<std::int32_t> Search::draw() const {
  const std::size_t column = (shape_.observation_dim + planned_) % shape_.transition_dim();
  const bool greedy = segment(column).greedy();
  const std::size_t rows_per_problem = rows();
  std::vector<std::int32_t> tokens(logical_.size());
  for (std::size_t i = 0; i < logical_.size(); ++i) {
    const Physical& row = physical_[logical_[i].physical];
    if (greedy) {
      tokens[i] = best_[row.output];
      continue;
    }
    const NoiseKey& key = problems_[row.problem].key;
    const float uniform = philox_uniform(key.seed, key.plan, static_cast<std::uint32_t>(i % rows_per_problem),
                                         static_cast<std::uint32_t>(planned_));
    tokens[i] = draw_token(predictions_.data() + row.output * outputs(), outputs(), uniform);
  }
  return tokens;
}

const Sampling& Search::segment(std::size_t column) const {
  const std::size_t N = shape_.observation_dim, M = shape_.action_dim;
  if (column < N) return settings_.observation;
  if (column < N + M) return settings_.action;
  return column == N + M ? settings_.reward : settings_.value;
}

// --- tokens through the model ---

// Sees to it that the model has seen every row's last token, and that its prediction of the next one is there.
void Search::forward_pending() {
  if (ready_) return;
  if (interrupted_) interrupted_();
  batch_.clear();
  const std::vector<bool> cropped = crop_windows();
  if (std::find(cropped.begin(), cropped.end(), true) != cropped.end()) {
    rebuild(cropped);
  } else {
    for (std::uint32_t row = 0; row < physical_.size(); ++row) step_row(physical_[row], row);
    counters_.logical_rows += logical_.size();
  }
  predict();
}

void Search::predict() {
  const std::size_t column = (shape_.observation_dim + planned_) % shape_.transition_dim();
  const Sampling& sampling = segment(column);
  const std::size_t V = shape_.n_bins, n = outputs();
  const bool reward = column == shape_.transition_dim() - 2, value = column == shape_.transition_dim() - 1;
  predictions_.resize(std::max(predictions_.size(), batch_.outputs * n));
  best_.resize(std::max(best_.size(), batch_.outputs));
  numbers_.resize(std::max(numbers_.size(), batch_.outputs));
  std::atomic<bool> finite{true};
  const Kernels& kernels = weights_.kernels();
  const auto finish = [&](std::size_t output, const float* logits) {
    float* result = predictions_.data() + output * n;
    if (settings_.branching) {
      if (!log_probabilities(kernels, logits, n, sampling, result)) finite = false;
      return;
    }
    float probabilities[1025];
    if (!kernels.softmax(logits, n, sampling.temperature, probabilities)) {
      finite = false;
      return;
    }
    if (sampling.greedy()) {
      best_[output] = greedy_token(probabilities, n);
    } else {
      filter_tokens(kernels, probabilities, n, sampling, result);
      accumulate(result, n);
    }
    if (reward || value) {
      const float* edges = (reward ? reward_edges_ : value_edges_).data();
      numbers_[output] = settings_.percentile == 0.0f ? expectation(probabilities, edges, V)
                                                      : percentile(probabilities, edges, V, settings_.percentile,
                                                                   settings_.percentile_as_released);
    }
  };
  forward_.run(batch_, (column + shape_.transition_dim() - 1) % shape_.transition_dim(), finish);
  ++counters_.token_steps;
  for (const Row& row : batch_.rows) counters_.physical_rows += row.goal ? 0 : 1;
  counters_.pages = std::max<std::uint64_t>(counters_.pages, live_pages());
  if (!finite) {
    throw NonFinite("the model's logits hold NaN or infinity at token " + std::to_string(planned_) +
                    " of the plan; check the weights with `ttengine info`");
  }
  ready_ = true;
}

// --- results ---

void Search::copy_tokens(std::int64_t* tokens) const {
  const std::size_t stride = settings_.horizon * shape_.transition_dim();
  for (std::size_t i = 0; i < logical_.size(); ++i) {
    for (std::size_t j = 0; j < planned_; ++j) *tokens++ = tokens_[i * stride + j];
  }
}

void Search::copy_rewards(float* rewards) const {
  for (std::size_t i = 0; i < logical_.size(); ++i) {
    const auto from = rewards_.begin() + static_cast<std::ptrdiff_t>(i * settings_.horizon);
    rewards = std::copy_n(from, rounds_, rewards);
  }
}

void Search::copy_values(float* values) const {
  for (const Logical& row : logical_) *values++ = row.value;
}

SearchCounters Search::counters() const {
  SearchCounters counters = counters_;
  counters.flops = forward_.flops() - flops_before_;
  return counters;
}

std::size_t Search::live_pages() const {
  return rounds_pool_ == nullptr ? 0 : rounds_pool_->live() + singles_pool_->live();
}

}  // namespace ttengine
