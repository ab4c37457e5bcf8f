// A growable array of floats on cache-line boundaries, zeroed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#include "checked.h"
#include "memory.h"

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
    AlignedDelete deleter;
    void* storage = allocate_aligned(*bytes, deleter);
    if (storage == nullptr) throw std::bad_alloc();
    data_ = {static_cast<float*>(storage), deleter};
    std::fill(data_.get(), data_.get() + size, 0.0f);
    size_ = size;
  }

  float* data() noexcept { return data_.get(); }
  const float* data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }

 private:
  std::unique_ptr<float, AlignedDelete> data_;
  std::size_t size_ = 0;
};

}  // namespace ttengine
