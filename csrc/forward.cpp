// Passes rows of tokens through the Transformer: all layers, rows split over a team of threads.
#include "forward.h"

#include <algorithm>
#include <cmath>

namespace ttengine {
namespace {

constexpr std::size_t kBlockRows = 48;   // rows that a thread takes together: each pass reads all weights of a layer
constexpr std::size_t kPartRows = 2048;  // rows between whose layers activations stay: few enough to stay in cache

PageShape page_shape(const ModelShape& shape, std::size_t slots) {
  PageShape page;
  page.slots = slots;
  page.heads = shape.heads;
  page.head_width = shape.head_width();
  page.head_padded = round_up(page.head_width, 8);
  page.keys_floats = round_up(page.heads * page.head_width * (slots == 1 ? 1 : padded_slots(slots)), kRowAlign);
  page.layer_floats = round_up(page.keys_floats + page.heads * page.slots * page.head_padded, kRowAlign);
  return page;
}

}  // namespace

Forward::Forward(const Weights& weights, ThreadTeam& team, std::size_t turns)
    : weights_(weights),
      shape_(weights.shape()),
      kernels_(weights.kernels()),
      team_(team),
      round_(page_shape(shape_, shape_.transition_dim() - 1)),
      single_(page_shape(shape_, 1)),
      scratch_(team.size()) {
  const std::size_t pairs = shape_.pairs();
  cos_.resize(turns * pairs);
  sin_.resize(turns * pairs);
  for (std::size_t turn = 0; turn < turns; ++turn) {
    for (std::size_t p = 0; p < pairs; ++p) {
      const double frequency = std::pow(10000.0, -static_cast<double>(p) / static_cast<double>(pairs));
      const double angle = static_cast<double>(turn) * frequency;
      cos_[turn * pairs + p] = static_cast<float>(std::cos(angle));
      sin_[turn * pairs + p] = static_cast<float>(std::sin(angle));
    }
  }
  const std::size_t Dp = shape_.padded_width();
  for (Scratch& scratch : scratch_) {
    scratch.normed.grow(kBlockRows * Dp);
    scratch.mixed.grow(kBlockRows * Dp);
    scratch.qkv.grow(kBlockRows * round_up(3 * shape_.width, kRowAlign));
    scratch.hidden.grow(kBlockRows * round_up(4 * shape_.width, kRowAlign));
    scratch.logits.grow(kBlockRows * round_up(shape_.outputs(), kRowAlign));
    scratch.pages.resize(kBlockRows);
    scratch.counts.resize(kBlockRows);
  }
}

void Forward::run(const Batch& batch, std::size_t head_column,
                  const std::function<void(std::size_t, const float*)>& finish) {
  // rows see only rows before them, so a large batch can pass through the layers part by part
  for (part_ = 0; part_ < batch.rows.size(); part_ += kPartRows) {
    run_part(batch, std::min(kPartRows, batch.rows.size() - part_), head_column, finish);
  }
  const std::size_t D = shape_.width, L = shape_.layers;
  flops_ += 24 * D * D * L * batch.rows.size() + 4 * D * L * attended(batch) + 2 * D * shape_.outputs() * batch.outputs;
}

void Forward::run_part(const Batch& batch, std::size_t rows, std::size_t head_column,
                       const std::function<void(std::size_t, const float*)>& finish) {
  const std::size_t Dp = shape_.padded_width();
  x_.grow(rows * Dp);
  query_.grow(rows * Dp);
  std::size_t most_pages = 0;
  for (const Row& row : batch.rows) most_pages = std::max<std::size_t>(most_pages, row.page_count);
  const std::size_t most_scores = round_up(most_pages * round_up(round_.slots, kSlotBlock), kRowAlign);
  for (Scratch& scratch : scratch_) {
    scratch.attention.grow(attend_scratch(kBlockRows, most_scores, round_));
    scratch.offsets.resize(std::max(scratch.offsets.size(), kBlockRows * most_pages));
    scratch.runs.resize(scratch.offsets.size());
  }
  // here and not on the threads: it allocates, and their job must not throw
  for (std::size_t thread = 0; thread < team_.size(); ++thread) {
    plan_ahead(batch, rows_of(thread, rows), scratch_[thread]);
  }
  team_.run([&](std::size_t thread) {
    Scratch& scratch = scratch_[thread];
    const Share mine = rows_of(thread, rows);
    for (std::size_t r = mine.first; r < mine.end; ++r) embed(batch.rows[r], x_.data() + (r - part_) * Dp);
    look_ahead(0, 0, scratch);
    for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
      for (std::size_t r = mine.first; r < mine.end; r += kBlockRows) {
        project(batch, layer, r, std::min(r + kBlockRows, mine.end), scratch);
      }
      if (!batch.independent) team_.barrier();
      for (std::size_t r = mine.first; r < mine.end; r += kBlockRows) {
        mix(batch, layer, r, std::min(r + kBlockRows, mine.end), (r - mine.first) / kBlockRows, scratch);
      }
    }
    predict(batch, head_column, mine, scratch, finish);
  });
}

// A thread's rows of the part at work.
Share Forward::rows_of(std::size_t thread, std::size_t rows) const {
  Share mine(rows, team_.size(), thread);
  mine.first += part_;
  mine.end += part_;
  return mine;
}

void Forward::embed(const Row& row, float* x) const {
  if (row.goal) {
    weights_.embed_goal(row.token, row.position, x);
  } else {
    weights_.embed(row.token, row.position, x);
  }
}

// Queries, keys and values of a block of rows; keys and values go to their pages.
void Forward::project(const Batch& batch, std::size_t layer, std::size_t first, std::size_t end, Scratch& scratch) {
  const Layer& weights = weights_.layers()[layer];
  const std::size_t D = shape_.width, Dp = shape_.padded_width(), stride = round_up(3 * D, kRowAlign);
  float* qkv = scratch.qkv.data();
  kernels_.layer_norm(x_.data() + (first - part_) * Dp, end - first, D, Dp, weights.attention_gain,
                      weights.attention_shift, scratch.normed.data());
  kernels_.matmul(scratch.normed.data(), Dp, end - first, weights.qkv, qkv, stride, Epilogue::store, scratch.ahead);
  for (std::size_t r = first; r < end; ++r, qkv += stride) {
    const Row& row = batch.rows[r];
    std::copy(qkv, qkv + D, query_.data() + (r - part_) * Dp);
    if (row.page == nullptr) continue;
    const std::size_t table = row.turn * shape_.pairs();
    kernels_.write_slot(qkv + D, qkv + 2 * D, row.single ? single_ : round_, row.page, layer, row.slot, shape_.pairs(),
                        cos_.data() + table, sin_.data() + table, row.goal);
  }
}

// Attention and the MLP of a block of rows.
void Forward::mix(const Batch& batch, std::size_t layer, std::size_t first, std::size_t end, std::size_t block,
                  Scratch& scratch) {
  const Layer& weights = weights_.layers()[layer];
  const std::size_t D = shape_.width, Dp = shape_.padded_width(), rows = end - first;
  const std::size_t hidden = round_up(4 * D, kRowAlign);
  std::size_t most_pages = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    const Row& row = batch.rows[first + r];
    scratch.pages[r] = batch.pages.data() + row.first_page;
    scratch.counts[r] = row.page_count;
    most_pages = std::max<std::size_t>(most_pages, row.page_count);
  }
  float* x = x_.data() + (first - part_) * Dp;
  kernels_.attend({rows, query_.data() + (first - part_) * Dp, Dp, scratch.mixed.data(), Dp, scratch.pages.data(),
                   scratch.counts.data(), layer, &round_, &single_, shape_.pairs(), cos_.data(), sin_.data(),
                   scratch.attention.data(), scratch.offsets.data(), scratch.runs.data(), most_pages,
                   round_up(most_pages * round_up(round_.slots, kSlotBlock), kRowAlign)});
  look_ahead(layer, block + 1, scratch);
  kernels_.matmul(scratch.mixed.data(), Dp, rows, weights.projection, x, Dp, Epilogue::add, scratch.ahead);
  kernels_.layer_norm(x, rows, D, Dp, weights.mlp_gain, weights.mlp_shift, scratch.normed.data());
  kernels_.matmul(scratch.normed.data(), Dp, rows, weights.mlp_in, scratch.hidden.data(), hidden, Epilogue::gelu,
                  scratch.ahead);
  kernels_.matmul(scratch.hidden.data(), hidden, rows, weights.mlp_out, x, Dp, Epilogue::add, scratch.ahead);
}

// Logits of those of a thread's rows that have an output.
void Forward::predict(const Batch& batch, std::size_t column, Share share, Scratch& scratch,
                      const std::function<void(std::size_t, const float*)>& finish) {
  const std::size_t D = shape_.width, Dp = shape_.padded_width(), stride = round_up(shape_.outputs(), kRowAlign);
  std::size_t outputs[kBlockRows], count = 0;
  for (std::size_t r = share.first; r < share.end; ++r) {
    if (batch.rows[r].output >= 0) {
      const float* x = x_.data() + (r - part_) * Dp;
      std::copy(x, x + Dp, scratch.mixed.data() + count * Dp);
      outputs[count++] = static_cast<std::size_t>(batch.rows[r].output);
    }
    if (count == 0 || (count < kBlockRows && r + 1 < share.end)) continue;
    kernels_.layer_norm(scratch.mixed.data(), count, D, Dp, weights_.final_gain(), weights_.final_shift(),
                        scratch.normed.data());
    kernels_.matmul(scratch.normed.data(), Dp, count, weights_.head(column), scratch.logits.data(), stride,
                    Epilogue::store, scratch.ahead);
    for (std::size_t i = 0; i < count; ++i) finish(outputs[i], scratch.logits.data() + i * stride);
    count = 0;
  }
}

// Lists the keys and values that a thread's rows will read in each layer, in the order of their reading.
void Forward::plan_ahead(const Batch& batch, Share share, Scratch& scratch) const {
  scratch.ranges.clear();
  scratch.block_ranges.clear();
  const auto add = [&](const float* from, std::size_t floats) { scratch.ranges.push_back({from, floats}); };
  for (std::size_t first = share.first; first < share.end; first += kBlockRows) {
    scratch.block_ranges.push_back(scratch.ranges.size());
    const std::size_t end = std::min(first + kBlockRows, share.end);
    for (std::size_t r = first; r < end; ++r) {
      const Row& row = batch.rows[r];
      for (std::size_t i = 0; i < row.page_count; ++i) {
        const VisiblePage& page = batch.pages[row.first_page + i];
        if (page.single) continue;
        if (r > first && i < batch.rows[r - 1].page_count &&
            batch.pages[batch.rows[r - 1].first_page + i].page == page.page)
          continue;
        const std::size_t keys = std::min(round_up(page.end, kSlotBlock), padded_slots(round_.slots));
        add(page.page, keys * round_.heads * round_.head_width);
        for (std::size_t head = 0; head < round_.heads; ++head) {
          add(page.page + round_.keys_floats + (head * round_.slots + page.first) * round_.head_padded,
              (page.end - page.first) * round_.head_padded);
        }
      }
    }
  }
  scratch.block_ranges.push_back(scratch.ranges.size());
}

// From now on products ask for what a block's attention will read; past the last block, for the next layer's first.
void Forward::look_ahead(std::size_t layer, std::size_t block, Scratch& scratch) const {
  const std::size_t blocks = scratch.block_ranges.size() - 1;
  if (block >= blocks) {
    block = 0;
    ++layer;
  }
  scratch.ahead = {};
  if (layer >= shape_.layers || blocks == 0) return;
  scratch.ahead.range = scratch.ranges.data() + scratch.block_ranges[block];
  scratch.ahead.end = scratch.ranges.data() + scratch.block_ranges[block + 1];
  scratch.ahead.shift = layer * round_.layer_floats;
}

std::size_t Forward::attended(const Batch& batch) const {
  std::size_t slots = 0;
  for (const Row& row : batch.rows) {
    for (std::size_t i = 0; i < row.page_count; ++i) {
      const VisiblePage& page = batch.pages[row.first_page + i];
      slots += page.end - page.first;
    }
  }
  return slots;
}

void Forward::copy_slots(const std::byte* from, std::byte* to, std::size_t slots) const {
  const auto* source = reinterpret_cast<const float*>(from);
  auto* target = reinterpret_cast<float*>(to);
  for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
    const std::size_t keys = layer * round_.layer_floats, values = keys + round_.keys_floats;
    // whole blocks: the slots past the last one are written before they are read
    const std::size_t copied = std::min(round_up(slots, kSlotBlock), padded_slots(round_.slots));
    const std::size_t floats = copied * round_.heads * round_.head_width;
    std::copy(source + keys, source + keys + floats, target + keys);
    for (std::size_t head = 0; head < round_.heads; ++head) {
      const std::size_t at = values + head * round_.slots * round_.head_padded;
      std::copy(source + at, source + at + slots * round_.head_padded, target + at);
    }
  }
}

}  // namespace ttengine
