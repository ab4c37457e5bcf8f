// Attention over pages. Neighbouring rows that see the same part of the same page load its keys and values once.
#pragma once

#include "simd/kernels.h"
#include "simd/vec.h"

namespace ttengine::TTENGINE_ISA {

constexpr int kBlock = kSlotBlock;  // slots, or dims of a value, that are taken together
using Block = FloatN<kBlock>;

// Sums run in two chains each, over even and odd terms, so that a lone row does not wait for its own additions. The
// tiles fill the registers: 32 of them with AVX-512, else 16.
constexpr int kScoreRows = kLanes == 16 ? 4 : 2, kScoreBlocks = 3;
constexpr int kMixRows = 3, kMixBlocks = kLanes == 16 ? 4 : 2;

// Scores of R rows against C blocks of slots, `stride` floats apart.
template <int R, int C>
inline void score_tile(const float* const* query, const float* keys, std::size_t stride, std::size_t width,
                       float* const* scores) {
  Block even[R][C], odd[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) even[r][c] = odd[r][c] = splat<kBlock>(0.0f);
  const auto add = [&](Block(&total)[R][C], std::size_t d) {
    Block key[C];
    for (int c = 0; c < C; ++c) key[c] = load<kBlock>(keys + c * stride + d * kBlock);
    for (int r = 0; r < R; ++r) {
      const Block q = splat<kBlock>(query[r][d]);
      for (int c = 0; c < C; ++c) total[r][c] = fma_lanes<kBlock>(q, key[c], total[r][c]);
    }
  };
  std::size_t d = 0;
  for (; d + 2 <= width; d += 2) {
    add(even, d);
    add(odd, d + 1);
  }
  if (d < width) add(even, d);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<kBlock>(scores[r] + c * kBlock, even[r][c] + odd[r][c]);
}

template <int R>
inline void score_rows(const float* const* query, const float* keys, std::size_t stride, std::size_t width,
                       float* const* scores, std::size_t blocks) {
  float* to[R];
  for (std::size_t b = 0; b < blocks; b += kScoreBlocks) {
    for (int r = 0; r < R; ++r) to[r] = scores[r] + b * kBlock;
    switch (blocks - b) {
      case 1:
        score_tile<R, 1>(query, keys + b * stride, stride, width, to);
        break;
      case 2:
        score_tile<R, 2>(query, keys + b * stride, stride, width, to);
        break;
      default:
        score_tile<R, kScoreBlocks>(query, keys + b * stride, stride, width, to);
        break;
    }
  }
}

// Adds weights times values of `count` slots to R rows' sums, C blocks of dims each.
template <int R, int C>
inline void mix_tile(const float* const* weights, const float* values, std::size_t stride, std::size_t count,
                     float* const* mixed) {
  Block even[R][C], odd[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      even[r][c] = load<kBlock>(mixed[r] + c * kBlock);
      odd[r][c] = splat<kBlock>(0.0f);
    }
  }
  const auto add = [&](Block(&total)[R][C], std::size_t s) {
    Block value[C];
    for (int c = 0; c < C; ++c) value[c] = load<kBlock>(values + s * stride + c * kBlock);
    for (int r = 0; r < R; ++r) {
      const Block w = splat<kBlock>(weights[r][s]);
      for (int c = 0; c < C; ++c) total[r][c] = fma_lanes<kBlock>(w, value[c], total[r][c]);
    }
  };
  std::size_t s = 0;
  for (; s + 2 <= count; s += 2) {
    add(even, s);
    add(odd, s + 1);
  }
  if (s < count) add(even, s);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<kBlock>(mixed[r] + c * kBlock, even[r][c] + odd[r][c]);
}

template <int R>
inline void mix_rows(const float* const* weights, const float* values, std::size_t stride, std::size_t count,
                     float* const* mixed, std::size_t blocks) {
  float* to[R];
  for (std::size_t b = 0; b < blocks; b += kMixBlocks) {
    for (int r = 0; r < R; ++r) to[r] = mixed[r] + b * kBlock;
    switch (blocks - b < kMixBlocks ? blocks - b : kMixBlocks) {
      case 1:
        mix_tile<R, 1>(weights, values + b * kBlock, stride, count, to);
        break;
      case 2:
        mix_tile<R, 2>(weights, values + b * kBlock, stride, count, to);
        break;
      case 3:
        if constexpr (kMixBlocks > 2) mix_tile<R, 3>(weights, values + b * kBlock, stride, count, to);
        break;
      default:
        if constexpr (kMixBlocks > 2) mix_tile<R, 4>(weights, values + b * kBlock, stride, count, to);
        break;
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
  std::size_t p = 0;
  for (; p + kBlock <= pairs; p += kBlock) {
    const Block a = load<kBlock>(query + p) * splat<kBlock>(scale);
    const Block b = load<kBlock>(query + pairs + p) * splat<kBlock>(scale);
    const Block c = load<kBlock>(cos + p), s = load<kBlock>(sin + p);
    store<kBlock>(turned + p, a * c - b * s);
    store<kBlock>(turned + pairs + p, a * s + b * c);
  }
  for (; p < pairs; ++p) {
    const float a = query[p] * scale, b = query[pairs + p] * scale;
    turned[p] = a * cos[p] - b * sin[p];
    turned[pairs + p] = a * sin[p] + b * cos[p];
  }
  std::size_t d = 2 * pairs;
  for (; d + kBlock <= width; d += kBlock) store<kBlock>(turned + d, load<kBlock>(query + d) * splat<kBlock>(scale));
  for (; d < width; ++d) turned[d] = query[d] * scale;
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

// A block of rows; heads side by side in all scratch.
struct Pass {
  const AttendArguments& a;
  float *turned, *scores, *sums;
  float* inverses;  // [rows][heads], of the sums of exponentials

  const PageShape& shape(const VisiblePage& page) const { return page.single ? *a.single : *a.round; }
  const float* keys(const VisiblePage& page, std::size_t head) const {  // of the first visible block
    const PageShape& s = shape(page);
    const float* layer = page.page + a.layer * s.layer_floats;
    if (page.single) return layer + head * s.head_width;
    return layer + (first_block(page) * s.heads + head) * s.head_width * kBlock;
  }
  const float* values(const VisiblePage& page, std::size_t head) const {  // of the first visible slot
    const PageShape& s = shape(page);
    const float* layer = page.page + a.layer * s.layer_floats + s.keys_floats;
    return layer + (head * s.slots + page.first) * s.head_padded;
  }
  float* turned_query(std::size_t row, std::size_t i, std::size_t head) const {
    return turned + ((row * a.most_pages + i) * a.round->heads + head) * a.round->head_width;
  }
  float* row_scores(std::size_t row, std::size_t head) const {
    return scores + (row * a.round->heads + head) * a.most_scores;
  }
  float* page_scores(std::size_t row, std::size_t i, std::size_t head) const {
    return row_scores(row, head) + a.offsets[row * a.most_pages + i];
  }
  float* row_sums(std::size_t row, std::size_t head) const {
    return sums + (row * a.round->heads + head) * a.round->head_padded;
  }

  void turn_queries() const {
    const std::size_t width = a.round->head_width;
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
    for (std::size_t row = 0; row < a.rows; ++row) {
      for (std::size_t i = 0; i < a.page_counts[row]; ++i) {
        const std::size_t table = a.pages[row][i].turn * a.pairs;
        for (std::size_t head = 0; head < a.round->heads; ++head) {
          turn_query(a.query + row * a.query_stride + head * width, width, scale, a.pairs, a.cos + table, a.sin + table,
                     turned_query(row, i, head));
        }
      }
    }
  }

  // Asks for the keys (or values) of a page before their turn comes: pages lie far apart, out of the prefetchers'
  // sight.
  void fetch_keys(const VisiblePage& page, std::size_t head) const {
    const PageShape& s = shape(page);
    const std::size_t bytes = s.head_width * (page.single ? 1 : kBlock) * sizeof(float);
    const std::size_t stride = s.heads * s.head_width * kBlock;
    for (std::size_t b = 0; b < block_count(page); ++b) fetch(keys(page, head) + b * stride, bytes);
  }
  void fetch_values(const VisiblePage& page, std::size_t head) const {
    fetch(values(page, head), (page.end - page.first) * shape(page).head_padded * sizeof(float));
  }
  static void fetch(const float* from, std::size_t bytes) {
    const auto* line = reinterpret_cast<const char*>(from);
    for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i);
  }
  const VisiblePage& page_of(const PageRun& run) const { return a.pages[run.first_row][run.page]; }

  void score(const PageRun& run, std::size_t head) const {
    const VisiblePage& page = page_of(run);
    const PageShape& s = shape(page);
    const float* from = keys(page, head);
    if (page.single) {
      for (std::size_t row = run.first_row; row < run.first_row + run.rows; ++row) {
        float* to = page_scores(row, run.page, head);
        to[0] = dot(turned_query(row, run.page, head), from, s.head_width);
        for (int lane = 1; lane < kBlock; ++lane) to[lane] = -__builtin_inff();
      }
      return;
    }
    const std::size_t blocks = block_count(page), stride = s.heads * s.head_width * kBlock;
    for (std::size_t r = 0; r < run.rows; r += kScoreRows) {
      const std::size_t count = run.rows - r < kScoreRows ? run.rows - r : kScoreRows;
      const float* query[kScoreRows];
      float* to[kScoreRows];
      for (std::size_t j = 0; j < count; ++j) {
        query[j] = turned_query(run.first_row + r + j, run.page, head);
        to[j] = page_scores(run.first_row + r + j, run.page, head);
      }
      switch (count) {
        case 4:
          if constexpr (kScoreRows > 2) score_rows<4>(query, from, stride, s.head_width, to, blocks);
          break;
        case 3:
          if constexpr (kScoreRows > 2) score_rows<3>(query, from, stride, s.head_width, to, blocks);
          break;
        case 2:
          score_rows<2>(query, from, stride, s.head_width, to, blocks);
          break;
        default:
          score_rows<1>(query, from, stride, s.head_width, to, blocks);
          break;
      }
      for (std::size_t j = 0; j < count; ++j) mask_edges(page, to[j]);
    }
  }

  // Slots of the first and the last block that the row does not see.
  static void mask_edges(const VisiblePage& page, float* to) {
    const std::size_t start = first_block(page) * kBlock, end = block_count(page) * kBlock;
    for (std::size_t s = 0; s < page.first - start; ++s) to[s] = -__builtin_inff();
    for (std::size_t s = page.end - start; s < end; ++s) to[s] = -__builtin_inff();
  }

  void exponentiate_rows() const {
    for (std::size_t row = 0; row < a.rows; ++row) {
      const std::size_t last = a.page_counts[row] - 1;
      const std::size_t count = a.offsets[row * a.most_pages + last] + block_count(a.pages[row][last]) * kBlock;
      for (std::size_t head = 0; head < a.round->heads; ++head) {
        inverses[row * a.round->heads + head] = 1.0f / exponentiate(row_scores(row, head), count);
        float* to = row_sums(row, head);
        for (std::size_t d = 0; d < a.round->head_padded; ++d) to[d] = 0.0f;
      }
    }
  }

  void mix(const PageRun& run, std::size_t head) const {
    const VisiblePage& page = page_of(run);
    const PageShape& s = shape(page);
    const std::size_t skipped = page.single ? 0 : page.first - first_block(page) * kBlock;
    const float* from = values(page, head);
    const std::size_t slots = page.end - page.first, blocks = s.head_padded / kBlock;
    for (std::size_t r = 0; r < run.rows; r += kMixRows) {
      const std::size_t count = run.rows - r < kMixRows ? run.rows - r : kMixRows;
      const float* weights[kMixRows];
      float* to[kMixRows];
      for (std::size_t j = 0; j < count; ++j) {
        weights[j] = page_scores(run.first_row + r + j, run.page, head) + skipped;
        to[j] = row_sums(run.first_row + r + j, head);
      }
      switch (count) {
        case 3:
          mix_rows<3>(weights, from, s.head_padded, slots, to, blocks);
          break;
        case 2:
          mix_rows<2>(weights, from, s.head_padded, slots, to, blocks);
          break;
        default:
          mix_rows<1>(weights, from, s.head_padded, slots, to, blocks);
          break;
      }
    }
  }

  void finish() const {
    const std::size_t width = a.round->head_width;
    for (std::size_t row = 0; row < a.rows; ++row) {
      for (std::size_t head = 0; head < a.round->heads; ++head) {
        float* to = a.mixed + row * a.mixed_stride + head * width;
        const float* from = row_sums(row, head);
        for (std::size_t d = 0; d < width; ++d) to[d] = from[d] * inverses[row * a.round->heads + head];
      }
    }
  }
};

// Finds the runs of rows that see the same part of a page, and where each row's scores of each page go.
inline std::size_t find_runs(const AttendArguments& a) {
  std::size_t count = 0;
  for (std::size_t row = 0; row < a.rows; ++row) {
    std::uint32_t offset = 0;
    for (std::size_t i = 0; i < a.page_counts[row]; ++i) {
      a.offsets[row * a.most_pages + i] = offset;
      offset += static_cast<std::uint32_t>(block_count(a.pages[row][i]) * kBlock);
    }
  }
  for (std::size_t i = 0; i < a.most_pages; ++i) {
    for (std::size_t row = 0; row < a.rows;) {
      std::size_t end = row + 1;
      if (i < a.page_counts[row]) {
        while (end < a.rows && i < a.page_counts[end] && same_view(a.pages[row][i], a.pages[end][i])) ++end;
        a.runs[count++] = {static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(row),
                           static_cast<std::uint32_t>(end - row)};
      }
      row = end;
    }
  }
  return count;
}

inline void attend(const AttendArguments& a) {
  const std::size_t heads = a.round->heads;
  float* turned = a.scratch;
  float* scores = turned + a.rows * a.most_pages * heads * a.round->head_width;
  float* sums = scores + a.rows * heads * a.most_scores;
  const Pass pass{a, turned, scores, sums, sums + a.rows * heads * a.round->head_padded};
  const std::size_t runs = find_runs(a);
  pass.turn_queries();
  for (std::size_t i = 0; i < runs; ++i) {
    for (std::size_t head = 0; head < heads; ++head) {
      if (i + 1 < runs) pass.fetch_keys(pass.page_of(a.runs[i + 1]), head);
      pass.score(a.runs[i], head);
    }
  }
  pass.exponentiate_rows();
  for (std::size_t i = 0; i < runs; ++i) {
    for (std::size_t head = 0; head < heads; ++head) {
      if (i + 1 < runs) pass.fetch_values(pass.page_of(a.runs[i + 1]), head);
      pass.mix(a.runs[i], head);
    }
  }
  pass.finish();
}

inline void write_slot(const float* key, const float* value, const PageShape& shape, float* page, std::size_t layer,
                       std::size_t slot, std::size_t pairs, const float* cos, const float* sin, bool zero_turned) {
  const std::size_t width = shape.head_width, step = shape.slots == 1 ? 1 : kBlock;
  float* keys = page + layer * shape.layer_floats;
  float* values = keys + shape.keys_floats + slot * shape.head_padded;
  if (shape.slots > 1) keys += slot / kBlock * shape.heads * width * kBlock + slot % kBlock;
  for (std::size_t head = 0; head < shape.heads; ++head, key += width, value += width) {
    for (std::size_t p = 0; p < pairs; ++p) {
      const float a = key[p], b = key[pairs + p];
      keys[p * step] = zero_turned ? 0.0f : a * cos[p] - b * sin[p];
      keys[(pairs + p) * step] = zero_turned ? 0.0f : a * sin[p] + b * cos[p];
    }
    for (std::size_t d = 2 * pairs; d < width; ++d) keys[d * step] = key[d];
    for (std::size_t d = 0; d < width; ++d) values[d] = value[d];
    for (std::size_t d = width; d < shape.head_padded; ++d) values[d] = 0.0f;
    keys += width * step;
    values += shape.slots * shape.head_padded;
  }
}

}  // namespace ttengine::TTENGINE_ISA
