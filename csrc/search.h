// A batch of beam searches: the verbs of ttengine/engines/protocol.py, natively.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "block_table.h"
#include "episodes.h"
#include "forward.h"
#include "page_pool.h"
#include "sampling.h"
#include "thread_team.h"
#include "weights.h"

namespace ttengine {

struct NoiseKey {
  std::uint64_t seed;
  std::uint32_t plan;
};

struct SearchSettings {
  std::size_t horizon, beam_width, expand;
  std::size_t window_tokens;  // the most tokens that the model is shown; 0: no crop (rolling)
  bool branching;             // at every token: likelihood search
  bool deduplicate;
  Sampling observation, action, reward, value;
  float percentile;  // how probabilities become a number: this share, or their expectation if it is 0
  bool percentile_as_released;
};

struct SearchCounters {
  std::uint64_t token_steps, logical_rows, physical_rows, prefills, flops, pages;
};

// Logical rows are beams or candidates, R of them for each of B problems. Identical ones share a physical row: one list
// of pages, one pass through the model.
class Search {
 public:
  // reward_edges and value_edges [n_bins + 1]. Throws what Weights throws, and BadArgument: a setting is out of range.
  Search(const ModelShape& shape, const Tensors& tensors, std::vector<float> reward_edges,
         std::vector<float> value_edges, const SearchSettings& settings, std::size_t threads, Isa isa);

  // Begins B searches. `interrupted` is called between token steps on the calling thread and may throw. Whatever a verb
  // throws, the search is over and its pages are free; kept contexts go too, unless a prefill refused its arguments.
  // Only a verb called while another thread is in one throws BadArgument and changes nothing.
  void prefill(const std::vector<std::vector<std::int32_t>>& prefixes,
               const std::vector<std::vector<std::int32_t>>& goals, const std::vector<NoiseKey>& keys,
               std::function<void()> interrupted);
  void expand(std::size_t copies);
  void select(const std::vector<std::uint32_t>& kept);  // [B * W], rows within their problem
  void observe();
  void next_log_probabilities(float* result);                                                     // [B, R, n_bins + 1]
  void branch(const std::vector<std::uint32_t>& beams, const std::vector<std::int32_t>& tokens);  // [B * W'] each

  std::size_t problems() const { return problems_.size(); }
  std::size_t rows() const { return problems_.empty() ? 0 : logical_.size() / problems_.size(); }  // R
  std::size_t planned() const { return planned_; }  // tokens after the prefix
  std::size_t rounds() const { return rounds_; }
  std::size_t outputs() const { return shape_.outputs(); }
  void copy_tokens(std::int64_t* tokens) const;  // [B, R, planned]
  void copy_rewards(float* rewards) const;       // [B, R, rounds]
  void copy_values(float* values) const;         // [B, R]
  SearchCounters counters() const;
  Isa isa() const { return weights_.kernels().isa; }
  std::size_t live_pages() const;

 private:
  struct Problem {
    std::vector<std::int32_t> prefix, goal;
    NoiseKey key;
    std::int32_t start = 0;       // of the window: tokens before it are cropped
    std::vector<PageEntry> base;  // the goal's page, if any
  };
  struct Logical {
    std::uint32_t physical;
    float value;
  };
  struct Physical {
    std::uint32_t problem, sample;  // sample: a logical row that it stands for
    std::int32_t pending;           // the last token, which the model has not seen
    std::uint32_t output;           // where its prediction is, once the model has seen it
  };
  struct Place {  // of a token in the page of its round
    std::int32_t begin;
    std::uint32_t slot;
    bool stored;  // false for value tokens
  };
  struct Trie;

  // Throws when no search has begun; ends the search when the work throws.
  template <typename Work>
  void guard(const Work& work);
  void end_search() noexcept;
  void abandon() noexcept;
  void check_place(std::size_t tokens, const char* order) const;
  void reserve(std::size_t problems, std::size_t prefix);
  std::size_t page_bound(std::size_t problems, std::size_t prefix, PageEntry::Kind kind) const;

  std::int32_t token(const Physical& row, std::int32_t index) const;  // index counts from the window's start
  const Sampling& segment(std::size_t column) const;
  void forward_pending();
  std::vector<bool> crop_windows();
  void rebuild(const std::vector<bool>& which);
  std::uint32_t rebuild_row(const Physical& row, Trie& trie, std::vector<std::vector<PageEntry>>& lists);
  std::int32_t find_page(const Trie& trie, std::int32_t parent, const Physical& row, std::int32_t begin,
                         std::int32_t end) const;
  void build_page(Trie& trie, std::int32_t parent, const Physical& row, std::int32_t begin, std::int32_t end,
                  std::vector<PageEntry>& list);
  void keep_contexts();
  const std::vector<PageEntry>& step_row(Physical& row, std::uint32_t physical);
  void push_row(std::int32_t token, std::int32_t position, const std::vector<PageEntry>& list, std::int32_t output);
  void push_goal(Problem& problem);
  void predict();
  void decode(std::size_t count);
  std::vector<std::int32_t> draw() const;
  void append(const std::vector<std::int32_t>& tokens);
  void pick(const std::vector<std::uint32_t>& rows);  // logical rows [B * W], indices over all problems
  Place place_of(std::int32_t position) const;

  ModelShape shape_;
  SearchSettings settings_;
  std::vector<float> reward_edges_, value_edges_;
  Weights weights_;
  ThreadTeam team_;
  Forward forward_;
  std::unique_ptr<PagePool> rounds_pool_, singles_pool_;
  std::unique_ptr<BlockTable> table_;
  std::unique_ptr<Episodes> episodes_;
  std::function<void()> interrupted_;
  std::mutex busy_;

  std::vector<Problem> problems_;
  std::vector<Logical> logical_;
  std::vector<Physical> physical_;
  std::vector<std::int32_t> tokens_;  // [logical][horizon * K]
  std::vector<float> rewards_;        // [logical][horizon]
  std::size_t planned_ = 0, rounds_ = 0;

  Batch batch_;
  bool ready_ = false;              // the predictions are those of the pending tokens
  std::vector<float> predictions_;  // [output][n_bins + 1]: cumulative weights, or log-probabilities
  std::vector<std::int32_t> best_;  // [output]
  std::vector<float> numbers_;      // [output], of reward and value tokens
  SearchCounters counters_{};
  std::uint64_t flops_before_ = 0;
};

}  // namespace ttengine
