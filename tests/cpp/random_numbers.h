// Random numbers for the tests, the same on every platform (the standard's distributions are not).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

class Random {
 public:
  explicit Random(std::uint32_t seed) : bits_(seed) {}

  // An integer in [0, end).
  std::size_t below(std::size_t end) { return bits_() % end; }

  bool coin() { return below(2) == 1; }

  // A number in [low, high).
  double uniform(double low, double high) { return low + (high - low) * (static_cast<double>(bits_()) * 0x1p-32); }

  float normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform(0.0, 1.0)));
    return static_cast<float>(radius * std::cos(uniform(0.0, 6.283185307179586)));
  }

  std::vector<float> normals(std::size_t count, float scale = 1.0f) {
    std::vector<float> numbers(count);
    for (float& number : numbers) number = scale * normal();
    return numbers;
  }

 private:
  std::mt19937 bits_;
};

// Whether two arrays hold the same bits: equal numbers, NaN included, and zeros of one sign.
inline bool same_bits(const float* a, const float* b, std::size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || same_bits(a.data(), b.data(), a.size()));
}
