// The page pool keeps its books, recycles in order, refuses what it cannot do and stays intact when it refuses.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <set>
#include <thread>
#include <vector>

#include "check.h"
#include "page_pool.h"

using ttengine::PagePool;
using ttengine::PagePoolError;

TEST(a_new_pool_is_empty_and_hands_out_pages_in_order) {
  PagePool pool(3, 100);
  CHECK(pool.capacity() == 3 && pool.free() == 3 && pool.live() == 0 && pool.peak() == 0);
  CHECK(pool.acquire() == 0);
  CHECK(pool.acquire() == 1);
  CHECK(pool.acquire() == 2);
  CHECK(pool.free() == 0 && pool.live() == 3 && pool.peak() == 3);
}

TEST(the_page_freed_last_is_handed_out_first) {
  PagePool pool(5, 1);
  const auto pages = pool.acquire(4);
  CHECK(pool.release(pages[2]));
  CHECK(pool.release(pages[0]));
  CHECK(pool.acquire() == pages[0]);
  CHECK(pool.acquire() == pages[2]);
  CHECK(pool.acquire() == 4);
}

TEST(a_shared_page_lives_until_its_last_release) {
  PagePool pool(2, 1);
  const auto page = pool.acquire();
  pool.retain(page);
  pool.retain(page, 2);
  CHECK(pool.references(page) == 4);
  for (int i = 0; i < 3; ++i) CHECK(!pool.release(page));
  CHECK(pool.live() == 1);
  CHECK(pool.release(page));
  CHECK(pool.live() == 0 && pool.references(page) == 0);
}

TEST(the_peak_stays_when_pages_go) {
  PagePool pool(5, 1);
  for (const auto page : pool.acquire(3)) CHECK(pool.release(page));
  pool.acquire();
  CHECK(pool.live() == 1 && pool.peak() == 3);
}

TEST(a_page_released_twice_is_an_error_and_enters_the_free_list_once) {
  PagePool pool(2, 1);
  const auto page = pool.acquire();
  CHECK(pool.release(page));
  CHECK_THROWS(pool.release(page), PagePoolError, "cannot be released: it is free");
  CHECK(pool.free() == 2);
  const auto both = pool.acquire(2);
  CHECK(both[0] != both[1]);
}

TEST(a_free_or_unknown_page_cannot_be_used) {
  PagePool pool(2, 1);
  CHECK_THROWS(pool.retain(1), PagePoolError, "cannot be retained: it is free");
  CHECK_THROWS(pool.data(1), PagePoolError, "cannot be read: it is free");
  CHECK_THROWS(pool.data(2), PagePoolError, "page 2 does not exist, the pool has 0 to 1");
  CHECK_THROWS(pool.release(2), PagePoolError, "does not exist");
  CHECK_THROWS(pool.references(std::numeric_limits<PagePool::PageId>::max()), PagePoolError, "does not exist");
}

TEST(a_full_pool_refuses_and_stays_intact) {
  PagePool pool(4, 1);
  const auto first = pool.acquire();
  CHECK_THROWS(pool.acquire(4), PagePoolError, "4 pages were asked for, 3 of 4 are free");
  CHECK_THROWS(pool.acquire(std::numeric_limits<std::size_t>::max()), PagePoolError, "were asked for");
  CHECK(pool.free() == 3 && pool.peak() == 1 && pool.references(first) == 1);
  CHECK((pool.acquire(3) == std::vector<PagePool::PageId>{1, 2, 3}));
  CHECK_THROWS(pool.acquire(), PagePoolError, "the pool is full: all 4 pages are live");
  CHECK(pool.acquire(0).empty());
  CHECK(pool.live() == 4);
}

TEST(a_reference_count_cannot_overflow) {
  PagePool pool(1, 1);
  const auto page = pool.acquire();
  const auto most = std::numeric_limits<std::uint32_t>::max();
  pool.retain(page, most - 1);
  CHECK(pool.references(page) == most);
  CHECK_THROWS(pool.retain(page), PagePoolError, "1 more overflow its count");
  CHECK(pool.references(page) == most);
}

TEST(sizes_that_overflow_or_make_no_sense_are_refused) {
  const std::size_t most = std::numeric_limits<std::size_t>::max();
  CHECK_THROWS(PagePool(0, 1), PagePoolError, "capacity is 0 pages");
  CHECK_THROWS(PagePool(PagePool::kMaxCapacity + 1, 1), PagePoolError, "allowed is 1 to 2147483647");
  CHECK_THROWS(PagePool(1, 0), PagePoolError, "a page has 0 bytes");
  CHECK_THROWS(PagePool(1, most), PagePoolError, "overflows when aligned");
  CHECK_THROWS(PagePool(4, most / 4 + 1), PagePoolError, "overflow the address space");  // would wrap to 0 bytes
  CHECK_THROWS(PagePool(2, most / 4 + 1), PagePoolError, "overflow the address space");  // fits size_t, not ptrdiff_t
  CHECK_THROWS(PagePool(1, most / 4), PagePoolError, "the system refused");
}

TEST(pages_are_aligned_and_do_not_overlap) {
  for (const std::size_t page_bytes : {1, 63, 64, 65, 1000}) {
    PagePool pool(7, page_bytes);
    const auto pages = pool.acquire(7);
    for (const auto page : pages) {
      CHECK(reinterpret_cast<std::uintptr_t>(pool.data(page)) % PagePool::kAlignment == 0);
      std::memset(pool.data(page), static_cast<int>(page), page_bytes);
    }
    for (const auto page : pages) {
      for (std::size_t i = 0; i < page_bytes; ++i) CHECK(pool.data(page)[i] == static_cast<std::byte>(page));
    }
  }
}

// Under TSan, pages that shared a byte would be a race. Every byte differs from its neighbour: a constant would become
// an inlined memset, which GCC does not instrument.
TEST(threads_fill_their_own_pages_at_the_same_time) {
  constexpr std::size_t kThreads = 4, kPages = 16, kBytes = 100;
  PagePool pool(kThreads * kPages, kBytes);
  const auto pages = pool.acquire(kThreads * kPages);
  const auto expected = [](std::size_t thread, std::size_t i) { return static_cast<std::byte>(31 * thread + i); };
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      // interleaved, so that every page has neighbours of other threads
      for (std::size_t p = t; p < pages.size(); p += kThreads) {
        std::byte* const bytes = pool.data(pages[p]);
        for (std::size_t i = 0; i < kBytes; ++i) bytes[i] = expected(t, i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::size_t wrong = 0;
  for (std::size_t p = 0; p < pages.size(); ++p) {
    for (std::size_t i = 0; i < kBytes; ++i) wrong += pool.data(pages[p])[i] != expected(p % kThreads, i);
  }
  CHECK(wrong == 0);
}

// a beam search's life: every survivor forks into children, parents are released, for many rounds
TEST(a_long_search_reuses_few_pages) {
  constexpr std::size_t kBeams = 31, kExpand = 2;
  PagePool pool(kBeams * (kExpand + 1), 64);
  std::set<PagePool::PageId> used;
  std::vector<PagePool::PageId> beams = pool.acquire(kBeams);
  for (int round = 0; round < 1000; ++round) {
    const auto candidates = pool.acquire(kBeams * kExpand);
    used.insert(candidates.begin(), candidates.end());
    for (const auto page : beams) CHECK(pool.release(page));
    beams.clear();
    for (std::size_t c = 0; c < candidates.size(); ++c) {
      if (c % kExpand == static_cast<std::size_t>(round) % kExpand) {
        beams.push_back(candidates[c]);
      } else {
        CHECK(pool.release(candidates[c]));
      }
    }
  }
  CHECK(pool.live() == kBeams);
  CHECK(pool.peak() == kBeams * (kExpand + 1));
  CHECK(used.size() <= pool.capacity());
}
