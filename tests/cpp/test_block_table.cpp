// Block tables share pages among rows, copy what a row is about to write, and stay intact when a pool is full.
#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "block_table.h"
#include "check.h"

using ttengine::BlockTable;
using ttengine::PageEntry;
using ttengine::PagePool;
using ttengine::PagePoolError;
using Kind = PageEntry::Kind;

constexpr std::size_t kBytes = 8;

// Two pools and a table over them; the pools go last.
struct Tables {
  PagePool rounds, singles;
  BlockTable table{rounds, singles};
  explicit Tables(std::size_t capacity) : rounds(capacity, kBytes), singles(capacity, kBytes) {}

  // Writes one byte behind the last one of a row's last page, on a page of its own.
  void write(std::size_t row, int value) {
    const auto page = table.own_last(
        row, [](const std::byte* from, std::byte* to, std::size_t slots) { std::memcpy(to, from, slots); });
    const PageEntry last = table.list(row).back();
    (last.kind == Kind::single ? singles : rounds).data(page)[last.filled] = static_cast<std::byte>(value);
    table.set_filled(row, last.filled + 1);
  }

  std::vector<int> read(std::size_t row) const {
    std::vector<int> bytes;
    for (const PageEntry& entry : table.list(row)) {
      for (std::size_t i = 0; i < entry.filled; ++i) bytes.push_back(static_cast<int>(table.data(entry)[i]));
    }
    return bytes;
  }
};

static bool same_lists(const std::vector<PageEntry>& a, const std::vector<PageEntry>& b) {
  bool same = a.size() == b.size();
  for (std::size_t i = 0; same && i < a.size(); ++i) {
    same = a[i].page == b[i].page && a[i].filled == b[i].filled && a[i].begin == b[i].begin && a[i].kind == b[i].kind;
  }
  return same;
}

TEST(an_added_row_shares_the_pages_that_it_is_given) {
  Tables t(4);
  const auto round = t.rounds.acquire(), single = t.singles.acquire();
  const std::vector<PageEntry> list{{round, 3, -2, Kind::round}, {single, 1, 5, Kind::single}};
  t.table.add(list);
  t.table.add(list);
  CHECK(t.table.rows() == 2 && same_lists(t.table.list(0), list) && same_lists(t.table.list(1), list));
  CHECK(t.rounds.references(round) == 3 && t.singles.references(single) == 3);
  CHECK(t.table.data(list[0]) == t.rounds.data(round) && t.table.data(list[1]) == t.singles.data(single));
}

TEST(an_appended_page_is_empty_and_of_the_pool_of_its_kind) {
  Tables t(4);
  t.table.add({});
  t.singles.acquire();  // so that the two pools hand out different numbers
  CHECK(t.table.append(0, Kind::goal, 0) == 0);
  CHECK(t.table.append(0, Kind::round, -3) == 1);
  CHECK(t.table.append(0, Kind::single, 7) == 1);
  CHECK(same_lists(t.table.list(0), {{0, 0, 0, Kind::goal}, {1, 0, -3, Kind::round}, {1, 0, 7, Kind::single}}));
  CHECK(t.rounds.live() == 2 && t.singles.live() == 2);
}

TEST(forked_rows_share_pages_and_forgotten_rows_let_them_go) {
  Tables t(8);
  for (std::size_t row = 0; row < 3; ++row) {
    t.table.add({});
    t.table.append(row, Kind::round, 0);
    t.write(row, static_cast<int>(10 + row));
  }
  t.table.fork({2, 0, 2, 2});
  CHECK(t.table.rows() == 4);
  CHECK(t.rounds.references(0) == 1 && t.rounds.references(1) == 0 && t.rounds.references(2) == 3);
  CHECK(t.read(0) == std::vector<int>{12} && t.read(1) == std::vector<int>{10} && t.read(3) == std::vector<int>{12});
  t.table.fork({1});
  CHECK(t.table.rows() == 1 && t.rounds.live() == 1 && t.read(0) == std::vector<int>{10});
  t.table.fork({0, 0, 0, 0, 0});
  CHECK(t.table.rows() == 5 && t.rounds.references(0) == 5 && t.read(4) == std::vector<int>{10});
  t.table.fork({});
  CHECK(t.table.rows() == 0 && t.rounds.live() == 0);
}

TEST(only_a_row_that_shares_its_last_page_copies_it_before_writing) {
  Tables t(4);
  t.table.add({});
  t.table.append(0, Kind::round, 0);
  t.write(0, 1);
  t.write(0, 2);
  CHECK(t.rounds.peak() == 1);  // alone: written in place
  t.table.fork({0, 0, 0});
  t.write(1, 3);
  CHECK(t.rounds.live() == 2 && t.rounds.references(0) == 2 && t.table.list(1).back().page == 1);
  t.write(0, 4);
  CHECK(t.rounds.live() == 3 && t.rounds.references(0) == 1);
  t.write(2, 5);  // the last one of the three keeps the page
  CHECK(t.rounds.live() == 3 && t.table.list(2).back().page == 0);
  CHECK((t.read(0) == std::vector<int>{1, 2, 4}) && (t.read(1) == std::vector<int>{1, 2, 3}));
  CHECK((t.read(2) == std::vector<int>{1, 2, 5}));
}

TEST(a_copy_takes_the_filled_slots_and_no_more) {
  Tables t(4);
  t.table.add({});
  t.table.append(0, Kind::single, 0);
  t.table.set_filled(0, 5);
  t.table.fork({0, 0});
  std::vector<std::size_t> copied;
  const std::byte* const source = t.singles.data(0);
  t.table.own_last(1, [&](const std::byte* from, std::byte* to, std::size_t slots) {
    copied.push_back(slots);
    CHECK(from == source && to == t.singles.data(1));
  });
  CHECK(copied == std::vector<std::size_t>{5});
  t.table.own_last(1, [&](const std::byte*, std::byte*, std::size_t slots) { copied.push_back(slots); });
  CHECK(copied.size() == 1);  // its own by now
}

TEST(a_full_pool_leaves_table_and_pools_as_they_were) {
  Tables t(2);
  for (std::size_t row = 0; row < 2; ++row) {
    t.table.add({});
    t.table.append(row, Kind::round, static_cast<std::int32_t>(row));
    t.write(row, static_cast<int>(row));
  }
  t.table.fork({0, 0, 1});
  const std::vector<PageEntry> before = t.table.list(1);
  CHECK_THROWS(t.table.append(1, Kind::round, 9), PagePoolError, "the pool is full");
  CHECK_THROWS(t.table.append(1, Kind::goal, 9), PagePoolError, "the pool is full");
  CHECK_THROWS(t.write(1, 9), PagePoolError, "the pool is full");
  CHECK(same_lists(t.table.list(1), before) && t.read(1) == std::vector<int>{0});
  CHECK(t.rounds.live() == 2 && t.rounds.references(0) == 2 && t.rounds.references(1) == 1);
  t.write(2, 3);  // alone on its page: needs no other
  CHECK((t.read(2) == std::vector<int>{1, 3}));
  t.table.append(1, Kind::single, 9);  // the other pool has room
  CHECK(t.singles.live() == 1 && t.table.list(1).size() == 2);
}

TEST(pages_that_end_before_a_token_go_and_goals_stay) {
  Tables t(8);
  t.table.add({});
  t.table.append(0, Kind::goal, 0);
  t.table.append(0, Kind::round, -3);
  t.table.append(0, Kind::round, 2);
  t.table.append(0, Kind::single, 7);
  t.table.append(0, Kind::single, 8);
  const std::vector<PageEntry> all = t.table.list(0);
  t.table.fork({0, 0});
  t.table.drop_before(0, 1, 5);  // the first round ends with token 1: still in sight
  CHECK(same_lists(t.table.list(0), all));
  t.table.drop_before(0, 2, 5);
  CHECK(same_lists(t.table.list(0), {all[0], all[2], all[3], all[4]}));
  t.table.drop_before(0, 8, 5);
  CHECK(same_lists(t.table.list(0), {all[0], all[4]}));
  CHECK(same_lists(t.table.list(1), all) && t.rounds.references(all[1].page) == 1);
  t.table.drop_before(1, 100, 5);
  CHECK(same_lists(t.table.list(1), {all[0]}));
  CHECK(t.rounds.live() == 1 && t.rounds.references(all[0].page) == 2 && t.singles.live() == 1);
}

TEST(replaced_rows_read_the_new_pages_even_where_they_are_the_old_ones) {
  Tables t(4);
  t.table.add({});
  t.table.append(0, Kind::round, 0);
  t.table.append(0, Kind::round, 5);
  const std::vector<PageEntry> list = t.table.list(0);
  t.table.replace({{list[1]}, {}, {list[1]}});
  CHECK(t.table.rows() == 3 && t.table.list(1).empty() && same_lists(t.table.list(2), {list[1]}));
  CHECK(t.rounds.live() == 1 && t.rounds.references(list[1].page) == 2);
}

TEST(a_dropped_row_stays_and_a_cleared_table_is_empty) {
  Tables t(4);
  t.table.add({});
  t.table.append(0, Kind::round, 0);
  t.table.append(0, Kind::single, 0);
  t.table.fork({0, 0});
  t.table.drop_all(0);
  CHECK(t.table.rows() == 2 && t.table.list(0).empty() && t.table.list(1).size() == 2);
  CHECK(t.rounds.live() == 1 && t.singles.live() == 1);
  t.table.clear();
  CHECK(t.table.rows() == 0 && t.rounds.live() == 0 && t.singles.live() == 0);
}

TEST(a_table_that_goes_away_lets_its_pages_go) {
  PagePool rounds(2, kBytes), singles(2, kBytes);
  {
    BlockTable table(rounds, singles);
    table.add({});
    table.append(0, Kind::round, 0);
    table.append(0, Kind::single, 0);
    CHECK(rounds.live() == 1 && singles.live() == 1);
  }
  CHECK(rounds.live() == 0 && singles.live() == 0);
}
