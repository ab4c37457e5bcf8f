// What of a search passes through the model, and which pages each token sees: single steps and whole windows.
//
// Tokens of a row are counted from the start of its window. A page holds one round, [action tokens, reward | next
// observation]; it begins at the first action token, so that a row's first page, which holds an observation alone,
// begins before token 0. Value tokens have no slot: nobody attends to them.
#include <algorithm>
#include <utility>

#include "search.h"

namespace ttengine {

// The distinct windows of one problem, a node for each distinct page: what several rows share is computed once.
struct Search::Trie {
  struct Node {
    std::int32_t parent;
    Physical like;  // a row that it was built for
    PageEntry entry;
    std::size_t last_row;  // of the batch: the page's last token
  };
  struct Leaf {
    std::int32_t node, pending;
    std::uint32_t physical;
  };
  std::vector<Node> nodes;
  std::vector<Leaf> leaves;
  std::vector<PagePool::PageId> held;  // the nodes' pages, until rows list them
  PagePool& pool;

  explicit Trie(PagePool& pages) : pool(pages) {}
  Trie(const Trie&) = delete;
  Trie& operator=(const Trie&) = delete;
  ~Trie() {
    for (PagePool::PageId page : held) pool.release(page);
  }
  void next_problem() {
    nodes.clear();
    leaves.clear();
  }
};

Search::Place Search::place_of(std::int32_t position) const {
  const auto N = static_cast<std::int32_t>(shape_.observation_dim), M = static_cast<std::int32_t>(shape_.action_dim);
  const std::int32_t K = N + M + 2, column = position % K;
  if (column >= N) return {position - (column - N), static_cast<std::uint32_t>(column - N), column != K - 1};
  return {position - column - (M + 2), static_cast<std::uint32_t>(M + 1 + column), true};
}

std::int32_t Search::token(const Physical& row, std::int32_t index) const {
  const Problem& problem = problems_[row.problem];
  const auto at = static_cast<std::size_t>(index + problem.start), prefix = problem.prefix.size();
  if (at < prefix) return problem.prefix[at];
  return tokens_[row.sample * settings_.horizon * shape_.transition_dim() + at - prefix];
}

// Moves the windows' starts, whole transitions at a time, where the rows have become too long. Returns which moved.
std::vector<bool> Search::crop_windows() {
  std::vector<bool> cropped(problems_.size(), false);
  const auto K = static_cast<std::int32_t>(shape_.transition_dim());
  const auto limit = static_cast<std::int32_t>(settings_.window_tokens);
  for (std::size_t b = 0; limit > 0 && b < problems_.size(); ++b) {
    Problem& problem = problems_[b];
    const std::int32_t excess = static_cast<std::int32_t>(problem.prefix.size() + planned_) - problem.start - limit;
    if (excess <= 0) continue;
    problem.start += (excess + K - 1) / K * K;
    cropped[b] = true;
  }
  return cropped;
}

// Adds one more token of a row whose earlier tokens are in its pages; returns them. `physical`: its number in the
// table.
const std::vector<PageEntry>& Search::step_row(Physical& row, std::uint32_t physical) {
  const Problem& problem = problems_[row.problem];
  const auto K = static_cast<std::int32_t>(shape_.transition_dim());
  const std::int32_t position = static_cast<std::int32_t>(problem.prefix.size() + planned_) - 1 - problem.start;
  if (shape_.rotary) {
    table_->drop_before(physical, (position / K - static_cast<std::int32_t>(shape_.context)) * K, K);
  }
  row.output = static_cast<std::uint32_t>(batch_.outputs++);
  const auto output = static_cast<std::int32_t>(row.output);
  const Place place = place_of(position);
  if (place.stored && settings_.branching) {
    table_->append(physical, PageEntry::Kind::single, position);
    table_->set_filled(physical, 1);
  } else if (place.stored) {
    const std::vector<PageEntry>& list = table_->list(physical);
    if (list.empty() || list.back().kind == PageEntry::Kind::goal || list.back().begin != place.begin) {
      table_->append(physical, PageEntry::Kind::round, place.begin);
    } else {
      table_->own_last(physical, [this](const std::byte* from, std::byte* to, std::size_t slots) {
        forward_.copy_slots(from, to, slots);
      });
    }
    table_->set_filled(physical, place.slot + 1);
  }
  push_row(row.pending, position, table_->list(physical), output);
  return table_->list(physical);
}

// Adds a token to the batch. `list`: the row's pages, the last of which takes the token's key and value, if it has any.
void Search::push_row(std::int32_t token, std::int32_t position, const std::vector<PageEntry>& list,
                      std::int32_t output) {
  const auto N = static_cast<std::int32_t>(shape_.observation_dim), M = static_cast<std::int32_t>(shape_.action_dim);
  const std::int32_t K = N + M + 2;
  const std::int32_t sight =
      shape_.rotary ? std::max(0, (position / K - static_cast<std::int32_t>(shape_.context)) * K) : 0;
  Row row{token, static_cast<std::uint32_t>(position),
          false, static_cast<std::uint32_t>(batch_.pages.size()),
          0,     nullptr,
          0,     0,
          false, output};
  for (const PageEntry& entry : list) {
    const auto* page = reinterpret_cast<const float*>(table_->data(entry));
    if (entry.kind == PageEntry::Kind::goal) {
      batch_.pages.push_back({page, 0, entry.filled, 0, false});
      continue;
    }
    if (entry.kind == PageEntry::Kind::single) {
      if (entry.begin < sight) continue;
      const std::int32_t turn = position - (entry.begin - entry.begin % K);
      batch_.pages.push_back({page, 0, 1, static_cast<std::uint32_t>(shape_.rotary ? turn : 0), true});
      continue;
    }
    if (entry.begin + K <= sight || entry.begin > position) continue;
    const std::int32_t distance = position - entry.begin;
    const std::int32_t first = entry.begin < 0 || entry.begin < sight ? M + 1 : 0;
    std::int32_t end = distance <= M ? distance + 1 : std::max(M + 1, std::min(distance, K - 1));
    end = std::min(end, static_cast<std::int32_t>(entry.filled));
    if (end <= first) continue;
    batch_.pages.push_back({page, static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(end),
                            static_cast<std::uint32_t>(shape_.rotary ? distance : 0), false});
  }
  row.page_count = static_cast<std::uint32_t>(batch_.pages.size()) - row.first_page;
  const Place place = place_of(position);
  if (place.stored) {
    const PageEntry& own = list.back();
    row.page = const_cast<float*>(reinterpret_cast<const float*>(table_->data(own)));
    row.single = own.kind == PageEntry::Kind::single;
    row.slot = row.single ? 0 : place.slot;
    if (shape_.rotary) row.turn = static_cast<std::uint32_t>(row.single ? position % K : position - place.begin);
  }
  batch_.rows.push_back(row);
}

// Adds a problem's goal to the batch, on a page of its own that all of its rows will read.
void Search::push_goal(Problem& problem) {
  const PagePool::PageId page = rounds_pool_->acquire();
  const auto slots = static_cast<std::uint32_t>(problem.goal.size());
  problem.base.push_back({page, slots, 0, PageEntry::Kind::goal});
  auto* floats = reinterpret_cast<float*>(rounds_pool_->data(page));
  for (std::uint32_t i = 0; i < slots; ++i) {
    batch_.rows.push_back(
        {problem.goal[i], i, true, static_cast<std::uint32_t>(batch_.pages.size()), 1, floats, i, 0, false, -1});
    batch_.pages.push_back({floats, 0, i + 1, 0, false});
  }
}

// Adds to the batch the whole windows of some problems, and one step of the others.
void Search::rebuild(const std::vector<bool>& which) {
  batch_.independent = false;
  for (std::uint32_t row = 0; row < physical_.size(); ++row) {
    if (which[physical_[row].problem]) table_->drop_all(row);
  }
  const std::vector<Physical> old = std::move(physical_);
  physical_.clear();
  std::vector<std::vector<PageEntry>> lists;
  std::vector<std::uint32_t> renamed(old.size());
  Trie trie(*rounds_pool_);
  for (std::uint32_t row = 0; row < old.size(); ++row) {
    if (row == 0 || old[row].problem != old[row - 1].problem) {
      trie.next_problem();
      const Problem& problem = problems_[old[row].problem];
      const std::size_t length = problem.prefix.size() + planned_ - static_cast<std::size_t>(problem.start);
      counters_.logical_rows += rows() * (which[old[row].problem] ? length : 1);
      counters_.prefills += which[old[row].problem] ? 1 : 0;
    }
    if (which[old[row].problem]) {
      renamed[row] = rebuild_row(old[row], trie, lists);
    } else {
      physical_.push_back(old[row]);
      lists.push_back(step_row(physical_.back(), row));
      renamed[row] = static_cast<std::uint32_t>(physical_.size()) - 1;
    }
  }
  for (Logical& row : logical_) row.physical = renamed[row.physical];
  table_->replace(lists);
  if (planned_ == 0 && settings_.window_tokens == 0) keep_contexts();
}

// Adds to the batch what of a row's window no other row has brought; returns its number among the new physical rows.
std::uint32_t Search::rebuild_row(const Physical& row, Trie& trie, std::vector<std::vector<PageEntry>>& lists) {
  const Problem& problem = problems_[row.problem];
  const auto K = static_cast<std::int32_t>(shape_.transition_dim()), M = static_cast<std::int32_t>(shape_.action_dim);
  const std::int32_t last = static_cast<std::int32_t>(problem.prefix.size() + planned_) - 1 - problem.start;
  std::vector<PageEntry> list = problem.base;
  std::int32_t begin = -(M + 2), node = -1;
  if (planned_ == 0 && settings_.window_tokens == 0) {
    for (const PageEntry& entry : episodes_->find(problem.prefix, problem.goal, row.problem)) {
      list.push_back(entry);
      begin = entry.begin + K;
    }
  }
  for (; begin <= last; begin += K) {
    const std::int32_t end = std::min(begin + K, last + 1), parent = node;
    node = find_page(trie, parent, row, begin, end);
    if (node < 0) {
      build_page(trie, parent, row, begin, end, list);
      node = static_cast<std::int32_t>(trie.nodes.size()) - 1;
    } else {
      list.push_back(trie.nodes[static_cast<std::size_t>(node)].entry);
    }
  }
  const bool stored = place_of(last).stored;
  for (const Trie::Leaf& leaf : trie.leaves) {
    if (settings_.deduplicate && leaf.node == node && (stored || leaf.pending == row.pending)) return leaf.physical;
  }
  const auto physical = static_cast<std::uint32_t>(physical_.size());
  const auto output = static_cast<std::int32_t>(batch_.outputs++);
  if (stored) {
    batch_.rows[trie.nodes[static_cast<std::size_t>(node)].last_row].output = output;
  } else {
    push_row(row.pending, last, list, output);
  }
  physical_.push_back(row);
  physical_.back().output = static_cast<std::uint32_t>(output);
  lists.push_back(std::move(list));
  trie.leaves.push_back({node, row.pending, physical});
  return physical;
}

// The child of a node whose page holds a row's tokens [begin, end), or -1.
std::int32_t Search::find_page(const Trie& trie, std::int32_t parent, const Physical& row, std::int32_t begin,
                               std::int32_t end) const {
  for (std::size_t i = 0; settings_.deduplicate && i < trie.nodes.size(); ++i) {
    const Trie::Node& node = trie.nodes[i];
    if (node.parent != parent || node.entry.begin != begin) continue;
    bool same = true;
    for (std::int32_t t = std::max(begin, 0); same && t < end; ++t) {
      same = token(node.like, t) == token(row, t) || !place_of(t).stored;
    }
    if (same) return static_cast<std::int32_t>(i);
  }
  return -1;
}

// Adds a page with a row's tokens [begin, end) to the trie, the list and the batch.
void Search::build_page(Trie& trie, std::int32_t parent, const Physical& row, std::int32_t begin, std::int32_t end,
                        std::vector<PageEntry>& list) {
  trie.held.reserve(trie.held.size() + 1);
  const PagePool::PageId page = rounds_pool_->acquire();
  trie.held.push_back(page);
  const Place last = place_of(end - 1);
  // a value token has the number of the slot that follows it
  list.push_back({page, last.slot + (last.stored ? 1 : 0), begin, PageEntry::Kind::round});
  for (std::int32_t t = std::max(begin, 0); t < end; ++t) {
    if (place_of(t).stored) push_row(token(row, t), t, list, -1);
  }
  trie.nodes.push_back({parent, row, list.back(), batch_.rows.size() - 1});
}

// Remembers the prefixes' pages for the next plan, as many as its first token can see.
void Search::keep_contexts() {
  std::vector<std::vector<std::int32_t>> prefixes, goals;
  std::vector<std::vector<PageEntry>> lists;
  for (std::uint32_t row = 0; row < physical_.size(); ++row) {
    const Problem& problem = problems_[physical_[row].problem];
    prefixes.push_back(problem.prefix);
    goals.push_back(problem.goal);
    std::vector<PageEntry> list = table_->list(row);
    list.erase(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(problem.base.size()));
    const std::size_t kept = std::min(list.size(), shape_.context + 2);
    lists.emplace_back(list.end() - static_cast<std::ptrdiff_t>(kept), list.end());
  }
  episodes_->keep(std::move(prefixes), std::move(goals), lists);
}

}  // namespace ttengine
