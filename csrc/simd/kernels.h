// What the inner loops compute, whatever the instruction set they were compiled for.
//
// Rows never influence each other's bits: every number is summed in one order, wherever its row stands in a tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ttengine {

enum class Isa { portable, avx2, avx512 };

// Memory that will be read soon. Products ask for it, a line at a time, while they compute.
struct Ahead {
  struct Range {
    const float* from;
    std::size_t floats;
  };
  const Range* range = nullptr;
  const Range* end = nullptr;
  std::size_t shift = 0;  // floats from where a range says to where it is: by layer
  std::size_t done = 0;   // floats of the first range
};

// A weight matrix [n, k], laid out for one instruction set: panels of `panel` outputs, each [k][panel]; the last panel
// is as narrow as whole vectors allow. Outputs past n are zero.
struct PackedMatrix {
  const float* weights;
  const float* bias;     // [n_padded], or null
  std::size_t k;         // inputs
  std::size_t n_padded;  // outputs, rounded up to whole vectors
  const float* next;     // the weights that will be read after these, asked for ahead of time; or null
};

enum class Epilogue { store, gelu, add };  // c = ab + bias; c = gelu(ab + bias); c += ab + bias

constexpr std::size_t kRowAlign = 16;  // rows of activations are padded to whole vectors of the widest set

constexpr std::size_t round_up(std::size_t a, std::size_t step) { return (a + step - 1) / step * step; }

// How one page lies in memory, in floats. By layer: keys [blocks][heads][head_width][kSlotBlock], so that a vector
// holds neighbouring slots; the last block is half as wide where that is enough. Then values
// [heads][slots][head_padded], so that a vector holds neighbouring dims. The keys of a one-token page are
// [heads][head_width].
struct PageShape {
  std::size_t slots, heads, head_width, head_padded;
  std::size_t keys_floats, layer_floats;
};

constexpr std::size_t kSlotBlock = 16;  // slots of a page whose keys lie side by side

// Slots of a page, with those that pad the last block.
constexpr std::size_t padded_slots(std::size_t slots) { return round_up(slots, kSlotBlock / 2); }

// The part of a page that a row attends to.
struct VisiblePage {
  const float* page;         // its first float, layer 0
  std::uint32_t first, end;  // slots
  std::uint32_t turn;        // position of the query minus that of the page: which rotation meets its keys
  bool single;               // a one-token page
};

// Neighbouring rows that see the same part of the same page, the same place in their lists.
struct PageRun {
  std::uint32_t page, first_row, rows;
};

struct AttendArguments {
  std::size_t rows;
  const float* query;  // [rows][query_stride], heads side by side
  std::size_t query_stride;
  float* mixed;  // [rows][mixed_stride], heads side by side
  std::size_t mixed_stride;
  const VisiblePage* const* pages;  // [rows]
  const std::size_t* page_counts;   // [rows]
  std::size_t layer;
  const PageShape *round, *single;
  std::size_t pairs;        // dims in half of each turned part; 0: nothing turns
  const float *cos, *sin;   // [turn][pairs]
  float* scratch;           // attend_scratch() floats
  std::uint32_t* offsets;   // scratch too: [rows][most_pages]
  PageRun* runs;            // [rows * most_pages]
  std::size_t most_pages;   // largest page count of any row
  std::size_t most_scores;  // floats for one row's scores, a multiple of 16
};

inline std::size_t attend_scratch(std::size_t rows, std::size_t most_scores, const PageShape& shape) {
  return round_up(rows * shape.head_width, kRowAlign) +
         rows * (most_scores + round_up(shape.head_padded, kRowAlign) + 1);
}

struct Kernels {
  Isa isa;
  std::size_t lanes, panel;

  // c [rows][c_stride] from a [rows][a_stride]; strides are at least the padded widths.
  void (*matmul)(const float* a, std::size_t a_stride, std::size_t rows, const PackedMatrix& b, float* c,
                 std::size_t c_stride, Epilogue epilogue, Ahead& ahead);

  // LayerNorm of [rows][stride] over the first `width`; gain and shift [stride] are zero past it, and so is the result.
  void (*layer_norm)(const float* x, std::size_t rows, std::size_t width, std::size_t stride, const float* gain,
                     const float* shift, float* normed);

  void (*attend)(const AttendArguments&);

  // Puts one row's key and value [heads * head_width] into a slot; the key is turned by `turn`, or its turned half
  // zeroed.
  void (*write_slot)(const float* key, const float* value, const PageShape& shape, float* page, std::size_t layer,
                     std::size_t slot, std::size_t pairs, const float* cos, const float* sin, bool zero_turned);

  // probabilities [n] from logits [n]; false where they are not finite.
  bool (*softmax)(const float* logits, std::size_t n, float temperature, float* probabilities);

  // The cdf filter: weights [n] are the probabilities of what stays, 0 elsewhere; all 1 if nothing stays.
  void (*filter_cdf)(const float* probabilities, std::size_t n, float cdf, float* weights);
};

// The kernels of one instruction set, or null where they were not compiled or this machine cannot run them.
const Kernels* find_kernels(Isa isa);

// The fastest that this machine can run.
const Kernels& best_kernels();

std::vector<Isa> available_isas();
const char* isa_name(Isa isa);

}  // namespace ttengine
