// Counter-based noise: the same key and counter always give the same draw, whatever is computed beside it.
#pragma once

#include <cstdint>

namespace ttengine {

// Uniform in [0, 1), a multiple of 2^-24; the same bits as kernels/reference.py's philox_uniform.
// Source: Salmon et al. 2011, Philox-4x32-10; key (seed low, seed high), counter (token, row, plan, 0), first word.
inline float philox_uniform(std::uint64_t seed, std::uint32_t plan, std::uint32_t row, std::uint32_t token) {
  std::uint32_t c0 = token, c1 = row, c2 = plan, c3 = 0;
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * c0, product1 = std::uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<std::uint32_t>(product1);
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<std::uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return static_cast<float>(c0 >> 8) * 0x1p-24f;
}

}  // namespace ttengine
