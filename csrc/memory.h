// Aligned storage, on huge pages where it is large: page lists jump about in it, and would miss the TLB at every jump.
#pragma once

#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ttengine {

struct AlignedDelete {
  std::align_val_t alignment = std::align_val_t{64};
  void operator()(void* bytes) const noexcept { ::operator delete(bytes, alignment); }
};

// At least 64-byte aligned; null when the system refuses. `deleter` is set to what frees it.
inline void* allocate_aligned(std::size_t bytes, AlignedDelete& deleter) noexcept {
  constexpr std::size_t kHuge = std::size_t{1} << 21;
  deleter.alignment = std::align_val_t{bytes >= kHuge ? kHuge : 64};
  void* storage = ::operator new(bytes, deleter.alignment, std::nothrow);
#if defined(__linux__)
  if (storage != nullptr && bytes >= kHuge) madvise(storage, bytes / kHuge * kHuge, MADV_HUGEPAGE);  // a wish
#endif
  return storage;
}

}  // namespace ttengine
