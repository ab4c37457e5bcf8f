// Attention over pages, of every instruction set, against a plain double loop over tokens; and bit for bit whatever
// rows stand beside. All storage is NaN until write_slot fills it: a slot that is read unwritten shows.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "aligned.h"
#include "check.h"
#include "random_numbers.h"
#include "simd/kernels.h"

using namespace ttengine;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr std::size_t kLayers = 2, kTurns = 60;

// The layout that kernels.h describes; checked against what Forward makes by the tests of whole searches.
static PageShape page_shape(std::size_t slots, std::size_t heads, std::size_t width) {
  PageShape page;
  page.slots = slots;
  page.heads = heads;
  page.head_width = width;
  page.head_padded = round_up(width, 8);
  page.keys_floats = round_up(heads * width * (slots == 1 ? 1 : padded_slots(slots)), kRowAlign);
  page.layer_floats = round_up(page.keys_floats + heads * slots * page.head_padded, kRowAlign);
  return page;
}

// A page, and what is in it by slot.
struct TestPage {
  AlignedFloats storage;
  std::size_t slots;
  bool goal, single;
  std::vector<std::vector<float>> keys, values;  // [slot][heads * width], before any turn; the last layer's
};

// What one row attends to, in order.
struct View {
  const TestPage* page;
  std::size_t first, end, turn;
};
struct TestRow {
  std::vector<float> query;
  std::vector<View> views;
};

struct Setup {
  const Kernels& kernels;
  Random random;
  std::size_t heads, width, pairs;
  PageShape round, single;
  std::vector<float> cos, sin;
  std::vector<std::unique_ptr<TestPage>> pages;

  Setup(const Kernels& k, std::uint32_t seed, std::size_t slots, std::size_t head_count, std::size_t head_width,
        bool rotary)
      : kernels(k),
        random(seed),
        heads(head_count),
        width(head_width),
        pairs(rotary ? head_width / 4 : 0),
        round(page_shape(slots, heads, width)),
        single(page_shape(1, heads, width)),
        cos(kTurns * pairs),
        sin(kTurns * pairs) {
    for (std::size_t turn = 0; turn < kTurns; ++turn) {
      for (std::size_t p = 0; p < pairs; ++p) {
        cos[turn * pairs + p] = static_cast<float>(std::cos(angle(static_cast<double>(turn), p)));
        sin[turn * pairs + p] = static_cast<float>(std::sin(angle(static_cast<double>(turn), p)));
      }
    }
  }

  double angle(double turn, std::size_t pair) const {
    return turn * std::pow(10000.0, -static_cast<double>(pair) / static_cast<double>(pairs));
  }

  // A page with `written` of its slots filled, each layer with other numbers.
  const TestPage& page(std::size_t written, bool goal, bool is_single) {
    const PageShape& shape = is_single ? single : round;
    pages.push_back(std::make_unique<TestPage>());
    TestPage& made = *pages.back();
    made.storage.grow(kLayers * shape.layer_floats);
    std::fill(made.storage.data(), made.storage.data() + made.storage.size(), kNaN);
    made.slots = written;
    made.goal = goal;
    made.single = is_single;
    for (std::size_t slot = 0; slot < written; ++slot) {
      for (std::size_t layer = 0; layer < kLayers; ++layer) {
        const std::vector<float> key = random.normals(heads * width), value = random.normals(heads * width);
        // on a round page slot s is s tokens after the page's begin; a one-token page is turned as if it began 3 before
        const std::size_t turn = goal ? 0 : is_single ? 3 : slot;
        kernels.write_slot(key.data(), value.data(), shape, made.storage.data(), layer, slot, pairs,
                           cos.data() + turn * pairs, sin.data() + turn * pairs, goal);
        if (layer + 1 < kLayers) continue;
        made.keys.push_back(key);
        made.values.push_back(value);
      }
    }
    return made;
  }
};

// One head's score of a slot: the query turned by the distance in tokens between the two, nothing else.
static double score(const Setup& s, const TestRow& row, const View& view, std::size_t slot, std::size_t head) {
  const float *q = row.query.data() + head * s.width, *k = view.page->keys[slot].data() + head * s.width;
  const double distance = static_cast<double>(view.turn) - static_cast<double>(view.page->single ? 3 : slot);
  double total = 0.0;
  for (std::size_t p = 0; p < s.pairs && !view.page->goal; ++p) {
    const double c = std::cos(s.angle(distance, p)), t = std::sin(s.angle(distance, p));
    const double a = q[p], b = q[s.pairs + p];
    total += (a * c - b * t) * k[p] + (a * t + b * c) * k[s.pairs + p];
  }
  for (std::size_t d = 2 * s.pairs; d < s.width; ++d) total += static_cast<double>(q[d]) * k[d];
  return total / std::sqrt(static_cast<double>(s.width));
}

static std::vector<double> plain_attention(const Setup& s, const TestRow& row) {
  std::vector<double> mixed(s.heads * s.width, 0.0);
  for (std::size_t head = 0; head < s.heads; ++head) {
    double total = 0.0;
    for (const View& view : row.views) {
      for (std::size_t slot = view.first; slot < view.end; ++slot) {
        const double weight = std::exp(score(s, row, view, slot, head));
        total += weight;
        for (std::size_t d = head * s.width; d < (head + 1) * s.width; ++d) {
          mixed[d] += weight * view.page->values[slot][d];
        }
      }
    }
    for (std::size_t d = head * s.width; d < (head + 1) * s.width; ++d) mixed[d] /= total;
  }
  return mixed;
}

// The kernel's result for some rows, heads side by side, [rows][heads * width]. `spare`: list places that no row needs.
static std::vector<float> attend(const Setup& s, const std::vector<const TestRow*>& rows, std::size_t spare) {
  std::size_t most_pages = 0;
  for (const TestRow* row : rows) most_pages = std::max(most_pages, row->views.size() + spare);
  const std::size_t stride = s.heads * s.width + 3;
  const std::size_t most_scores = round_up(most_pages * round_up(s.round.slots, kSlotBlock), kRowAlign);
  std::vector<float> query(rows.size() * stride, kNaN), mixed(rows.size() * stride, kNaN), result;
  std::vector<std::vector<VisiblePage>> visible(rows.size());
  std::vector<const VisiblePage*> lists;
  std::vector<std::size_t> counts;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::copy(rows[r]->query.begin(), rows[r]->query.end(), query.begin() + static_cast<std::ptrdiff_t>(r * stride));
    for (const View& view : rows[r]->views) {
      visible[r].push_back({view.page->storage.data(), static_cast<std::uint32_t>(view.first),
                            static_cast<std::uint32_t>(view.end),
                            static_cast<std::uint32_t>(s.pairs == 0 ? 0 : view.turn), view.page->single});
    }
    lists.push_back(visible[r].data());
    counts.push_back(visible[r].size());
  }
  std::vector<float> scratch(attend_scratch(rows.size(), most_scores, s.round), kNaN);
  std::vector<std::uint32_t> offsets(rows.size() * most_pages, 0xFFFFFFFF);
  std::vector<PageRun> runs(rows.size() * most_pages, PageRun{9999, 9999, 9999});
  s.kernels.attend({rows.size(), query.data(), stride, mixed.data(), stride, lists.data(), counts.data(), kLayers - 1,
                    &s.round, &s.single, s.pairs, s.cos.data(), s.sin.data(), scratch.data(), offsets.data(),
                    runs.data(), most_pages, most_scores});
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto from = mixed.begin() + static_cast<std::ptrdiff_t>(r * stride);
    result.insert(result.end(), from, from + static_cast<std::ptrdiff_t>(s.heads * s.width));
    CHECK(std::isnan(mixed[r * stride + stride - 1]));  // what pads a row stays as it was
  }
  return result;
}

static double worst_error(const Setup& s, const TestRow& row, const float* got) {
  const std::vector<double> expected = plain_attention(s, row);
  double worst = 0.0;
  for (std::size_t d = 0; d < expected.size(); ++d) worst = std::max(worst, std::abs(got[d] - expected[d]));
  return std::isfinite(std::accumulate(got, got + expected.size(), 0.0f)) ? worst : 1e9;
}

// Rows as a search has them: neighbours share the first pages of their lists and part somewhere.
static std::vector<TestRow> family(Setup& s, std::size_t count, bool goal) {
  Random& random = s.random;
  const TestPage* const goal_page = goal ? &s.page(1 + random.below(s.round.slots), true, false) : nullptr;
  std::vector<TestRow> rows(count);
  for (std::size_t r = 0; r < count; ++r) {
    TestRow& row = rows[r];
    row.query = random.normals(s.heads * s.width, 1.5f);
    const std::size_t length = 1 + random.below(6);
    if (r > 0 && random.below(4) > 0) row.views = rows[r - 1].views;
    if (row.views.empty() && goal) row.views.push_back({goal_page, 0, goal_page->slots, 0});
    if (row.views.size() > length) row.views.resize(length);
    // sometimes the next row sees the same last page in another part, or from another place
    if (r > 0 && row.views.size() > 1 && random.coin()) {
      View& last = row.views.back();
      last.turn = last.page->goal ? 0 : last.page->slots + random.below(kTurns - s.round.slots);
      last.end = last.first + 1 + random.below(last.page->slots - last.first);
    }
    while (row.views.size() < length) {
      const bool single = random.below(3) == 0;
      const TestPage& page = s.page(single ? 1 : 1 + random.below(s.round.slots), false, single);
      const std::size_t first = random.coin() ? 0 : random.below(page.slots);
      row.views.push_back({&page, first, first + 1 + random.below(page.slots - first),
                           (single ? 3 : page.slots) + random.below(kTurns - s.round.slots - 3)});
    }
  }
  return rows;
}

struct Sizes {
  std::size_t slots, heads, width;
};
constexpr Sizes kSizes[] = {{3, 1, 4},  {4, 2, 5},   {7, 1, 8},   {8, 2, 16},
                            {9, 3, 12}, {17, 2, 33}, {24, 4, 32}, {26, 1, 64}};

// Calls work(setup, rows, name) for families of rows of every kind.
template <typename Work>
static void for_all_families(const Work& work) {
  for (const Isa isa : available_isas()) {
    std::uint32_t seed = 0;
    for (const Sizes& sizes : kSizes) {
      for (const bool rotary : {false, true}) {
        for (const bool goal : {false, true}) {
          for (const std::size_t count : {1, 2, 3, 4, 5, 8, 13}) {
            Setup setup(*find_kernels(isa), ++seed, sizes.slots, sizes.heads, sizes.width, rotary);
            work(setup, family(setup, count, goal));
          }
        }
      }
    }
  }
}

TEST(attention_is_that_of_a_plain_double_loop_over_tokens) {
  for_all_families([](Setup& s, const std::vector<TestRow>& rows) {
    std::vector<const TestRow*> batch;
    for (const TestRow& row : rows) batch.push_back(&row);
    const std::vector<float> got = attend(s, batch, 0);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      CHECK(worst_error(s, rows[r], got.data() + r * s.heads * s.width) < 2e-5);
    }
  });
}

TEST(a_row_attends_with_the_same_bits_whatever_rows_stand_beside_it) {
  for_all_families([](Setup& s, const std::vector<TestRow>& rows) {
    const std::size_t size = s.heads * s.width;
    std::vector<std::vector<float>> alone;
    for (const TestRow& row : rows) alone.push_back(attend(s, {&row}, 0));
    std::vector<std::size_t> order(rows.size());
    for (std::size_t r = 0; r < rows.size(); ++r) order[r] = r;
    for (int shuffle = 0; shuffle < 4; ++shuffle) {
      std::vector<const TestRow*> batch;
      for (const std::size_t r : order) batch.push_back(&rows[r]);
      const std::vector<float> got = attend(s, batch, static_cast<std::size_t>(shuffle));
      for (std::size_t i = 0; i < order.size(); ++i)
        CHECK(same_bits(got.data() + i * size, alone[order[i]].data(), size));
      for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[s.random.below(i)]);
    }
  });
}

// the same rows once more, each on pages of its own: sharing is a matter of speed
TEST(rows_that_share_pages_attend_as_if_they_did_not) {
  for_all_families([](Setup& s, const std::vector<TestRow>& rows) {
    std::vector<TestRow> apart = rows;
    for (TestRow& row : apart) {
      for (View& view : row.views) {
        s.pages.push_back(std::make_unique<TestPage>());
        TestPage& copy = *s.pages.back();
        copy.storage.grow(view.page->storage.size());
        std::copy_n(view.page->storage.data(), copy.storage.size(), copy.storage.data());
        copy.single = view.page->single;
        view.page = &copy;
      }
    }
    std::vector<const TestRow*> together, separate;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      together.push_back(&rows[r]);
      separate.push_back(&apart[r]);
    }
    CHECK(same_bits(attend(s, together, 0), attend(s, separate, 0)));
  });
}

TEST(a_lone_token_is_all_that_is_attended_to) {
  for (const Isa isa : available_isas()) {
    Setup s(*find_kernels(isa), 77, 9, 2, 8, true);
    const TestPage &round = s.page(9, false, false), &single = s.page(1, false, true);
    for (const View& view : {View{&round, 8, 9, 20}, View{&round, 3, 4, 9}, View{&single, 0, 1, 3}}) {
      const TestRow row{s.random.normals(16, 100.0f), {view}};
      const std::vector<float> got = attend(s, {&row}, 1);
      CHECK(same_bits(got, view.page->values[view.first]));
    }
  }
}

// scores of several hundred: e^score would overflow were the highest not taken off first
TEST(large_scores_do_not_overflow) {
  for (const Isa isa : available_isas()) {
    Setup s(*find_kernels(isa), 78, 9, 2, 8, false);
    const TestPage &first = s.page(9, false, false), &second = s.page(1, false, true);
    const TestRow row{s.random.normals(16, 300.0f), {{&first, 0, 9, 0}, {&second, 0, 1, 0}}};
    const std::vector<float> got = attend(s, {&row}, 0);
    CHECK(std::isfinite(std::accumulate(got.begin(), got.end(), 0.0f)));
    CHECK(worst_error(s, row, got.data()) < 5e-3);
  }
}
