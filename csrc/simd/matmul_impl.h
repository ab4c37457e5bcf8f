// Register-tiled matrix products: a tile of rows times a panel of packed weights.
#pragma once

#include "simd/kernels.h"
#include "simd/vec.h"

namespace ttengine::TTENGINE_ISA {

// 6 x 4 vectors of sums fill the 32 registers of AVX-512, 6 x 2 the 16 of AVX2 and SSE, with room for the operands.
constexpr int kTileRows = 6;
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;
constexpr std::size_t kPanel = kTileVectors * kLanes;

template <int R, int C>
inline void tile(const float* a, std::size_t a_stride, const float* b, std::size_t k, const float* bias, float* c,
                 std::size_t c_stride, Epilogue epilogue) {
  Vec total[R][C];
  for (int v = 0; v < C; ++v) {
    const Vec start = bias != nullptr ? load(bias + v * kLanes) : splat(0.0f);
    for (int r = 0; r < R; ++r) total[r][v] = start;
  }
  for (std::size_t i = 0; i < k; ++i, b += C * kLanes) {
    Vec column[C];
    for (int v = 0; v < C; ++v) column[v] = load(b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec x = splat(a[r * a_stride + i]);
      for (int v = 0; v < C; ++v) total[r][v] = fma(x, column[v], total[r][v]);
    }
  }
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
                  const float* bias, float* c, std::size_t c_stride, Epilogue epilogue) {
  for (; rows >= kTileRows; rows -= kTileRows, a += kTileRows * a_stride, c += kTileRows * c_stride) {
    tile<kTileRows, C>(a, a_stride, b, k, bias, c, c_stride, epilogue);
  }
  switch (rows) {
    case 5:
      return tile<5, C>(a, a_stride, b, k, bias, c, c_stride, epilogue);
    case 4:
      return tile<4, C>(a, a_stride, b, k, bias, c, c_stride, epilogue);
    case 3:
      return tile<3, C>(a, a_stride, b, k, bias, c, c_stride, epilogue);
    case 2:
      return tile<2, C>(a, a_stride, b, k, bias, c, c_stride, epilogue);
    case 1:
      return tile<1, C>(a, a_stride, b, k, bias, c, c_stride, epilogue);
    default:
      return;
  }
}

inline void matmul(const float* a, std::size_t a_stride, std::size_t rows, const PackedMatrix& b, float* c,
                   std::size_t c_stride, Epilogue epilogue) {
  const float* weights = b.weights;
  for (std::size_t n = 0; n < b.n_padded; n += kPanel, weights += kPanel * b.k) {
    const float* bias = b.bias != nullptr ? b.bias + n : nullptr;
    switch (b.n_padded - n < kPanel ? (b.n_padded - n) / kLanes : kTileVectors) {
      case 4:
        if constexpr (kTileVectors >= 4) panel<4>(a, a_stride, rows, weights, b.k, bias, c + n, c_stride, epilogue);
        break;
      case 3:
        if constexpr (kTileVectors >= 4) panel<3>(a, a_stride, rows, weights, b.k, bias, c + n, c_stride, epilogue);
        break;
      case 2:
        panel<2>(a, a_stride, rows, weights, b.k, bias, c + n, c_stride, epilogue);
        break;
      default:
        panel<1>(a, a_stride, rows, weights, b.k, bias, c + n, c_stride, epilogue);
        break;
    }
  }
}

}  // namespace ttengine::TTENGINE_ISA
