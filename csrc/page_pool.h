// A fixed number of equal pages with reference counts: the storage of the paged key/value cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "memory.h"

namespace ttengine {

// A page pool was asked for something that it cannot do; the pool is as it was before the call.
class PagePoolError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// All pages are allocated once. A page is born with one reference (acquire), shared by a fork (retain) and free again
// when its last reference goes (release). The page freed last is handed out first, so that the working set stays in
// cache. Every method that throws leaves the pool as it found it.
//
// The bookkeeping is not synchronised: one thread acquires, retains and releases, between segments. Bytes of different
// pages never share a cache line, so threads may fill their own pages at the same time.
class PagePool {
 public:
  using PageId = std::uint32_t;

  static constexpr std::size_t kAlignment = 64;                            // one cache line, one AVX-512 register
  static constexpr std::size_t kMaxCapacity = (std::size_t{1} << 31) - 1;  // page ids fit an int32 block table

  // Allocates `capacity` pages of `page_bytes` usable bytes each, contents undefined.
  // Throws PagePoolError: a size is 0, capacity exceeds kMaxCapacity, the total overflows or is refused by the system.
  PagePool(std::size_t capacity, std::size_t page_bytes);

  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // Takes one free page. Throws PagePoolError: the pool is full.
  PageId acquire();

  // Takes `count` free pages, all or none. Throws PagePoolError: fewer than `count` are free.
  std::vector<PageId> acquire(std::size_t count);

  // Adds `times` references to a live page. Throws PagePoolError: unknown page, free page, or the count would overflow.
  void retain(PageId page, std::uint32_t times = 1);

  // Drops one reference; true when it was the last and the page is free again.
  // Throws PagePoolError: unknown page, or a free one (released twice).
  bool release(PageId page);

  // The page's first byte, aligned to kAlignment. Throws PagePoolError: unknown page, or a free one.
  std::byte* data(PageId page);
  const std::byte* data(PageId page) const;

  // How many references a page has; 0 when it is free. Throws PagePoolError: unknown page.
  std::uint32_t references(PageId page) const;

  std::size_t capacity() const noexcept { return references_.size(); }
  std::size_t page_bytes() const noexcept { return page_bytes_; }
  std::size_t stride_bytes() const noexcept { return stride_bytes_; }  // from one page to the next
  std::size_t free() const noexcept { return free_.size(); }
  std::size_t live() const noexcept { return capacity() - free(); }
  std::size_t peak() const noexcept { return peak_; }  // most pages live at once since construction

 private:
  PageId take() noexcept;
  void check_known(PageId page) const;
  void check_live(PageId page, const char* verb) const;

  std::size_t page_bytes_;
  std::size_t stride_bytes_;
  std::unique_ptr<std::byte, AlignedDelete> storage_;
  std::vector<std::uint32_t> references_;  // by page
  std::vector<PageId> free_;               // a stack: the last one is handed out next
  std::size_t peak_ = 0;
};

}  // namespace ttengine
