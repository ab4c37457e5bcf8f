// Attention over pages. Neighbouring rows that see the same part of the same page load its keys and values once.
#pragma once

#include "simd/kernels.h"
#include "simd/vec.h"

namespace ttengine::TTENGINE_ISA {

constexpr int kUnit = kLanes == 16 ? 16 : 8;  // slots, or dims of a value, in one vector
using Unit = FloatN<kUnit>;

// Sums run in two chains each, over even and odd terms, so that a lone row does not wait for its own additions. The
// tiles fill the registers: 32 of them with AVX-512, else 16.
constexpr int kScoreRows = kLanes == 16 ? 4 : 2, kScoreUnits = 3;
constexpr int kMixRows = kLanes == 16 ? 4 : 3, kMixUnits = 2;

// One vector; of a half, eight lanes are read and the others are zero.
template <bool Half>
inline Unit load_unit(const float* from) {
#if defined(__AVX512F__)
  if constexpr (Half) return _mm512_zextps256_ps512(load<8>(from));
#endif
  return load<kUnit>(from);
}

// From one dim of a block's keys to the next, and where one head's keys of a block begin.
inline std::size_t key_stride(const PageShape& shape, std::size_t block) {
  const std::size_t left = padded_slots(shape.slots) - block * kSlotBlock;
  return left < kSlotBlock ? left : kSlotBlock;
}
inline std::size_t key_offset(const PageShape& shape, std::size_t block, std::size_t head) {
  return (block * shape.heads * kSlotBlock + head * key_stride(shape, block)) * shape.head_width;
}

// Where a vector of keys lies: one dim is `stride` floats from the next.
struct KeyUnit {
  const float* keys;
  std::size_t stride;
};

// Scores of R rows against C vectors of slots, the last of which may be a half.
template <int R, int C, bool Half>
inline void score_tile(const float* const* query, const KeyUnit* units, std::size_t width, float* const* scores) {
  Unit total[2][R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) total[0][r][c] = total[1][r][c] = splat<kUnit>(0.0f);
  const float* keys[C];
  for (int c = 0; c < C; ++c) keys[c] = units[c].keys;
  for (std::size_t d = 0; d < width; d += 2) {
    for (int chain = 0; chain < 2; ++chain) {
      if (chain == 1 && d + 1 == width) break;
      Unit key[C];
      for (int c = 0; c < C; ++c) {
        key[c] = c == C - 1 ? load_unit<Half>(keys[c]) : load_unit<false>(keys[c]);
        keys[c] += units[c].stride;
      }
      for (int r = 0; r < R; ++r) {
        const Unit q = splat<kUnit>(query[r][d + chain]);
        for (int c = 0; c < C; ++c) total[chain][r][c] = fma_lanes<kUnit>(q, key[c], total[chain][r][c]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<kUnit>(scores[r] + c * kUnit, total[0][r][c] + total[1][r][c]);
}

template <int R>
inline void score_rows(const float* const* query, const KeyUnit* units, std::size_t count, bool half, std::size_t width,
                       float* const* scores) {
  constexpr bool kHalves = kUnit > 8;
  switch (count) {
    case 1:
      half ? score_tile<R, 1, kHalves>(query, units, width, scores)
           : score_tile<R, 1, false>(query, units, width, scores);
      break;
    case 2:
      half ? score_tile<R, 2, kHalves>(query, units, width, scores)
           : score_tile<R, 2, false>(query, units, width, scores);
      break;
    default:
      half ? score_tile<R, 3, kHalves>(query, units, width, scores)
           : score_tile<R, 3, false>(query, units, width, scores);
      break;
  }
}

// Adds weights times values of `count` slots to R rows' sums, C vectors of dims each, the last of which may be a half.
template <int R, int C, bool Half>
inline void mix_tile(const float* const* weights, const float* values, std::size_t stride, std::size_t count,
                     float* const* sums) {
  Unit total[2][R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      total[0][r][c] = load<kUnit>(sums[r] + c * kUnit);
      total[1][r][c] = splat<kUnit>(0.0f);
    }
  }
  for (std::size_t s = 0; s < count; s += 2) {
    for (int chain = 0; chain < 2; ++chain, values += stride) {
      if (chain == 1 && s + 1 == count) break;
      Unit value[C];
      for (int c = 0; c < C; ++c) {
        const float* from = values + c * kUnit;
        value[c] = c == C - 1 ? load_unit<Half>(from) : load_unit<false>(from);
      }
      for (int r = 0; r < R; ++r) {
        const Unit w = splat<kUnit>(weights[r][s + chain]);
        for (int c = 0; c < C; ++c) total[chain][r][c] = fma_lanes<kUnit>(w, value[c], total[chain][r][c]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<kUnit>(sums[r] + c * kUnit, total[0][r][c] + total[1][r][c]);
}

template <int R>
inline void mix_rows(const float* const* weights, const float* values, std::size_t padded, std::size_t count,
                     float* const* sums) {
  float* to[R];
  for (std::size_t d = 0; d < padded; d += kMixUnits * kUnit) {
    for (int r = 0; r < R; ++r) to[r] = sums[r] + d;
    const std::size_t left = padded - d;
    if (left >= 2 * kUnit) {
      mix_tile<R, 2, false>(weights, values + d, padded, count, to);
    } else if (left > kUnit) {  // only vectors of sixteen have halves
      mix_tile<R, 2, kUnit == 16>(weights, values + d, padded, count, to);
    } else if (left == kUnit) {
      mix_tile<R, 1, false>(weights, values + d, padded, count, to);
    } else {
      mix_tile<R, 1, kUnit == 16>(weights, values + d, padded, count, to);
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
  constexpr int kStep = 8;
  std::size_t p = 0;
  for (; p + kStep <= pairs; p += kStep) {
    const auto a = load<kStep>(query + p) * splat<kStep>(scale);
    const auto b = load<kStep>(query + pairs + p) * splat<kStep>(scale);
    const auto c = load<kStep>(cos + p), s = load<kStep>(sin + p);
    store<kStep>(turned + p, a * c - b * s);
    store<kStep>(turned + pairs + p, a * s + b * c);
  }
  for (; p < pairs; ++p) {
    const float a = query[p] * scale, b = query[pairs + p] * scale;
    turned[p] = a * cos[p] - b * sin[p];
    turned[pairs + p] = a * sin[p] + b * cos[p];
  }
  std::size_t d = 2 * pairs;
  for (; d + kStep <= width; d += kStep) store<kStep>(turned + d, load<kStep>(query + d) * splat<kStep>(scale));
  for (; d < width; ++d) turned[d] = query[d] * scale;
}

// e^(score - highest) in place, over whole vectors; returns their sum.
inline float exponentiate(float* scores, std::size_t count) {
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

// Scores of a page: whole blocks, from that of its first visible slot.
inline std::size_t score_width(const VisiblePage& page) {
  return page.single ? 1 : round_up(page.end, kSlotBlock) - page.first / kSlotBlock * kSlotBlock;
}

inline bool same_view(const VisiblePage& a, const VisiblePage& b) {
  return a.page == b.page && a.first == b.first && a.end == b.end;
}

// A block of rows, one head at a time: a head's scores stay in the first cache.
struct Pass {
  const AttendArguments& a;
  std::size_t runs;
  float *turned, *scores, *sums, *inverse;  // [rows][head_width], [rows][most_scores], [rows][sum_stride], [rows]
  std::size_t sum_stride;
  float scale;  // of scores

  const PageShape& shape(const VisiblePage& page) const { return page.single ? *a.single : *a.round; }
  const float* keys(const VisiblePage& page) const { return page.page + a.layer * shape(page).layer_floats; }
  const float* values(const VisiblePage& page, std::size_t head) const {  // of the first visible slot
    const PageShape& s = shape(page);
    return keys(page) + s.keys_floats + (head * s.slots + page.first) * s.head_padded;
  }
  const VisiblePage& page_of(const PageRun& run) const { return a.pages[run.first_row][run.page]; }
  float* page_scores(std::size_t row, std::size_t i) const {
    return scores + row * a.most_scores + a.offsets[row * a.most_pages + i];
  }

  std::size_t score_count(std::size_t row) const {  // whole vectors
    const std::size_t last = a.page_counts[row] - 1;
    return round_up(a.offsets[row * a.most_pages + last] + score_width(a.pages[row][last]), kLanes);
  }

  void score(const PageRun& run, std::size_t head) const {
    const VisiblePage& page = page_of(run);
    const PageShape& s = shape(page);
    const std::size_t end = run.first_row + run.rows, width = s.head_width;
    for (std::size_t row = run.first_row; row < end; ++row) {
      const std::size_t table = a.pages[row][run.page].turn * a.pairs;
      turn_query(a.query + row * a.query_stride + head * width, width, scale, a.pairs, a.cos + table, a.sin + table,
                 turned + row * width);
    }
    if (page.single) {
      const float* from = keys(page) + head * width;
      for (std::size_t row = run.first_row; row < end; ++row) {
        float* to = page_scores(row, run.page);
        if ((to - scores) % kSlotBlock == 0) hide(to, 0, kSlotBlock);  // the first of its vector
        *to = dot(turned + row * width, from, width);
      }
      return;
    }
    constexpr std::size_t kPerBlock = kSlotBlock / kUnit;
    const std::size_t start = page.first / kSlotBlock * kPerBlock;
    for (std::size_t u = start; u * kUnit < page.end;) {
      KeyUnit units[kScoreUnits];
      std::size_t count = 0;
      const std::size_t at = (u - start) * kUnit;
      for (; u * kUnit < page.end && count < kScoreUnits; ++u, ++count) {
        const std::size_t block = u / kPerBlock;
        units[count] = {keys(page) + key_offset(s, block, head) + u % kPerBlock * kUnit, key_stride(s, block)};
      }
      score_units(run, units, count, units[count - 1].stride < kSlotBlock, at);
    }
    for (std::size_t row = run.first_row; row < end; ++row) hide_edges(page, page_scores(row, run.page));
  }

  void score_units(const PageRun& run, const KeyUnit* units, std::size_t count, bool half, std::size_t at) const {
    const std::size_t width = a.round->head_width;
    for (std::size_t r = 0; r < run.rows; r += kScoreRows) {
      const std::size_t rows = run.rows - r < kScoreRows ? run.rows - r : kScoreRows;
      const float* query[kScoreRows];
      float* to[kScoreRows];
      for (std::size_t j = 0; j < rows; ++j) {
        query[j] = turned + (run.first_row + r + j) * width;
        to[j] = page_scores(run.first_row + r + j, run.page) + at;
      }
      switch (rows) {
        case 4:
          if constexpr (kScoreRows > 2) score_rows<4>(query, units, count, half, width, to);
          break;
        case 3:
          if constexpr (kScoreRows > 2) score_rows<3>(query, units, count, half, width, to);
          break;
        case 2:
          score_rows<2>(query, units, count, half, width, to);
          break;
        default:
          score_rows<1>(query, units, count, half, width, to);
          break;
      }
    }
  }

  // Slots of the first and the last block that the row does not see.
  static void hide_edges(const VisiblePage& page, float* to) {
    const std::size_t start = page.first / kSlotBlock * kSlotBlock;
    hide(to, 0, page.first - start);
    hide(to, page.end - start, score_width(page));
  }
  static void hide(float* scores, std::size_t from, std::size_t to) {
    for (; from < to; ++from) scores[from] = -__builtin_inff();
  }

  void mix(const PageRun& run, std::size_t head) const {
    const VisiblePage& page = page_of(run);
    const std::size_t skipped = page.single ? 0 : page.first % kSlotBlock, padded = a.round->head_padded;
    const float* from = values(page, head);
    const std::size_t slots = page.end - page.first;
    for (std::size_t r = 0; r < run.rows; r += kMixRows) {
      const std::size_t rows = run.rows - r < kMixRows ? run.rows - r : kMixRows;
      const float* weights[kMixRows];
      float* to[kMixRows];
      for (std::size_t j = 0; j < rows; ++j) {
        weights[j] = page_scores(run.first_row + r + j, run.page) + skipped;
        to[j] = sums + (run.first_row + r + j) * sum_stride;
      }
      switch (rows) {
        case 4:
          if constexpr (kMixRows > 3) mix_rows<4>(weights, from, padded, slots, to);
          break;
        case 3:
          mix_rows<3>(weights, from, padded, slots, to);
          break;
        case 2:
          mix_rows<2>(weights, from, padded, slots, to);
          break;
        default:
          mix_rows<1>(weights, from, padded, slots, to);
          break;
      }
    }
  }

  void attend(std::size_t head) const {
    for (std::size_t i = 0; i < runs; ++i) score(a.runs[i], head);
    const std::size_t width = a.round->head_width;
    for (std::size_t row = 0; row < a.rows; ++row) {
      for (std::size_t d = 0; d < sum_stride; d += kLanes) store(sums + row * sum_stride + d, splat(0.0f));
      inverse[row] = 1.0f / exponentiate(scores + row * a.most_scores, score_count(row));
    }
    for (std::size_t i = 0; i < runs; ++i) mix(a.runs[i], head);
    for (std::size_t row = 0; row < a.rows; ++row) {
      float* to = a.mixed + row * a.mixed_stride + head * width;
      for (std::size_t d = 0; d < width; ++d) to[d] = sums[row * sum_stride + d] * inverse[row];
    }
  }
};

// Finds the runs of rows that see the same part of a page, and where each row's scores of each page go.
inline std::size_t find_runs(const AttendArguments& a) {
  std::size_t count = 0;
  for (std::size_t row = 0; row < a.rows; ++row) {
    std::size_t offset = 0;
    for (std::size_t i = 0; i < a.page_counts[row]; ++i) {
      const VisiblePage& page = a.pages[row][i];
      if (!page.single) offset = round_up(offset, kSlotBlock);
      a.offsets[row * a.most_pages + i] = static_cast<std::uint32_t>(offset);
      offset += score_width(page);
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
  float* turned = a.scratch;
  float* scores = turned + round_up(a.rows * a.round->head_width, kRowAlign);
  float* sums = scores + a.rows * a.most_scores;
  const std::size_t sum_stride = round_up(a.round->head_padded, kRowAlign);
  const Pass pass{a,          find_runs(a),
                  turned,     scores,
                  sums,       sums + a.rows * sum_stride,
                  sum_stride, 1.0f / __builtin_sqrtf(static_cast<float>(a.round->head_width))};
  for (std::size_t head = 0; head < a.round->heads; ++head) pass.attend(head);
}

inline void write_slot(const float* key, const float* value, const PageShape& shape, float* page, std::size_t layer,
                       std::size_t slot, std::size_t pairs, const float* cos, const float* sin, bool zero_turned) {
  const std::size_t width = shape.head_width, block = slot / kSlotBlock;
  const std::size_t step = shape.slots == 1 ? 1 : key_stride(shape, block);
  float* layer_keys = page + layer * shape.layer_floats;
  float* values = layer_keys + shape.keys_floats + slot * shape.head_padded;
  const auto head_keys = [&](std::size_t head) {
    return layer_keys + (shape.slots == 1 ? head * width : key_offset(shape, block, head) + slot % kSlotBlock);
  };
  for (std::size_t head = 0; head < shape.heads; ++head) {  // every dim lies in a cache line of its own: fetch them all
    for (std::size_t d = 0; d < width; ++d) __builtin_prefetch(head_keys(head) + d * step, 1);
  }
  for (std::size_t head = 0; head < shape.heads; ++head, key += width, value += width) {
    float* keys = head_keys(head);
    for (std::size_t p = 0; p < pairs; ++p) {
      const float a = key[p], b = key[pairs + p];
      keys[p * step] = zero_turned ? 0.0f : a * cos[p] - b * sin[p];
      keys[(pairs + p) * step] = zero_turned ? 0.0f : a * sin[p] + b * cos[p];
    }
    for (std::size_t d = 2 * pairs; d < width; ++d) keys[d * step] = key[d];
    for (std::size_t d = 0; d < width; ++d) values[d] = value[d];
    for (std::size_t d = width; d < shape.head_padded; ++d) values[d] = 0.0f;
    values += shape.slots * shape.head_padded;
  }
}

}  // namespace ttengine::TTENGINE_ISA
