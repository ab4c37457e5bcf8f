// A fixed number of equal pages with reference counts: the storage of the paged key/value cache.
#include "page_pool.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <string>
#include <utility>

#include "checked.h"

namespace ttengine {
namespace {

std::size_t stride_of(std::size_t page_bytes) {
  if (page_bytes == 0) throw PagePoolError("a page has 0 bytes, at least 1 is needed");
  const auto stride = checked_round_up(page_bytes, PagePool::kAlignment);
  if (!stride) throw PagePoolError("a page of " + std::to_string(page_bytes) + " bytes overflows when aligned");
  return *stride;
}

std::unique_ptr<std::byte, AlignedDelete> allocate(std::size_t capacity, std::size_t stride_bytes) {
  if (capacity == 0 || capacity > PagePool::kMaxCapacity) {
    throw PagePoolError("capacity is " + std::to_string(capacity) + " pages, allowed is 1 to " +
                        std::to_string(PagePool::kMaxCapacity));
  }
  const std::string asked = std::to_string(capacity) + " pages of " + std::to_string(stride_bytes) + " bytes";
  const auto total = checked_multiply(capacity, stride_bytes);
  // beyond PTRDIFF_MAX pointer differences inside the storage would overflow, and no allocator could serve it
  if (!total || *total > static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max())) {
    throw PagePoolError(asked + " overflow the address space; use fewer or smaller pages");
  }
  // not zeroed: the system maps a page when it is first written, so memory grows with the live pages
  AlignedDelete deleter;
  void* bytes = allocate_aligned(*total, deleter);
  if (bytes == nullptr) throw PagePoolError("the system refused " + asked + "; use fewer or smaller pages");
  return {static_cast<std::byte*>(bytes), deleter};
}

}  // namespace

PagePool::PagePool(std::size_t capacity, std::size_t page_bytes)
    : page_bytes_(page_bytes),
      stride_bytes_(stride_of(page_bytes)),
      storage_(allocate(capacity, stride_bytes_)),
      references_(capacity, 0),
      free_(capacity) {
  // descending, so that a new pool hands out 0, 1, 2, ...
  for (std::size_t i = 0; i < capacity; ++i) free_[i] = static_cast<PageId>(capacity - 1 - i);
}

PagePool::PageId PagePool::acquire() {
  if (free_.empty()) throw PagePoolError("the pool is full: all " + std::to_string(capacity()) + " pages are live");
  return take();
}

std::vector<PagePool::PageId> PagePool::acquire(std::size_t count) {
  if (count > free_.size()) {
    throw PagePoolError(std::to_string(count) + " pages were asked for, " + std::to_string(free_.size()) + " of " +
                        std::to_string(capacity()) + " are free");
  }
  std::vector<PageId> pages(count);  // may throw: before any page is taken
  for (PageId& page : pages) page = take();
  return pages;
}

void PagePool::retain(PageId page, std::uint32_t times) {
  check_live(page, "retained");
  if (times > std::numeric_limits<std::uint32_t>::max() - references_[page]) {
    throw PagePoolError("page " + std::to_string(page) + " has " + std::to_string(references_[page]) + " references, " +
                        std::to_string(times) + " more overflow its count");
  }
  references_[page] += times;
}

bool PagePool::release(PageId page) {
  check_live(page, "released");
  if (--references_[page] > 0) return false;
  free_.push_back(page);  // cannot throw: the stack was built at full capacity
  return true;
}

std::byte* PagePool::data(PageId page) { return const_cast<std::byte*>(std::as_const(*this).data(page)); }

const std::byte* PagePool::data(PageId page) const {
  check_live(page, "read");
  return storage_.get() + page * stride_bytes_;
}

std::uint32_t PagePool::references(PageId page) const {
  check_known(page);
  return references_[page];
}

PagePool::PageId PagePool::take() noexcept {
  assert(!free_.empty());
  const PageId page = free_.back();
  free_.pop_back();
  assert(references_[page] == 0);
  references_[page] = 1;
  peak_ = std::max(peak_, live());
  return page;
}

void PagePool::check_known(PageId page) const {
  if (page < capacity()) return;
  throw PagePoolError("page " + std::to_string(page) + " does not exist, the pool has 0 to " +
                      std::to_string(capacity() - 1));
}

void PagePool::check_live(PageId page, const char* verb) const {
  check_known(page);
  if (references_[page] > 0) return;
  throw PagePoolError("page " + std::to_string(page) + " cannot be " + verb + ": it is free");
}

}  // namespace ttengine
