// From logits to tokens and numbers; every operation means what kernels/reference.py says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "simd/kernels.h"

namespace ttengine {

// Which tokens of one segment may be drawn, as ttengine.config.Sampling.
struct Sampling {
  std::optional<std::size_t> k;
  std::optional<float> cdf;
  float temperature = 1.0f;

  bool greedy() const { return k == 1; }
  bool filters() const { return k.has_value() || cdf.has_value(); }
};

// The most probable token, the lower one on ties.
std::int32_t greedy_token(const float* probabilities, std::size_t n);

// Sampling weights [n]: the cdf filter, then top-k; 0 where dropped.
void filter_tokens(const Kernels& kernels, const float* probabilities, std::size_t n, const Sampling& sampling,
                   float* weights);

// Replaces weights [n] by their cumulative sums, for draw_token.
void accumulate(float* weights, std::size_t n);

// Draws by inverting cumulative weights [n]; uniform in [0, 1).
std::int32_t draw_token(const float* cumulative, std::size_t n, float uniform);

// log-probabilities [n] of the next token, -inf where the filter drops it. False if the logits are not finite.
bool log_probabilities(const Kernels& kernels, const float* logits, std::size_t n, const Sampling& sampling,
                       float* result);

// The expected number of probabilities [bins + 1], stop token last, left out and not made up for; edges [bins + 1].
float expectation(const float* probabilities, const float* edges, std::size_t bins);

// The mid-point of the first bin at which the cumulative probability reaches `share` of the bins' total.
float percentile(const float* probabilities, const float* edges, std::size_t bins, float share, bool as_released);

}  // namespace ttengine
