// Asking for memory before its turn comes.
#pragma once

#include "simd/kernels.h"

namespace ttengine::TTENGINE_ISA {

constexpr std::size_t kLine = 16;  // floats

inline void fetch(const float* from) { __builtin_prefetch(from, 0, 2); }

// The next piece of what is wanted, of at most so many lines.
struct Piece {
  const float* from;
  std::size_t lines;
};
inline Piece take(Ahead& ahead, std::size_t most) {
  if (ahead.range == ahead.end) return {nullptr, 0};
  const Piece piece{ahead.range->from + ahead.shift + ahead.done, most};
  const std::size_t left = (ahead.range->floats - ahead.done + kLine - 1) / kLine;
  if (left > most) {
    ahead.done += most * kLine;
    return piece;
  }
  ++ahead.range;
  ahead.done = 0;
  return {piece.from, left};
}

}  // namespace ttengine::TTENGINE_ISA
