// Register-tiled matrix products: a tile of rows times a panel of packed weights.
#pragma once

#include "simd/ahead_impl.h"
#include "simd/kernels.h"
#include "simd/vec.h"

namespace ttengine::TTENGINE_ISA {

// 6 x 4 vectors of sums fill the 32 registers of AVX-512, 6 x 2 the 16 of AVX2 and SSE, with room for the operands.
constexpr int kTileRows = 6;
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;
constexpr std::size_t kPanel = kTileVectors * kLanes;

// `next`: what is read after this panel, a line of it for each of the k steps.
template <int R, int C>
inline void tile(const float* a, std::size_t a_stride, const float* b, std::size_t k, const float* bias, float* c,
                 std::size_t c_stride, Epilogue epilogue, const float* next, Ahead& ahead) {
  Vec total[R][C];
  for (int v = 0; v < C; ++v) {
    const Vec start = bias != nullptr ? load(bias + v * kLanes) : splat(0.0f);
    for (int r = 0; r < R; ++r) total[r][v] = start;
  }
  const auto step = [&](std::size_t i) {
    fetch(next + i * kLine);
    Vec column[C];
    for (int v = 0; v < C; ++v) column[v] = load(b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec x = splat(a[r * a_stride + i]);
      for (int v = 0; v < C; ++v) total[r][v] = fma(x, column[v], total[r][v]);
    }
    b += C * kLanes;
  };
  std::size_t i = 0;
  while (i < k && ahead.range != ahead.end) {
    Piece piece = take(ahead, k - i);
    for (const std::size_t end = i + piece.lines; i < end; ++i, piece.from += kLine) {
      fetch(piece.from);
      step(i);
    }
  }
  for (; i < k; ++i) step(i);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < C; ++v) {
      float* to = c + r * c_stride + v * kLanes;
      if (epilogue == Epilogue::gelu) total[r][v] = gelu(total[r][v]);
      if (epilogue == Epilogue::add) total[r][v] += load(to);
      store(to, total[r][v]);
    }
  }
}

template <int C>
inline void panel(const float* a, std::size_t a_stride, std::size_t rows, const float* b, std::size_t k,
                  const float* bias, float* c, std::size_t c_stride, Epilogue epilogue, const float* next,
                  Ahead& ahead) {
  // the first tiles ask for the next panel, as long as this one, a line a step; the others for what is there by now
  constexpr std::size_t kTiles = C * kLanes / kLine > 0 ? C * kLanes / kLine : 1;
  for (std::size_t t = 0;; ++t, rows -= kTileRows, a += kTileRows * a_stride, c += kTileRows * c_stride) {
    const float* wanted = next + (t < kTiles ? t : 0) * k * kLine;
    switch (rows) {
      case 0:
        return;
      case 1:
        return tile<1, C>(a, a_stride, b, k, bias, c, c_stride, epilogue, wanted, ahead);
      case 2:
        return tile<2, C>(a, a_stride, b, k, bias, c, c_stride, epilogue, wanted, ahead);
      case 3:
        return tile<3, C>(a, a_stride, b, k, bias, c, c_stride, epilogue, wanted, ahead);
      case 4:
        return tile<4, C>(a, a_stride, b, k, bias, c, c_stride, epilogue, wanted, ahead);
      case 5:
        return tile<5, C>(a, a_stride, b, k, bias, c, c_stride, epilogue, wanted, ahead);
      default:
        tile<6, C>(a, a_stride, b, k, bias, c, c_stride, epilogue, wanted, ahead);
        break;
    }
  }
}

inline void matmul(const float* a, std::size_t a_stride, std::size_t rows, const PackedMatrix& b, float* c,
                   std::size_t c_stride, Epilogue epilogue, Ahead& ahead) {
  const float* weights = b.weights;
  for (std::size_t n = 0; n < b.n_padded; n += kPanel, weights += kPanel * b.k) {
    const float* bias = b.bias != nullptr ? b.bias + n : nullptr;
    const float* next = n + kPanel < b.n_padded ? weights + kPanel * b.k : b.next != nullptr ? b.next : b.weights;
    switch (b.n_padded - n < kPanel ? (b.n_padded - n) / kLanes : kTileVectors) {
      case 4:
        if constexpr (kTileVectors >= 4) {
          panel<4>(a, a_stride, rows, weights, b.k, bias, c + n, c_stride, epilogue, next, ahead);
        }
        break;
      case 3:
        if constexpr (kTileVectors >= 4) {
          panel<3>(a, a_stride, rows, weights, b.k, bias, c + n, c_stride, epilogue, next, ahead);
        }
        break;
      case 2:
        panel<2>(a, a_stride, rows, weights, b.k, bias, c + n, c_stride, epilogue, next, ahead);
        break;
      default:
        panel<1>(a, a_stride, rows, weights, b.k, bias, c + n, c_stride, epilogue, next, ahead);
        break;
    }
  }
}

}  // namespace ttengine::TTENGINE_ISA
