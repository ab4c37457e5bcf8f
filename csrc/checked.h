// Size arithmetic that cannot wrap around.
#pragma once

#include <cstddef>
#include <limits>
#include <optional>

namespace ttengine {

// a * b, or nothing when it does not fit.
constexpr std::optional<std::size_t> checked_multiply(std::size_t a, std::size_t b) noexcept {
  if (a != 0 && b > std::numeric_limits<std::size_t>::max() / a) return std::nullopt;
  return a * b;
}

// The smallest multiple of `step` (not 0) that is at least `a`, or nothing when it does not fit.
constexpr std::optional<std::size_t> checked_round_up(std::size_t a, std::size_t step) noexcept {
  const std::size_t over = a % step;
  if (over == 0) return a;
  const std::size_t gap = step - over;
  if (a > std::numeric_limits<std::size_t>::max() - gap) return std::nullopt;
  return a + gap;
}

}  // namespace ttengine
