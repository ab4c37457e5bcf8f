// From logits to tokens and numbers; every operation means what kernels/reference.py says.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace ttengine {

std::int32_t greedy_token(const float* probabilities, std::size_t n) {
  return static_cast<std::int32_t>(std::max_element(probabilities, probabilities + n) - probabilities);
}

void filter_tokens(const Kernels& kernels, const float* probabilities, std::size_t n, const Sampling& sampling,
                   float* weights) {
  if (sampling.cdf) {
    kernels.filter_cdf(probabilities, n, *sampling.cdf, weights);
  } else {
    std::copy(probabilities, probabilities + n, weights);
  }
  if (!sampling.k || *sampling.k >= n) return;
  std::vector<float> sorted(weights, weights + n);
  const auto kth = sorted.begin() + static_cast<std::ptrdiff_t>(*sampling.k - 1);
  std::nth_element(sorted.begin(), kth, sorted.end(), std::greater<>());
  for (std::size_t i = 0; i < n; ++i) weights[i] = weights[i] >= *kth ? weights[i] : 0.0f;
}

void accumulate(float* weights, std::size_t n) {
  double total = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    total += weights[i];
    weights[i] = static_cast<float>(total);
  }
}

std::int32_t draw_token(const float* cumulative, std::size_t n, float uniform) {
  const float total = cumulative[n - 1];
  const float* above = std::upper_bound(cumulative, cumulative + n, uniform * total);
  // uniform * total may round up to total: then the last token that weighs anything, the first to reach the total
  if (above == cumulative + n) above = std::lower_bound(cumulative, cumulative + n, total);
  return static_cast<std::int32_t>(above - cumulative);
}

bool log_probabilities(const Kernels& kernels, const float* logits, std::size_t n, const Sampling& sampling,
                       float* result) {
  if (!sampling.filters()) {
    const float top = *std::max_element(logits, logits + n);
    double total = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      if (!std::isfinite(logits[i])) return false;
      result[i] = (logits[i] - top) / sampling.temperature;
      total += std::exp(static_cast<double>(result[i]));
    }
    const auto log_total = static_cast<float>(std::log(total));
    for (std::size_t i = 0; i < n; ++i) result[i] -= log_total;
    return true;
  }
  std::vector<float> probabilities(n);
  if (!kernels.softmax(logits, n, sampling.temperature, probabilities.data())) return false;
  filter_tokens(kernels, probabilities.data(), n, sampling, result);
  float total = 0.0f;
  for (std::size_t i = 0; i < n; ++i) total += result[i];
  for (std::size_t i = 0; i < n; ++i) result[i] = std::log(result[i] / total);
  return true;
}

float expectation(const float* probabilities, const float* edges, std::size_t bins) {
  float left = 0.0f, right = 0.0f;
  for (std::size_t i = 0; i < bins; ++i) {
    left += probabilities[i] * edges[i];
    right += probabilities[i] * edges[i + 1];
  }
  return (left + right) / 2.0f;
}

float percentile(const float* probabilities, const float* edges, std::size_t bins, float share, bool as_released) {
  std::vector<float> cumulative(probabilities, probabilities + bins);
  accumulate(cumulative.data(), bins);
  const float target = as_released ? share : share * cumulative[bins - 1];
  auto index = static_cast<std::size_t>(std::lower_bound(cumulative.begin(), cumulative.end(), target) -
                                        cumulative.begin());  // how many are below the target
  if (as_released) {
    index = index == 0 ? bins - 1 : index - 1;
  } else {
    index = std::min(index, bins - 1);
  }
  return (edges[index] + edges[index + 1]) / 2.0f;
}

}  // namespace ttengine
