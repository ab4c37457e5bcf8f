// The inner loops, compiled once for every instruction set by the kernels_*.cpp beside this file.
//
// Nothing here uses the standard library beyond memcpy: its templates would be shared between the instruction sets.
#pragma once

#include "simd/attend_impl.h"
#include "simd/kernels.h"
#include "simd/matmul_impl.h"
#include "simd/vec.h"

namespace ttengine::TTENGINE_ISA {

inline void layer_norm(const float* x, std::size_t rows, std::size_t width, std::size_t stride, const float* gain,
                       const float* shift, float* normed) {
  const float scale = 1.0f / static_cast<float>(width);
  for (std::size_t row = 0; row < rows; ++row, x += stride, normed += stride) {
    Vec total = splat(0.0f);
    for (std::size_t i = 0; i < stride; i += kLanes) total += load(x + i);  // what pads a row is zero
    const float mean = sum(total) * scale;
    Vec squares = splat(0.0f);
    for (std::size_t i = 0; i < stride; i += kLanes) {
      Vec centred = load(x + i) - splat(mean);
      if (i + kLanes > width) centred = keep(first_lanes(width > i ? width - i : 0), centred);
      squares = fma(centred, centred, squares);
    }
    const Vec inverse = splat(1.0f / __builtin_sqrtf(sum(squares) * scale + 1e-5f));
    for (std::size_t i = 0; i < stride; i += kLanes) {
      store(normed + i, fma((load(x + i) - splat(mean)) * inverse, load(gain + i), load(shift + i)));
    }
  }
}

inline bool softmax(const float* logits, std::size_t n, float temperature, float* probabilities) {
  float top = logits[0];
  bool finite = true;
  for (std::size_t i = 0; i < n; ++i) {
    finite &= logits[i] - logits[i] == 0.0f;  // neither NaN nor infinite
    top = logits[i] > top ? logits[i] : top;
  }
  if (!finite) return false;
  const float scale = 1.0f / temperature;
  Vec total = splat(0.0f);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec p = exp((load(logits + i) - splat(top)) * splat(scale));
    store(probabilities + i, p);
    total += p;
  }
  if (i < n) {
    float tail[kLanes];
    for (std::size_t j = 0; j < kLanes; ++j) tail[j] = i + j < n ? logits[i + j] : top - 200.0f * temperature;
    const Vec p = keep(first_lanes(n - i), exp((load(tail) - splat(top)) * splat(scale)));
    total += p;
    store(tail, p);
    for (std::size_t j = 0; i + j < n; ++j) probabilities[i + j] = tail[j];
  }
  const float inverse = 1.0f / sum(total);
  for (i = 0; i < n; ++i) probabilities[i] *= inverse;
  return true;
}

// Keeps a token exactly when it and everything less probable hold at least `cdf` together; of tokens that all do, the
// least probable goes all the same. Source: Janner et al. 2021, released code, `filter_cdf`, without its sort.
inline void filter_cdf(const float* probabilities, std::size_t n, float cdf, float* weights) {
  float least = probabilities[0];
  for (std::size_t i = 1; i < n; ++i) least = probabilities[i] < least ? probabilities[i] : least;
  bool any = false;
  const float hopeless = cdf / (static_cast<float>(n) * 1.01f);  // n tokens of no more hold less than cdf together
  for (std::size_t i = 0; i < n; ++i) {
    const float own = probabilities[i];
    if (own < hopeless) {
      weights[i] = 0.0f;
      continue;
    }
    Vec below = splat(0.0f);
    std::size_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
      const Vec p = load(probabilities + j);
      below += keep(p < splat(own), p);
    }
    float rest = 0.0f;
    for (; j < n; ++j) rest += probabilities[j] < own ? probabilities[j] : 0.0f;
    const bool kept = own > least && sum(below) + rest + own >= cdf;
    weights[i] = kept ? own : 0.0f;
    any |= kept;
  }
  if (!any) {
    for (std::size_t i = 0; i < n; ++i) weights[i] = 1.0f;
  }
}

inline constexpr Kernels make_kernels(Isa isa) {
  return {isa, kLanes, kPanel, matmul, layer_norm, attend, write_slot, softmax, filter_cdf};
}

}  // namespace ttengine::TTENGINE_ISA
