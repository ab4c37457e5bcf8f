// Attention over pages. Neighbouring rows that see the same part of the same page load its keys and values once.
#pragma once

#include "simd/kernels.h"
#include "simd/vec.h"

namespace ttengine::TTENGINE_ISA {

constexpr int kBlock = 8;  // slots, or dims of a value, that are taken together; pages are padded to it
using Block = FloatN<kBlock>;
constexpr int kScoreRows = 4, kScoreBlocks = 3;
constexpr int kMixRows = kLanes == 16 ? 6 : 3, kMixBlocks = 4;

// Scores of R rows against C blocks of slots.
template <int R, int C>
inline void score_tile(const float* const* query, const float* keys, std::size_t stride, std::size_t width,
                       float* const* scores, std::size_t offset) {
  Block total[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) total[r][c] = splat<kBlock>(0.0f);
  for (std::size_t d = 0; d < width; ++d, keys += stride) {
    Block key[C];
    for (int c = 0; c < C; ++c) key[c] = load<kBlock>(keys + c * kBlock);
    for (int r = 0; r < R; ++r) {
      const Block q = splat<kBlock>(query[r][d]);
      for (int c = 0; c < C; ++c) total[r][c] = fma_lanes<kBlock>(q, key[c], total[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<kBlock>(scores[r] + offset + c * kBlock, total[r][c]);
}

template <int R>
inline void score_rows(const float* const* query, const float* keys, std::size_t stride, std::size_t width,
                       float* const* scores, std::size_t blocks) {
  std::size_t b = 0;
  for (; b + kScoreBlocks <= blocks; b += kScoreBlocks)
    score_tile<R, kScoreBlocks>(query, keys + b * kBlock, stride, width, scores, b * kBlock);
  if (blocks - b == 2) score_tile<R, 2>(query, keys + b * kBlock, stride, width, scores, b * kBlock);
  if (blocks - b == 1) score_tile<R, 1>(query, keys + b * kBlock, stride, width, scores, b * kBlock);
}

// Adds weights times values of the slots [first, end) to R rows' sums, C blocks of dims each.
template <int R, int C>
inline void mix_tile(const float* const* weights, const float* values, std::size_t stride, std::size_t count,
                     float* const* mixed) {
  Block total[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) total[r][c] = load<kBlock>(mixed[r] + c * kBlock);
  for (std::size_t s = 0; s < count; ++s, values += stride) {
    Block value[C];
    for (int c = 0; c < C; ++c) value[c] = load<kBlock>(values + c * kBlock);
    for (int r = 0; r < R; ++r) {
      const Block w = splat<kBlock>(weights[r][s]);
      for (int c = 0; c < C; ++c) total[r][c] = fma_lanes<kBlock>(w, value[c], total[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<kBlock>(mixed[r] + c * kBlock, total[r][c]);
}

template <int R>
inline void mix_rows(const float* const* weights, const float* values, std::size_t stride, std::size_t count,
                     float* const* mixed, std::size_t blocks) {
  const float* from[R];
  float* to[R];
  for (std::size_t b = 0; b < blocks; b += kMixBlocks) {
    for (int r = 0; r < R; ++r) from[r] = weights[r], to[r] = mixed[r] + b * kBlock;
    switch (blocks - b) {
      case 1: mix_tile<R, 1>(from, values + b * kBlock, stride, count, to); break;
      case 2: mix_tile<R, 2>(from, values + b * kBlock, stride, count, to); break;
      case 3: mix_tile<R, 3>(from, values + b * kBlock, stride, count, to); break;
      default: mix_tile<R, 4>(from, values + b * kBlock, stride, count, to); break;
    }
  }
}

inline float dot(const float* a, const float* b, std::size_t n) {
  Vec total = splat(0.0f);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) total = fma(load(a + i), load(b + i), total);
  float rest = sum(total);
  for (; i < n; ++i) rest += a[i] * b[i];
  return rest;
}

// The query of one head, scaled, turned to meet the keys of a page.
inline void turn_query(const float* query, std::size_t width, float scale, std::size_t pairs, const float* cos,
                       const float* sin, float* turned) {
  for (std::size_t p = 0; p < pairs; ++p) {
    const float a = query[p] * scale, b = query[pairs + p] * scale;
    turned[p] = a * cos[p] - b * sin[p];
    turned[pairs + p] = a * sin[p] + b * cos[p];
  }
  for (std::size_t d = 2 * pairs; d < width; ++d) turned[d] = query[d] * scale;
}

// e^(score - highest) in place over whole blocks; returns their sum.
inline float exponentiate(float* scores, std::size_t count) {
  for (; count % kLanes != 0; count += kBlock) {
    for (int i = 0; i < kBlock; ++i) scores[count + i] = -__builtin_inff();
  }
  Vec top = load(scores);
  for (std::size_t i = kLanes; i < count; i += kLanes) top = max(top, load(scores + i));
  const Vec highest_score = splat(highest(top));
  Vec total = splat(0.0f);
  for (std::size_t i = 0; i < count; i += kLanes) {
    const Vec e = exp(load(scores + i) - highest_score);
    store(scores + i, e);
    total += e;
  }
  return sum(total);
}

inline bool same_view(const VisiblePage& a, const VisiblePage& b) {
  return a.page == b.page && a.first == b.first && a.end == b.end;
}

// Where a row's scores of a page begin: whole blocks, counted from the block of its first visible slot.
inline std::size_t first_block(const VisiblePage& page) { return page.first / kBlock; }
inline std::size_t block_count(const VisiblePage& page) {
  return page.single ? 1 : (page.end + kBlock - 1) / kBlock - first_block(page);
}

struct HeadPass {
  const AttendArguments& a;
  std::size_t head;
  float *turned, *scores, *sums;
  std::size_t* offsets;  // [rows][most_pages]

  const PageShape& shape(const VisiblePage& page) const { return page.single ? *a.single : *a.round; }
  const float* keys(const VisiblePage& page) const {
    const PageShape& s = shape(page);
    return page.page + a.layer * s.layer_floats + head * s.head_width * s.slots_padded;
  }
  const float* values(const VisiblePage& page) const {
    const PageShape& s = shape(page);
    return page.page + a.layer * s.layer_floats + s.keys_floats + head * s.slots * s.head_padded;
  }
  float* turned_query(std::size_t row, std::size_t i) const {
    return turned + (row * a.most_pages + i) * a.round->head_width;
  }
  float* row_scores(std::size_t row) const { return scores + row * a.most_scores; }

  // Calls f(page index, first row, rows) for every run of rows that see the same part of a page.
  template <typename F>
  void for_each_run(const F& f) const {
    for (std::size_t i = 0; i < a.most_pages; ++i) {
      for (std::size_t row = 0; row < a.rows;) {
        if (i >= a.page_counts[row]) {
          ++row;
          continue;
        }
        std::size_t end = row + 1;
        while (end < a.rows && i < a.page_counts[end] && same_view(a.pages[row][i], a.pages[end][i])) ++end;
        f(i, row, end - row);
        row = end;
      }
    }
  }

  void turn_queries() const {
    const std::size_t width = a.round->head_width;
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
    for (std::size_t row = 0; row < a.rows; ++row) {
      const float* query = a.query + row * a.query_stride + head * width;
      std::size_t offset = 0;
      for (std::size_t i = 0; i < a.page_counts[row]; ++i) {
        const VisiblePage& page = a.pages[row][i];
        const std::size_t table = page.turn * a.pairs;
        turn_query(query, width, scale, a.pairs, a.cos + table, a.sin + table, turned_query(row, i));
        offsets[row * a.most_pages + i] = offset;
        offset += block_count(page) * kBlock;
      }
    }
  }

  void score() const {
    for_each_run([this](std::size_t i, std::size_t first_row, std::size_t rows) {
      const VisiblePage& page = a.pages[first_row][i];
      const PageShape& s = shape(page);
      if (page.single) {
        for (std::size_t row = first_row; row < first_row + rows; ++row) {
          float* to = row_scores(row) + offsets[row * a.most_pages + i];
          to[0] = dot(turned_query(row, i), keys(page), s.head_width);
          for (int lane = 1; lane < kBlock; ++lane) to[lane] = -__builtin_inff();
        }
        return;
      }
      const float* from = keys(page) + first_block(page) * kBlock;
      const std::size_t blocks = block_count(page);
      for (std::size_t r = 0; r < rows; r += kScoreRows) {
        const std::size_t count = rows - r < kScoreRows ? rows - r : kScoreRows;
        const float* query[kScoreRows];
        float* to[kScoreRows];
        for (std::size_t j = 0; j < count; ++j) {
          query[j] = turned_query(first_row + r + j, i);
          to[j] = row_scores(first_row + r + j) + offsets[(first_row + r + j) * a.most_pages + i];
        }
        switch (count) {
          case 4: score_rows<4>(query, from, s.slots_padded, s.head_width, to, blocks); break;
          case 3: score_rows<3>(query, from, s.slots_padded, s.head_width, to, blocks); break;
          case 2: score_rows<2>(query, from, s.slots_padded, s.head_width, to, blocks); break;
          default: score_rows<1>(query, from, s.slots_padded, s.head_width, to, blocks); break;
        }
      }
      for (std::size_t row = first_row; row < first_row + rows; ++row) mask_edges(page, row, i);
    });
  }

  void mask_edges(const VisiblePage& page, std::size_t row, std::size_t i) const {
    float* to = row_scores(row) + offsets[row * a.most_pages + i];
    const std::size_t start = first_block(page) * kBlock, end = block_count(page) * kBlock;
    for (std::size_t s = 0; s < page.first - start; ++s) to[s] = -__builtin_inff();
    for (std::size_t s = page.end - start; s < end; ++s) to[s] = -__builtin_inff();
  }

  void exponentiate_rows() const {
    for (std::size_t row = 0; row < a.rows; ++row) {
      const std::size_t last = a.page_counts[row] - 1;
      const std::size_t count = offsets[row * a.most_pages + last] + block_count(a.pages[row][last]) * kBlock;
      const float inverse = 1.0f / exponentiate(row_scores(row), count);
      float* to = sums + row * a.round->head_padded;
      for (std::size_t d = 0; d < a.round->head_padded; ++d) to[d] = 0.0f;
      a.mixed[row * a.mixed_stride + head * a.round->head_width] = inverse;  // until finish() takes it up
    }
  }

  void mix() const {
    for_each_run([this](std::size_t i, std::size_t first_row, std::size_t rows) {
      const VisiblePage& page = a.pages[first_row][i];
      const PageShape& s = shape(page);
      const std::size_t skipped = page.single ? 0 : page.first - first_block(page) * kBlock;
      const float* from = values(page) + page.first * s.head_padded;
      const std::size_t slots = page.end - page.first, blocks = s.head_padded / kBlock;
      for (std::size_t r = 0; r < rows; r += kMixRows) {
        const std::size_t count = rows - r < kMixRows ? rows - r : kMixRows;
        const float* weights[kMixRows];
        float* to[kMixRows];
        for (std::size_t j = 0; j < count; ++j) {
          weights[j] = row_scores(first_row + r + j) + offsets[(first_row + r + j) * a.most_pages + i] + skipped;
          to[j] = sums + (first_row + r + j) * s.head_padded;
        }
        switch (count) {
          case 6: mix_rows<6>(weights, from, s.head_padded, slots, to, blocks); break;
          case 5: mix_rows<5>(weights, from, s.head_padded, slots, to, blocks); break;
          case 4: mix_rows<4>(weights, from, s.head_padded, slots, to, blocks); break;
          case 3: mix_rows<3>(weights, from, s.head_padded, slots, to, blocks); break;
          case 2: mix_rows<2>(weights, from, s.head_padded, slots, to, blocks); break;
          default: mix_rows<1>(weights, from, s.head_padded, slots, to, blocks); break;
        }
      }
    });
  }

  void finish() const {
    const std::size_t width = a.round->head_width;
    for (std::size_t row = 0; row < a.rows; ++row) {
      float* to = a.mixed + row * a.mixed_stride + head * width;
      const float inverse = to[0];
      const float* from = sums + row * a.round->head_padded;
      for (std::size_t d = 0; d < width; ++d) to[d] = from[d] * inverse;
    }
  }
};

inline void attend(const AttendArguments& a) {
  float* turned = a.scratch;
  float* scores = turned + a.rows * a.most_pages * a.round->head_width;
  float* sums = scores + a.rows * a.most_scores;
  for (std::size_t head = 0; head < a.round->heads; ++head) {
    const HeadPass pass{a, head, turned, scores, sums, a.offsets};
    pass.turn_queries();
    pass.score();
    pass.exponentiate_rows();
    pass.mix();
    pass.finish();
  }
}

inline void write_slot(const float* key, const float* value, const PageShape& shape, float* page, std::size_t layer,
                       std::size_t slot, std::size_t pairs, const float* cos, const float* sin, bool zero_turned) {
  float* keys = page + layer * shape.layer_floats + slot;
  float* values = page + layer * shape.layer_floats + shape.keys_floats + slot * shape.head_padded;
  const std::size_t width = shape.head_width, step = shape.slots_padded;
  for (std::size_t head = 0; head < shape.heads; ++head, key += width, value += width) {
    for (std::size_t p = 0; p < pairs; ++p) {
      const float a = key[p], b = key[pairs + p];
      keys[p * step] = zero_turned ? 0.0f : a * cos[p] - b * sin[p];
      keys[(pairs + p) * step] = zero_turned ? 0.0f : a * sin[p] + b * cos[p];
    }
    for (std::size_t d = 2 * pairs; d < width; ++d) keys[d * step] = key[d];
    for (std::size_t d = 0; d < shape.head_padded; ++d) values[d] = d < width ? value[d] : 0.0f;
    keys += width * step;
    values += shape.slots * shape.head_padded;
  }
}

}  // namespace ttengine::TTENGINE_ISA
