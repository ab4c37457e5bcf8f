// Passes rows of tokens through the Transformer: all layers, rows split over a team of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "aligned.h"
#include "thread_team.h"
#include "weights.h"

namespace ttengine {

// One token to be passed through the model.
struct Row {
  std::int32_t token;
  std::uint32_t position;  // in its row of tokens; in the goal for goal tokens
  bool goal;
  std::uint32_t first_page, page_count;  // what it attends to, in Batch::pages
  float* page;                           // where its key and value go; null for value tokens, which nobody attends to
  std::uint32_t slot, turn;              // there; and its position minus that of the page
  bool single;                           // a one-token page
  std::int32_t output;                   // whose logits follow from it; -1: nobody's
};

struct Batch {
  std::vector<Row> rows;
  std::vector<VisiblePage> pages;
  std::size_t outputs = 0;
  bool independent = true;  // no row attends to another row of this batch

  void clear() {
    rows.clear();
    pages.clear();
    outputs = 0;
    independent = true;
  }
};

class Forward {
 public:
  // `turns`: the largest rotation that a row will need, plus one.
  Forward(const Weights& weights, ThreadTeam& team, std::size_t turns);

  const PageShape& round_shape() const { return round_; }
  const PageShape& single_shape() const { return single_; }

  // Runs the batch; calls finish(output, logits) for every output, on whichever thread computed it.
  void run(const Batch& batch, std::size_t head_column,
           const std::function<void(std::size_t output, const float* logits)>& finish);

  // Copies the keys and values of the first `slots` slots from page to page.
  void copy_slots(const std::byte* from, std::byte* to, std::size_t slots) const;

  // Multiplications and additions of everything run so far.
  std::uint64_t flops() const { return flops_; }

 private:
  struct Scratch {
    AlignedFloats normed, qkv, mixed, hidden, logits, attention;
    std::vector<const VisiblePage*> pages;
    std::vector<std::size_t> counts;
    std::vector<std::uint32_t> offsets;
    std::vector<PageRun> runs;
    std::vector<Ahead::Range> ranges;       // what attention will read, block after block
    std::vector<std::size_t> block_ranges;  // where each block's begin
    Ahead ahead;
  };

  void run_part(const Batch& batch, std::size_t rows, std::size_t head_column,
                const std::function<void(std::size_t, const float*)>& finish);
  Share rows_of(std::size_t thread, std::size_t rows) const;
  void embed(const Row& row, float* x) const;
  void project(const Batch& batch, std::size_t layer, std::size_t first, std::size_t end, Scratch& scratch);
  void mix(const Batch& batch, std::size_t layer, std::size_t first, std::size_t end, std::size_t block,
           Scratch& scratch);
  void predict(const Batch& batch, std::size_t column, Share share, Scratch& scratch,
               const std::function<void(std::size_t, const float*)>& finish);
  void plan_ahead(const Batch& batch, Share share, Scratch& scratch) const;
  void look_ahead(std::size_t layer, std::size_t block, Scratch& scratch) const;
  std::size_t attended(const Batch& batch) const;

  const Weights& weights_;
  const ModelShape& shape_;
  const Kernels& kernels_;
  ThreadTeam& team_;
  PageShape round_, single_;
  std::vector<float> cos_, sin_;  // [turn][pairs]
  std::size_t part_ = 0;          // the first row of the part at work
  AlignedFloats x_, query_;       // of that part
  std::vector<Scratch> scratch_;  // by thread
  std::uint64_t flops_ = 0;
};

}  // namespace ttengine
