// Vectors of floats for the kernel files: GCC's and Clang's vector types, and the few operations they lack.
//
// Only kernels_*.cpp include this. Each is compiled for one instruction set, and everything here lies in a namespace of
// that set's name: an inline function shared between them could be linked in from the wrong one.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef TTENGINE_ISA
#error "define TTENGINE_ISA before including simd/vec.h"
#endif

namespace ttengine::TTENGINE_ISA {

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
constexpr int kLanes = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <int N>
struct Lanes {
  typedef float Float __attribute__((vector_size(4 * N)));
  typedef std::int32_t Int __attribute__((vector_size(4 * N)));
};
template <int N>
using FloatN = typename Lanes<N>::Float;
template <int N>
using IntN = typename Lanes<N>::Int;
using Vec = FloatN<kLanes>;

template <int N = kLanes>
inline FloatN<N> load(const float* from) {
  FloatN<N> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <int N = kLanes>
inline void store(float* to, FloatN<N> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

template <int N = kLanes>
inline FloatN<N> splat(float x) {
#if defined(__AVX512F__)
  if constexpr (N == 16) return _mm512_set1_ps(x);
#endif
#if defined(__AVX__)
  if constexpr (N == 8) return _mm256_set1_ps(x);
#endif
#if defined(__x86_64__)
  if constexpr (N == 4) return _mm_set1_ps(x);
#elif defined(__aarch64__)
  if constexpr (N == 4) return vdupq_n_f32(x);
#endif
  FloatN<N> v;
  for (int i = 0; i < N; ++i) v[i] = x;
  return v;
}

// a * b + c, in one rounding where the instruction set can; never left to the compiler's taste, so that every tile size
// rounds alike.
template <int N>
inline FloatN<N> fma_lanes(FloatN<N> a, FloatN<N> b, FloatN<N> c) {
#if defined(__AVX512F__)
  if constexpr (N == 16) return _mm512_fmadd_ps(a, b, c);
#endif
#if defined(__FMA__)
  if constexpr (N == 8) return _mm256_fmadd_ps(a, b, c);
#endif
#if defined(__aarch64__)
  if constexpr (N == 4) return vfmaq_f32(c, a, b);
#endif
  return a * b + c;
}

template <int N>
inline FloatN<N> max_lanes(FloatN<N> a, FloatN<N> b) {
#if defined(__AVX512F__)
  if constexpr (N == 16) return _mm512_max_ps(a, b);
#endif
#if defined(__AVX__)
  if constexpr (N == 8) return _mm256_max_ps(a, b);
#endif
#if defined(__x86_64__)
  if constexpr (N == 4) return _mm_max_ps(a, b);
#elif defined(__aarch64__)
  if constexpr (N == 4) return vmaxq_f32(a, b);
#endif
  FloatN<N> v;
  for (int i = 0; i < N; ++i) v[i] = a[i] > b[i] ? a[i] : b[i];
  return v;
}

inline Vec fma(Vec a, Vec b, Vec c) { return fma_lanes<kLanes>(a, b, c); }
inline Vec max(Vec a, Vec b) { return max_lanes<kLanes>(a, b); }
inline Vec min(Vec a, Vec b) { return -max_lanes<kLanes>(-a, -b); }

// x where the mask is set, else 0.
inline Vec keep(IntN<kLanes> mask, Vec x) {
  IntN<kLanes> bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  bits &= mask;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// All bits set in the first `count` lanes.
inline IntN<kLanes> first_lanes(std::size_t count) {
  IntN<kLanes> mask;
  for (int i = 0; i < kLanes; ++i) mask[i] = static_cast<std::size_t>(i) < count ? -1 : 0;
  return mask;
}

// All lanes joined to one, pairwise: the same tree whatever surrounds it.
template <typename Join>
inline float fold(Vec v, const Join& join) {
  float lane[kLanes];
  store(lane, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] = join(lane[i], lane[i + width]);
  }
  return lane[0];
}

inline float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#endif
  return fold(v, [](float a, float b) { return a + b; });
}

inline float highest(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#endif
  return fold(v, [](float a, float b) { return a > b ? a : b; });
}

// e^x to about 1 ulp for x <= 88; exactly 0 below -87.
inline Vec exp(Vec x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const Vec magic = splat(kMagic);
  const IntN<kLanes> normal = x >= splat(-87.0f);
  x = max(x, splat(-87.0f));
  const Vec shifted = fma(x, splat(1.44269504088896f), magic);
  const Vec n = shifted - magic;
  Vec r = fma(n, splat(-0.693359375f), x);  // ln 2 in two parts
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.3933652490e-3f);  // (e^r - 1 - r) / r^2, least squares on |r| <= ln 2 / 2
  p = fma(p, r, splat(8.3631815447e-3f));
  p = fma(p, r, splat(4.1666464895e-2f));
  p = fma(p, r, splat(1.6666576967e-1f));
  p = fma(p, r, splat(5.0000000135e-1f));
  p = fma(p, r * r, r) + splat(1.0f);
  IntN<kLanes> bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  IntN<kLanes> power = (bits - 0x4B400000 + 127) << 23;  // 0x4B400000 is kMagic
  Vec scale;
  __builtin_memcpy(&scale, &power, sizeof scale);
  return keep(normal, p * scale);
}

// erf(x) to about 3e-7.
inline Vec erf(Vec x) {
  constexpr float kEnd = 3.92f;  // beyond it erf is 1 in float32
  // erf(x) / x as a polynomial in u, which runs over [-1, 1] as x^2 runs over [0, kEnd^2]; least squares
  constexpr float kCoefficients[] = {1.681320579e-03f, -4.353178047e-03f, 3.279658601e-03f, -3.533522730e-03f,
                                     1.248071495e-02f, -2.290878635e-02f, 3.078026567e-02f, -4.234303379e-02f,
                                     5.805097796e-02f, -7.422882475e-02f, 9.064878828e-02f, -1.091617948e-01f,
                                     1.340816737e-01f, -1.801090435e-01f, 3.607368371e-01f};
  x = min(max(x, splat(-kEnd)), splat(kEnd));
  const Vec u = fma(x * x, splat(2.0f / (kEnd * kEnd)), splat(-1.0f));
  Vec p = splat(kCoefficients[0]);
  for (std::size_t i = 1; i < sizeof kCoefficients / sizeof *kCoefficients; ++i) p = fma(p, u, splat(kCoefficients[i]));
  return p * x;
}

// Source: Hendrycks and Gimpel 2016, the exact form.
inline Vec gelu(Vec x) { return splat(0.5f) * x * (splat(1.0f) + erf(x * splat(0.70710678118654752f))); }

}  // namespace ttengine::TTENGINE_ISA
