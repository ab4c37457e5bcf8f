// The kernels of every instruction set of this machine, against plain double arithmetic and definitions with a sort.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "aligned.h"
#include "check.h"
#include "random_numbers.h"
#include "simd/kernels.h"

using namespace ttengine;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
constexpr double kEpsilon = 0x1p-24;  // half a unit in the last place of 1

// Calls work(kernels) for every instruction set.
template <typename Work>
static void for_all_kernels(const Work& work) {
  for (const Isa isa : available_isas()) work(*find_kernels(isa));
}

TEST(the_portable_kernels_are_always_there_and_the_best_come_first) {
  const std::vector<Isa> isas = available_isas();
  CHECK(!isas.empty() && isas.back() == Isa::portable);
  CHECK(best_kernels().isa == isas.front());
  for_all_kernels([](const Kernels& kernels) {
    CHECK(find_kernels(kernels.isa) == &kernels && kernels.panel % kernels.lanes == 0);
    CHECK(kRowAlign % kernels.lanes == 0);
  });
}

// --- matrix products ---

// A matrix [n, k] in the layout that kernels.h describes.
struct Packed {
  AlignedFloats weights, bias;
  PackedMatrix matrix;
  Packed(const Kernels& kernels, const std::vector<float>& plain, const std::vector<float>& shift, std::size_t n,
         std::size_t k)
      : weights(round_up(n, kernels.lanes) * k), bias(round_up(n, kernels.lanes)) {
    const std::size_t padded = round_up(n, kernels.lanes);
    float* to = weights.data();
    for (std::size_t first = 0; first < padded; first += kernels.panel) {
      for (std::size_t i = 0; i < k; ++i) {
        for (std::size_t j = first; j < std::min(first + kernels.panel, padded); ++j) {
          *to++ = j < n ? plain[j * k + i] : 0.0f;
        }
      }
    }
    std::copy(shift.begin(), shift.end(), bias.data());
    matrix = {weights.data(), shift.empty() ? nullptr : bias.data(), k, padded, nullptr};
  }
};

static Ahead nothing_ahead;

static double gelu(double x) { return 0.5 * x * (1.0 + std::erf(x * std::sqrt(0.5))); }

// Checks one product; what lies outside of [rows][n_padded] must neither be read nor written.
static void check_matmul(const Kernels& kernels, Random& random, std::size_t rows, std::size_t n, std::size_t k,
                         bool biased, Epilogue epilogue) {
  const std::vector<float> plain = random.normals(n * k), shift = random.normals(biased ? n : 0);
  const Packed b(kernels, plain, shift, n, k);
  const std::size_t a_stride = k + 3, c_stride = b.matrix.n_padded + 5;
  std::vector<float> a(rows * a_stride, kNaN), c((rows + 1) * c_stride, kNaN);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t i = 0; i < k; ++i) a[r * a_stride + i] = random.normal();
    if (epilogue != Epilogue::add) continue;
    for (std::size_t j = 0; j < b.matrix.n_padded; ++j) c[r * c_stride + j] = random.normal();
  }
  const std::vector<float> before = c;
  kernels.matmul(a.data(), a_stride, rows, b.matrix, c.data(), c_stride, epilogue, nothing_ahead);
  std::size_t wrong = 0;
  for (std::size_t r = 0; r <= rows; ++r) {
    for (std::size_t j = 0; j < c_stride; ++j) {
      const float got = c[r * c_stride + j];
      if (r == rows || j >= b.matrix.n_padded) {
        wrong += !std::isnan(got);
        continue;
      }
      double total = j < n && biased ? shift[j] : 0.0, size = std::abs(total);
      for (std::size_t i = 0; j < n && i < k; ++i) {
        const double product = static_cast<double>(a[r * a_stride + i]) * plain[j * k + i];
        total += product;
        size += std::abs(product);
      }
      if (epilogue == Epilogue::gelu) total = gelu(total);
      if (epilogue == Epilogue::add) total += before[r * c_stride + j];
      const double allowed = kEpsilon * (static_cast<double>(k) + 8.0) * (size + std::abs(total) + 1e-3);
      wrong += !(std::abs(got - total) <= allowed);
    }
  }
  CHECK(wrong == 0);
}

TEST(a_matrix_product_is_that_of_a_plain_double_loop) {
  for_all_kernels([](const Kernels& kernels) {
    Random random(1);
    for (std::size_t rows = 1; rows <= 13; ++rows) {
      for (const std::size_t n : {1, 7, 16, 31, 48, 65, 101}) {
        for (const std::size_t k : {1, 2, 9, 33}) {
          check_matmul(kernels, random, rows, n, k, rows % 2 == 0, Epilogue::store);
          check_matmul(kernels, random, rows, n, k, true, Epilogue::add);
          check_matmul(kernels, random, rows, n, k, true, Epilogue::gelu);
        }
      }
    }
  });
}

TEST(a_row_of_a_matrix_product_has_the_same_bits_whatever_rows_stand_beside_it) {
  for_all_kernels([](const Kernels& kernels) {
    constexpr std::size_t kRows = 13, kN = 77, kK = 19, kStride = 96;
    Random random(2);
    const Packed b(kernels, random.normals(kN * kK), random.normals(kN), kN, kK);
    const std::vector<float> a = random.normals(kRows * kK), start = random.normals(kRows * kStride);
    for (const Epilogue epilogue : {Epilogue::store, Epilogue::gelu, Epilogue::add}) {
      std::vector<float> alone = start;
      for (std::size_t r = 0; r < kRows; ++r) {
        kernels.matmul(a.data() + r * kK, kK, 1, b.matrix, alone.data() + r * kStride, kStride, epilogue,
                       nothing_ahead);
      }
      for (std::size_t first = 0; first < kRows; ++first) {
        for (std::size_t rows = 2; first + rows <= kRows; ++rows) {
          std::vector<float> c = start;
          kernels.matmul(a.data() + first * kK, kK, rows, b.matrix, c.data() + first * kStride, kStride, epilogue,
                         nothing_ahead);
          CHECK(same_bits(c.data() + first * kStride, alone.data() + first * kStride, rows * kStride));
        }
      }
    }
  });
}

TEST(asking_for_memory_ahead_of_time_changes_no_bit_and_ends) {
  for_all_kernels([](const Kernels& kernels) {
    constexpr std::size_t kRows = 13, kN = 77, kK = 19, kStride = 96;
    Random random(3);
    Packed b(kernels, random.normals(kN * kK), random.normals(kN), kN, kK);
    const std::vector<float> a = random.normals(kRows * kK), memory(3000);
    for (const std::size_t rows : {1, 6, 7, 13}) {
      std::vector<float> plain(kRows * kStride, 0.0f), ahead = plain;
      kernels.matmul(a.data(), kK, rows, b.matrix, plain.data(), kStride, Epilogue::store, nothing_ahead);
      const Ahead::Range ranges[] = {{memory.data(), 1}, {memory.data() + 1, 17}, {memory.data(), 2000}};
      Ahead wanted{ranges, ranges + 3, 500, 0};
      b.matrix.next = memory.data();
      int products = 0;
      for (; wanted.range != wanted.end && products < 20; ++products) {
        kernels.matmul(a.data(), kK, rows, b.matrix, ahead.data(), kStride, Epilogue::store, wanted);
        CHECK(same_bits(plain, ahead));
      }
      CHECK(wanted.range == wanted.end && wanted.done == 0);
      CHECK(products <= 4);  // a line a step: 128 lines, and each product has at least 38 steps
    }
  });
}

TEST(gelu_and_so_erf_are_right_to_a_few_units_in_the_seventh_digit) {
  for_all_kernels([](const Kernels& kernels) {
    constexpr std::size_t kRows = 4801;
    const Packed one(kernels, {1.0f}, {}, 1, 1);
    std::vector<float> x(kRows), y(kRows * one.matrix.n_padded);
    for (std::size_t i = 0; i < kRows; ++i) x[i] = static_cast<float>(i) / 400.0f - 6.0f;
    kernels.matmul(x.data(), 1, kRows, one.matrix, y.data(), one.matrix.n_padded, Epilogue::gelu, nothing_ahead);
    double worst = 0.0;  // of erf, whose error counts with half of x
    for (std::size_t i = 0; i < kRows; ++i) {
      const double error = std::abs(y[i * one.matrix.n_padded] - gelu(x[i]));
      worst = std::max(worst, error / std::max(0.5 * std::abs(x[i]), 1e-3));
    }
    CHECK(worst < 5e-7);
    const std::vector<float> ends{0.0f, 50.0f, -50.0f, 3e38f};
    kernels.matmul(ends.data(), 1, 4, one.matrix, y.data(), one.matrix.n_padded, Epilogue::gelu, nothing_ahead);
    CHECK(y[0] == 0.0f && std::abs(y[one.matrix.n_padded] - 50.0f) < 5e-5f);
    CHECK(std::abs(y[2 * one.matrix.n_padded]) < 5e-5f && y[3 * one.matrix.n_padded] > 2.9e38f);
  });
}

// --- normalisation ---

TEST(layer_norm_is_that_of_double_arithmetic_and_its_padding_zero) {
  for_all_kernels([](const Kernels& kernels) {
    Random random(3);
    for (const std::size_t width : {4, 5, 8, 12, 15, 16, 17, 31, 32, 33, 100, 128}) {
      constexpr std::size_t kRows = 5;
      const std::size_t stride = round_up(width, kRowAlign);
      std::vector<float> gain = random.normals(stride), shift = random.normals(stride), x(kRows * stride, 0.0f);
      std::fill(gain.begin() + static_cast<std::ptrdiff_t>(width), gain.end(), 0.0f);
      std::fill(shift.begin() + static_cast<std::ptrdiff_t>(width), shift.end(), 0.0f);
      for (std::size_t r = 0; r < kRows; ++r) {
        const float offset = 3.0f * random.normal(), spread = static_cast<float>(random.uniform(0.001, 4.0));
        for (std::size_t i = 0; i < width; ++i) x[r * stride + i] = offset + spread * random.normal();
      }
      std::vector<float> normed(kRows * stride, kNaN), alone(stride, kNaN);
      kernels.layer_norm(x.data(), kRows, width, stride, gain.data(), shift.data(), normed.data());
      double worst = 0.0;
      for (std::size_t r = 0; r < kRows; ++r) {
        const auto* row = x.data() + r * stride;
        const double size = static_cast<double>(width);
        double mean = 0.0, squares = 0.0;
        for (std::size_t i = 0; i < width; ++i) mean += row[i] / size;
        for (std::size_t i = 0; i < width; ++i) squares += (row[i] - mean) * (row[i] - mean) / size;
        const double inverse = 1.0 / std::sqrt(squares + 1e-5);
        for (std::size_t i = 0; i < stride; ++i) {
          const double expected = i < width ? (row[i] - mean) * inverse * gain[i] + shift[i] : 0.0;
          // the mean is rounded, by more the farther a row is from 0
          const double allowed = 16.0 * kEpsilon * (1.0 + std::abs(mean) * inverse) * (1.0 + std::abs(gain[i]));
          worst = std::max(worst, std::abs(normed[r * stride + i] - expected) / (i < width ? allowed : 1e-300));
        }
        kernels.layer_norm(row, 1, width, stride, gain.data(), shift.data(), alone.data());
        CHECK(same_bits(alone.data(), normed.data() + r * stride, stride));
      }
      CHECK(worst < 1.0);
    }
  });
}

TEST(a_row_of_equal_numbers_has_no_spread_and_is_not_divided_by_zero) {
  for_all_kernels([](const Kernels& kernels) {
    std::vector<float> x(16, 0.0f), gain(16, 0.0f), shift(16, 0.0f), normed(16, kNaN);
    for (std::size_t i = 0; i < 5; ++i) {
      x[i] = 2.0f;
      gain[i] = 3.0f;
      shift[i] = static_cast<float>(i);
    }
    kernels.layer_norm(x.data(), 1, 5, 16, gain.data(), shift.data(), normed.data());
    for (std::size_t i = 0; i < 16; ++i) CHECK(normed[i] == shift[i]);
  });
}

// --- softmax ---

static double softmax_error(const Kernels& kernels, const std::vector<float>& logits, float temperature) {
  const std::size_t n = logits.size();
  std::vector<float> probabilities(n + 1, kNaN);
  CHECK(kernels.softmax(logits.data(), n, temperature, probabilities.data()));
  CHECK(std::isnan(probabilities[n]));  // nothing is written past the end
  const double top = *std::max_element(logits.begin(), logits.end());
  double total = 0.0, worst = 0.0;
  for (const float logit : logits) total += std::exp((logit - top) / temperature);
  for (std::size_t i = 0; i < n; ++i) {
    const double away = (top - logits[i]) / temperature, expected = std::exp(-away) / total;
    // what is e^-87 times less likely than the most likely token counts for nothing
    const double allowed = away > 86.9 ? 1e-37 : kEpsilon * (8.0 + 4.0 * away) * expected;
    worst = std::max(worst, std::abs(probabilities[i] - expected) / allowed);
  }
  return worst;
}

TEST(softmax_is_that_of_double_arithmetic) {
  for_all_kernels([](const Kernels& kernels) {
    Random random(4);
    for (const std::size_t n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 101, 1025}) {
      for (const float temperature : {0.05f, 1.0f, 3.0f}) {
        for (const float scale : {0.1f, 3.0f, 20.0f}) {
          CHECK(softmax_error(kernels, random.normals(n, scale), temperature) < 1.0);
        }
      }
    }
  });
}

TEST(exp_is_right_to_two_units_in_the_last_place) {
  for_all_kernels([](const Kernels& kernels) {
    double worst = 0.0;
    for (int step = 0; step < 20000; ++step) {
      const float away = static_cast<float>(step) / 240.0f;  // up to 83
      const float logits[] = {0.0f, -away};
      float p[2];
      CHECK(kernels.softmax(logits, 2, 1.0f, p));
      const double expected = std::exp(-static_cast<double>(away));
      worst = std::max(worst, std::abs(static_cast<double>(p[1]) / p[0] - expected) / expected);
    }
    CHECK(worst < 3.0 * kEpsilon);  // two roundings of the softmax, one of exp
  });
}

TEST(softmax_knows_its_extremes) {
  for_all_kernels([](const Kernels& kernels) {
    for (const std::size_t n : {2, 5, 33}) {
      std::vector<float> logits(n, -3e38f), p(n);
      logits[1] = 3e38f;
      CHECK(kernels.softmax(logits.data(), n, 1.0f, p.data()));
      for (std::size_t i = 0; i < n; ++i) CHECK(p[i] == (i == 1 ? 1.0f : 0.0f));
      std::fill(logits.begin(), logits.end(), -3e38f);
      CHECK(kernels.softmax(logits.data(), n, 1.0f, p.data()));
      for (std::size_t i = 0; i < n; ++i) CHECK(std::abs(p[i] * static_cast<float>(n) - 1.0f) < 1e-6f);
    }
  });
}

TEST(softmax_refuses_logits_that_are_not_finite_wherever_they_are) {
  for_all_kernels([](const Kernels& kernels) {
    Random random(5);
    for (const std::size_t n : {1, 6, 17, 40}) {
      std::vector<float> p(n);
      for (const float bad : {kNaN, -kNaN, kInfinity, -kInfinity}) {
        for (std::size_t at = 0; at < n; ++at) {
          std::vector<float> logits = random.normals(n);
          CHECK(kernels.softmax(logits.data(), n, 1.0f, p.data()));
          logits[at] = bad;
          CHECK(!kernels.softmax(logits.data(), n, 1.0f, p.data()));
        }
      }
    }
  });
}

// --- the cdf filter ---

// The definition of kernels/reference.py, with its sort; exact for numbers whose sums are.
static std::vector<float> sorted_filter(const std::vector<float>& probabilities, float cdf) {
  std::vector<float> ascending = probabilities, weights(probabilities.size(), 0.0f);
  std::sort(ascending.begin(), ascending.end());
  double total = 0.0;
  std::size_t below = 0;
  for (const float p : ascending) below += (total += p) < cdf;
  const float threshold = ascending[below == 0 ? 0 : below - 1];
  bool any = false;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (probabilities[i] <= threshold) continue;
    weights[i] = probabilities[i];
    any = true;
  }
  if (!any) std::fill(weights.begin(), weights.end(), 1.0f);
  return weights;
}

static bool filters_alike(const Kernels& kernels, const std::vector<float>& probabilities, float cdf) {
  std::vector<float> weights(probabilities.size() + 1, kNaN);
  kernels.filter_cdf(probabilities.data(), probabilities.size(), cdf, weights.data());
  const bool end_kept = std::isnan(weights.back());
  weights.pop_back();
  return end_kept && same_bits(weights, sorted_filter(probabilities, cdf));
}

// Multiples of 2^-16: sums are exact in any order, so that the two definitions must agree to the bit.
TEST(the_cdf_filter_is_that_of_the_sorting_definition_ties_included) {
  for_all_kernels([](const Kernels& kernels) {
    Random random(6);
    for (const std::size_t n : {1, 2, 3, 7, 8, 9, 17, 33, 101}) {
      for (const std::size_t values : {1, 2, 3, 10, 600}) {  // few values: many ties
        for (int repeat = 0; repeat < 20; ++repeat) {
          std::vector<float> p(n);
          for (float& number : p) number = static_cast<float>(random.below(values)) * 0x1p-16f;
          double total = 0.0;
          for (const float number : p) total += number;
          for (const float cdf : {1e-9f, 0x1p-16f, static_cast<float>(0.25 * total), static_cast<float>(0.6 * total),
                                  static_cast<float>(total), static_cast<float>(total) + 0x1p-16f, 2.0f}) {
            CHECK(filters_alike(kernels, p, cdf));
          }
        }
      }
    }
  });
}

TEST(the_cdf_filter_keeps_all_with_weight_1_where_nothing_would_stay) {
  for_all_kernels([](const Kernels& kernels) {
    for (const std::size_t n : {1, 4, 19}) {
      const std::vector<float> equal(n, 0.0625f);
      for (const float cdf : {0.01f, 0.9f}) {
        CHECK(filters_alike(kernels, equal, cdf) && sorted_filter(equal, cdf) == std::vector<float>(n, 1.0f));
      }
    }
    const std::vector<float> p{0.5f, 0.125f, 0.375f};
    CHECK(filters_alike(kernels, p, 2.0f) && sorted_filter(p, 2.0f) == std::vector<float>(3, 1.0f));
    CHECK((filters_alike(kernels, p, 0.125f) && sorted_filter(p, 0.125f) == std::vector<float>{0.5f, 0.0f, 0.375f}));
  });
}
