// Size arithmetic refuses to wrap around.
#include <cstddef>
#include <limits>

#include "check.h"
#include "checked.h"

using ttengine::checked_multiply;
using ttengine::checked_round_up;

constexpr std::size_t kMax = std::numeric_limits<std::size_t>::max();

TEST(multiply_is_exact_when_it_fits) {
  CHECK(checked_multiply(0, kMax) == std::size_t{0});
  CHECK(checked_multiply(kMax, 0) == std::size_t{0});
  CHECK(checked_multiply(1, kMax) == kMax);
  CHECK(checked_multiply(kMax / 2, 2) == kMax - 1);
  CHECK(checked_multiply(7, 13) == std::size_t{91});
}

TEST(multiply_refuses_to_overflow) {
  CHECK(!checked_multiply(kMax, 2));
  CHECK(!checked_multiply(2, kMax));
  CHECK(!checked_multiply(kMax / 2 + 1, 2));
  CHECK(!checked_multiply(std::size_t{1} << 32, std::size_t{1} << 32));
}

TEST(round_up_goes_to_the_next_multiple) {
  CHECK(checked_round_up(0, 64) == std::size_t{0});
  CHECK(checked_round_up(1, 64) == std::size_t{64});
  CHECK(checked_round_up(63, 64) == std::size_t{64});
  CHECK(checked_round_up(64, 64) == std::size_t{64});
  CHECK(checked_round_up(65, 64) == std::size_t{128});
}

TEST(round_up_refuses_to_overflow) {
  CHECK(checked_round_up(kMax - 63, 64) == kMax - 63);
  CHECK(!checked_round_up(kMax - 62, 64));
  CHECK(!checked_round_up(kMax, 64));
}
