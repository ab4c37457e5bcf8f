// A model's weights, checked once and packed for the kernels that will read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "aligned.h"
#include "simd/kernels.h"

namespace ttengine {

// The sizes of a Trajectory Transformer; names as in ttengine/config.py.
struct ModelShape {
  std::size_t observation_dim, action_dim, n_bins, layers, heads, width;
  std::size_t window;   // transitions in one training sequence
  std::size_t context;  // past transitions in sight, rotary models
  bool rotary, goal;

  std::size_t transition_dim() const { return observation_dim + action_dim + 2; }  // K
  std::size_t outputs() const { return n_bins + 1; }
  std::size_t head_width() const { return width / heads; }
  std::size_t pairs() const { return rotary ? head_width() / 4 : 0; }
  std::size_t padded_width() const { return round_up(width, kRowAlign); }

  // Throws BadArgument: a size is 0 or too large, or width is not a multiple of heads.
  void check() const;
};

// One tensor of a state dict: float32, contiguous.
struct Tensor {
  const float* data;
  std::vector<std::size_t> shape;
};
using Tensors = std::map<std::string, Tensor>;

struct Layer {
  const float *attention_gain, *attention_shift, *mlp_gain, *mlp_shift;  // [padded_width]
  PackedMatrix qkv, projection, mlp_in, mlp_out;
};

class Weights {
 public:
  // Copies what it needs. Throws BadArgument: a tensor is missing or has another shape. Throws NonFinite, naming the
  // first tensor (by name) that holds NaN or infinity.
  Weights(const ModelShape& shape, const Tensors& tensors, const Kernels& kernels);

  const ModelShape& shape() const { return shape_; }
  const Kernels& kernels() const { return kernels_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const float* final_gain() const { return final_gain_; }
  const float* final_shift() const { return final_shift_; }
  const PackedMatrix& head(std::size_t column) const { return heads_[column]; }

  // x [padded_width]: the embedding of a token at a place of its row, or of a goal token.
  void embed(std::int32_t token, std::size_t position, float* x) const;
  void embed_goal(std::int32_t token, std::size_t column, float* x) const;

 private:
  const float* vector(const Tensor& tensor, std::size_t padded);
  PackedMatrix matrix(const float* weights, const float* bias, std::size_t n, std::size_t k);

  ModelShape shape_;
  const Kernels& kernels_;
  std::vector<AlignedFloats> storage_;
  std::vector<Layer> layers_;
  std::vector<PackedMatrix> heads_;
  const float *final_gain_, *final_shift_;
  std::vector<float> token_embedding_, place_embedding_, goal_embedding_;  // [rows][width]
};

}  // namespace ttengine
