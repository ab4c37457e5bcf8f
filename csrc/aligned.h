// A growable array of floats on cache-line boundaries, zeroed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#include "checked.h"

namespace ttengine {

class AlignedFloats {
 public:
  AlignedFloats() = default;
  explicit AlignedFloats(std::size_t size) { grow(size); }

  // Makes room for `size` floats, all zero if the array had to grow; contents are kept otherwise.
  void grow(std::size_t size) {
    if (size <= size_) return;
    const auto bytes = checked_multiply(size, sizeof(float));
    if (!bytes) throw std::bad_alloc();
    data_.reset(static_cast<float*>(::operator new(*bytes, std::align_val_t{64})));
    std::fill(data_.get(), data_.get() + size, 0.0f);
    size_ = size;
  }

  float* data() noexcept { return data_.get(); }
  const float* data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }

 private:
  struct Free {
    void operator()(float* floats) const noexcept { ::operator delete(floats, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace ttengine
