// Context pages that outlive a plan: the next control step appends to them what was executed.
#include "episodes.h"

#include <algorithm>
#include <utility>

namespace ttengine {

std::vector<PageEntry> Episodes::find(const std::vector<std::int32_t>& prefix, const std::vector<std::int32_t>& goal,
                                      std::size_t first) const {
  const std::int32_t last_round = static_cast<std::int32_t>(prefix.size()) - static_cast<std::int32_t>(K_);
  std::vector<PageEntry> found, best;
  for (std::size_t i = 0; i < prefixes_.size(); ++i) {
    const std::size_t episode = i == 0 ? std::min(first, prefixes_.size() - 1) : (i <= first ? i - 1 : i);
    if (goals_[episode] != goal) continue;
    for (std::size_t shift = 0; shift <= prefixes_[episode].size() / K_; ++shift) {
      if (!reusable(episode, prefix, shift, found)) continue;
      // an observation may come again: another shift may match further
      if (best.empty() || found.back().begin > best.back().begin) best.swap(found);
      if (best.back().begin + static_cast<std::int32_t>(K_) == last_round) return best;
    }
  }
  return best;
}

// Whether the prefix goes on where this episode's tokens, less their first `shift` transitions, end or part from it.
bool Episodes::reusable(std::size_t episode, const std::vector<std::int32_t>& prefix, std::size_t shift,
                        std::vector<PageEntry>& found) const {
  const std::vector<std::int32_t>& old = prefixes_[episode];
  const auto begin = old.begin() + static_cast<std::ptrdiff_t>(shift * K_);
  const auto common = std::min<std::ptrdiff_t>(old.end() - begin, static_cast<std::ptrdiff_t>(prefix.size()));
  const auto equal = static_cast<std::size_t>(std::mismatch(begin, begin + common, prefix.begin()).first - begin);
  // a context that was full may have slid: its keys bear traces of transitions before its first one, which a plan
  // cannot see only if its own context is full as well
  const bool traces = shift > 0 || old.size() / K_ >= capacity_;
  if (traces && prefix.size() / K_ < capacity_) return false;
  if (shift > 0 && begin + static_cast<std::ptrdiff_t>(equal) != old.end()) return false;
  const auto moved = static_cast<std::int32_t>(shift * K_), K = static_cast<std::int32_t>(K_);
  const std::int32_t last_round = static_cast<std::int32_t>(prefix.size()) - K;
  found.clear();
  for (const PageEntry& entry : table_.list(episode)) {
    if (entry.kind != PageEntry::Kind::round) continue;
    const std::int32_t from = entry.begin - moved;
    if (from + K > 0 && from + K <= static_cast<std::int32_t>(equal) && from < last_round) {
      found.push_back({entry.page, entry.filled, from, entry.kind});
    }
  }
  if (found.empty()) return false;
  // the first new token sees `context` transitions back: their pages have to be here, up to the start of the prefix
  const std::int32_t next = found.back().begin + K;
  const auto transition = next / K - static_cast<std::int32_t>(context_);
  const std::int32_t sight = std::max(0, transition * K);
  return found.front().begin <= 0 || found.front().begin + K - static_cast<std::int32_t>(N_) <= sight;
}

void Episodes::keep(std::vector<std::vector<std::int32_t>> prefixes, std::vector<std::vector<std::int32_t>> goals,
                    const std::vector<std::vector<PageEntry>>& lists) {
  table_.replace(lists);
  prefixes_ = std::move(prefixes);
  goals_ = std::move(goals);
}

}  // namespace ttengine
