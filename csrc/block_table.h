// Which pages each row of a search reads: the ancestors of a beam, shared with its relatives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "page_pool.h"

namespace ttengine {

// One page in a row's list, and how much of it the row may read.
struct PageEntry {
  enum class Kind : std::uint8_t {
    goal,    // the goal's tokens: seen from everywhere
    round,   // one round: [action tokens, reward | next observation]
    single,  // one token of a search that branches at every token
  };
  PagePool::PageId page;
  std::uint32_t filled;  // slots that hold this row's keys and values
  std::int32_t begin;    // index in the row of the token that the page begins at; negative where a row starts inside it
  Kind kind;
};

// Lists of pages with their references in two pools, one of whole rounds (and goals) and one of single tokens.
//
// A page belongs to every row that lists it; it is free again when the last of them lets it go. Forking copies lists
// and no keys. Only a row that writes into a page that others read too takes a copy first (own_last).
// Methods that throw PagePoolError leave the table and the pools as they were.
class BlockTable {
 public:
  BlockTable(PagePool& rounds, PagePool& singles) : rounds_(rounds), singles_(singles) {}
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;
  ~BlockTable() { clear(); }

  std::size_t rows() const { return lists_.size(); }
  const std::vector<PageEntry>& list(std::size_t row) const { return lists_[row]; }

  // Adds a row that reads these pages too.
  void add(const std::vector<PageEntry>& list);

  // Replaces the rows: new row i continues old row parents[i]. Old rows that nobody continues let their pages go.
  void fork(const std::vector<std::uint32_t>& parents);

  // Replaces all rows by rows that read these pages.
  void replace(const std::vector<std::vector<PageEntry>>& lists);

  // Lets go of all pages of one row.
  void drop_all(std::size_t row);

  // Appends a new page to a row. Throws PagePoolError: the pool is full.
  PagePool::PageId append(std::size_t row, PageEntry::Kind kind, std::int32_t begin);

  // Makes the last page of a row its own: where others hold it too, the filled part moves to a new page by
  // `copy(from, to, slots)`. Throws PagePoolError: the pool is full.
  template <typename Copy>
  PagePool::PageId own_last(std::size_t row, const Copy& copy) {
    PageEntry& last = lists_[row].back();
    PagePool& pool = pool_of(last.kind);
    if (pool.references(last.page) > 1) {
      const PagePool::PageId own = pool.acquire();
      copy(pool.data(last.page), pool.data(own), last.filled);
      pool.release(last.page);
      last.page = own;
    }
    return last.page;
  }

  void set_filled(std::size_t row, std::uint32_t slots) { lists_[row].back().filled = slots; }

  // Lets go of the pages whose last token, `begin` + `tokens` - 1, comes before `token`; goals stay.
  void drop_before(std::size_t row, std::int32_t token, std::int32_t round_tokens);

  // Lets everything go.
  void clear();

  const std::byte* data(const PageEntry& entry) const { return pool_of(entry.kind).data(entry.page); }

 private:
  PagePool& pool_of(PageEntry::Kind kind) const { return kind == PageEntry::Kind::single ? singles_ : rounds_; }
  void retain(const std::vector<PageEntry>& list);
  void release(const std::vector<PageEntry>& list);

  PagePool& rounds_;
  PagePool& singles_;
  std::vector<std::vector<PageEntry>> lists_, spare_;
};

}  // namespace ttengine
