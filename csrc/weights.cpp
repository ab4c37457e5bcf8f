// A model's weights, checked once and packed for the kernels that will read them.
#include "weights.h"

#include <cmath>
#include <utility>

#include "errors.h"

namespace ttengine {
namespace {

std::string text(const std::vector<std::size_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i != 0 ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

const Tensor& find(const Tensors& tensors, const std::string& name, const std::vector<std::size_t>& shape) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw BadArgument("the model has no tensor " + name);
  if (found->second.shape != shape) {
    throw BadArgument(name + " has shape " + text(found->second.shape) + ", expected " + text(shape));
  }
  return found->second;
}

std::size_t size_of(const Tensor& tensor) {
  std::size_t size = 1;
  for (std::size_t dim : tensor.shape) size *= dim;
  return size;
}

void check_finite(const Tensors& tensors) {
  for (const auto& [name, tensor] : tensors) {
    const std::size_t size = size_of(tensor);
    for (std::size_t i = 0; i < size; ++i) {
      if (!std::isfinite(tensor.data[i])) {
        throw NonFinite("the model's " + name + " holds NaN or infinity at element " + std::to_string(i) +
                        "; the file is damaged or its training diverged");
      }
    }
  }
}

void check_range(const char* name, std::size_t value, std::size_t low, std::size_t high) {
  if (value >= low && value <= high) return;
  throw BadArgument(std::string(name) + " is " + std::to_string(value) + ", allowed is " + std::to_string(low) +
                    " to " + std::to_string(high));
}

}  // namespace

void ModelShape::check() const {
  check_range("observation_dim", observation_dim, 1, 512);
  check_range("action_dim", action_dim, 1, 512);
  check_range("n_bins", n_bins, 2, 1024);
  check_range("layers", layers, 1, 64);
  check_range("heads", heads, 1, 64);
  check_range("width", width, 4, 4096);
  check_range("window", window, 2, 1000);
  check_range("context", context, 1, 1000);
  if (width % heads != 0) throw BadArgument("width is not a multiple of heads");
}

Weights::Weights(const ModelShape& shape, const Tensors& tensors, const Kernels& kernels)
    : shape_(shape), kernels_(kernels) {
  shape.check();
  check_finite(tensors);
  const std::size_t D = shape.width, K = shape.transition_dim(), V = shape.n_bins, Dp = shape.padded_width();
  const auto table = [&](const std::string& name, std::size_t rows) {
    const Tensor& tensor = find(tensors, name, {rows, D});
    return std::vector<float>(tensor.data, tensor.data + rows * D);
  };
  token_embedding_ = table("token_embedding.weight", V * K + 1);
  place_embedding_ = shape.rotary ? table("column_embedding", K) : table("position_embedding", shape.window * K - 1);
  if (shape.goal) goal_embedding_ = table("goal_embedding.weight", V * shape.observation_dim);
  for (std::size_t i = 0; i < shape.layers; ++i) {
    const std::string at = "blocks." + std::to_string(i) + ".";
    const auto norm = [&](const char* name) { return vector(find(tensors, at + name, {D}), Dp); };
    const auto linear = [&](const std::string& name, std::size_t n, std::size_t k) {
      const float* weights = find(tensors, at + name + ".weight", {n, k}).data;
      return matrix(weights, find(tensors, at + name + ".bias", {n}).data, n, k);
    };
    layers_.push_back({norm("attention_norm.weight"), norm("attention_norm.bias"), norm("mlp_norm.weight"),
                       norm("mlp_norm.bias"), linear("qkv", 3 * D, D), linear("projection", D, D),
                       linear("mlp_in", 4 * D, D), linear("mlp_out", D, 4 * D)});
  }
  for (std::size_t i = 0; i < shape.layers; ++i) {
    Layer& layer = layers_[i];
    layer.qkv.next = layer.projection.weights;
    layer.projection.next = layer.mlp_in.weights;
    layer.mlp_in.next = layer.mlp_out.weights;
    layer.mlp_out.next = layers_[(i + 1) % shape.layers].qkv.weights;
  }
  final_gain_ = vector(find(tensors, "final_norm.weight", {D}), Dp);
  final_shift_ = vector(find(tensors, "final_norm.bias", {D}), Dp);
  const Tensor& head = find(tensors, "head.weight", {K, V + 1, D});
  for (std::size_t column = 0; column < K; ++column) {
    heads_.push_back(matrix(head.data + column * (V + 1) * D, nullptr, V + 1, D));
  }
}

const float* Weights::vector(const Tensor& tensor, std::size_t padded) {
  AlignedFloats floats(padded);
  std::copy(tensor.data, tensor.data + size_of(tensor), floats.data());
  storage_.push_back(std::move(floats));
  return storage_.back().data();
}

PackedMatrix Weights::matrix(const float* weights, const float* bias, std::size_t n, std::size_t k) {
  const std::size_t n_padded = round_up(n, kernels_.lanes);
  AlignedFloats packed(n_padded * k), shift(n_padded);
  float* to = packed.data();
  for (std::size_t first = 0; first < n_padded; first += kernels_.panel) {
    const std::size_t end = std::min(first + kernels_.panel, n_padded);
    for (std::size_t i = 0; i < k; ++i) {
      for (std::size_t j = first; j < end; ++j) *to++ = j < n ? weights[j * k + i] : 0.0f;
    }
  }
  if (bias != nullptr) std::copy(bias, bias + n, shift.data());
  const PackedMatrix matrix{packed.data(), shift.data(), k, n_padded, nullptr};
  storage_.push_back(std::move(packed));
  storage_.push_back(std::move(shift));
  return matrix;
}

void Weights::embed(std::int32_t token, std::size_t position, float* x) const {
  const std::size_t K = shape_.transition_dim(), D = shape_.width, column = position % K, V = shape_.n_bins;
  const auto t = static_cast<std::size_t>(token);
  const float* row = token_embedding_.data() + (t == V ? V * K : column * V + t) * D;
  const float* place = place_embedding_.data() + (shape_.rotary ? column : position) * D;
  for (std::size_t i = 0; i < D; ++i) x[i] = row[i] + place[i];
  std::fill(x + D, x + shape_.padded_width(), 0.0f);  // NaN of an earlier batch may lie there
}

void Weights::embed_goal(std::int32_t token, std::size_t column, float* x) const {
  const float* row = goal_embedding_.data() + (column * shape_.n_bins + static_cast<std::size_t>(token)) * shape_.width;
  std::copy(row, row + shape_.width, x);
  std::fill(x + shape_.width, x + shape_.padded_width(), 0.0f);
}

}  // namespace ttengine
