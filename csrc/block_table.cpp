// Which pages each row of a search reads: the ancestors of a beam, shared with its relatives.
#include "block_table.h"

#include <algorithm>
#include <cassert>

namespace ttengine {

void BlockTable::add(const std::vector<PageEntry>& list) {
  lists_.push_back(list);
  retain(list);
}

void BlockTable::fork(const std::vector<std::uint32_t>& parents) {
  spare_.resize(std::max(spare_.size(), parents.size()));  // lists keep their memory from fork to fork
  for (std::size_t i = 0; i < parents.size(); ++i) {
    assert(parents[i] < lists_.size());
    spare_[i] = lists_[parents[i]];
    retain(spare_[i]);
  }
  spare_.resize(parents.size());
  lists_.swap(spare_);
  for (std::vector<PageEntry>& list : spare_) {
    release(list);
    list.clear();
  }
}

void BlockTable::replace(const std::vector<std::vector<PageEntry>>& lists) {
  std::vector<std::vector<PageEntry>> next = lists;
  for (const std::vector<PageEntry>& list : next) retain(list);
  clear();
  lists_ = std::move(next);
}

void BlockTable::drop_all(std::size_t row) {
  release(lists_[row]);
  lists_[row].clear();
}

PagePool::PageId BlockTable::append(std::size_t row, PageEntry::Kind kind, std::int32_t begin) {
  lists_[row].reserve(lists_[row].size() + 1);  // may throw: before a page is taken
  const PagePool::PageId page = pool_of(kind).acquire();
  lists_[row].push_back({page, 0, begin, kind});
  return page;
}

void BlockTable::drop_before(std::size_t row, std::int32_t token, std::int32_t round_tokens) {
  std::vector<PageEntry>& list = lists_[row];
  const auto gone = [&](const PageEntry& entry) {
    if (entry.kind == PageEntry::Kind::goal) return false;
    const std::int32_t tokens = entry.kind == PageEntry::Kind::single ? 1 : round_tokens;
    return entry.begin + tokens <= token;
  };
  for (const PageEntry& entry : list) {
    if (gone(entry)) pool_of(entry.kind).release(entry.page);
  }
  list.erase(std::remove_if(list.begin(), list.end(), gone), list.end());
}

void BlockTable::clear() {
  for (const std::vector<PageEntry>& list : lists_) release(list);
  lists_.clear();
}

void BlockTable::retain(const std::vector<PageEntry>& list) {
  for (const PageEntry& entry : list) pool_of(entry.kind).retain(entry.page);
}

void BlockTable::release(const std::vector<PageEntry>& list) {
  for (const PageEntry& entry : list) pool_of(entry.kind).release(entry.page);
}

}  // namespace ttengine
