// What the native core throws; bindings.cpp gives each its Python class.
#pragma once

#include <stdexcept>

namespace ttengine {

// Weights or logits hold NaN or infinity.
class NonFinite : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A setting or an array does not fit the model, or a verb came out of order.
class BadArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

}  // namespace ttengine
