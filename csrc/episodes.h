// Context pages that outlive a plan: the next control step appends to them what was executed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "block_table.h"

namespace ttengine {

// The prefixes of the last plan, a page list each. Rolling contexts only: there, keys do not depend on where the
// context begins, so that those of the transitions still in sight stay valid while it slides.
class Episodes {
 public:
  // `capacity`: past transitions that can influence a plan; `context`: those that one layer sees.
  Episodes(PagePool& rounds, PagePool& singles, std::size_t observation_dim, std::size_t transition_dim,
           std::size_t capacity, std::size_t context)
      : table_(rounds, singles), N_(observation_dim), K_(transition_dim), capacity_(capacity), context_(context) {}

  // The pages that a new prefix can take over, as entries of the new prefix: all whole rounds before its last one, as
  // far as they are in sight; empty if it continues none of the last plan's prefixes. Problem `first` is tried first.
  std::vector<PageEntry> find(const std::vector<std::int32_t>& prefix, const std::vector<std::int32_t>& goal,
                              std::size_t first) const;

  // Remembers a batch of prefixes and their pages in place of the last ones.
  void keep(std::vector<std::vector<std::int32_t>> prefixes, std::vector<std::vector<std::int32_t>> goals,
            const std::vector<std::vector<PageEntry>>& lists);

  void clear() { keep({}, {}, {}); }

 private:
  bool reusable(std::size_t episode, const std::vector<std::int32_t>& prefix, std::size_t shift,
                std::vector<PageEntry>& found) const;

  BlockTable table_;
  std::vector<std::vector<std::int32_t>> prefixes_, goals_;
  std::size_t N_, K_, capacity_, context_;
};

}  // namespace ttengine
