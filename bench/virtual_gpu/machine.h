// A GPU's thread block on a CPU: what translated PTX (ptx.py) runs on.
//
// A register holds the 32 lanes of a warp. Warps are fibres that take turns at barriers; blocks run one after the
// other, in any order. Shared memory is poisoned, copies in flight arrive when they are waited for and no sooner. With
// checks on, every access to memory is looked at: is it inside a tensor that the kernel was given, is it aligned, and
// is it ordered against the other warps' (by barriers) and the other blocks' (by releases and acquires)?
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace gpu {

constexpr int LANES = 32;
typedef uint8_t U8 __attribute__((vector_size(LANES)));
typedef int8_t S8 __attribute__((vector_size(LANES)));
typedef uint16_t U16 __attribute__((vector_size(2 * LANES)));
typedef int16_t S16 __attribute__((vector_size(2 * LANES)));
typedef uint32_t U32 __attribute__((vector_size(4 * LANES)));
typedef int32_t S32 __attribute__((vector_size(4 * LANES)));
typedef float F32 __attribute__((vector_size(4 * LANES)));
typedef double F64 __attribute__((vector_size(8 * LANES)));
typedef uint64_t U64 __attribute__((vector_size(8 * LANES)));
typedef int64_t S64 __attribute__((vector_size(8 * LANES)));
typedef U32 Mask;  // all bits of a lane, or none

template <class V>
inline V splat(uint64_t value) {
  return V{} + static_cast<std::remove_reference_t<decltype(V{}[0])>>(value);
}

template <class To, class From>
inline To to(From x) {
  return __builtin_convertvector(x, To);
}

inline Mask mask_of(S32 comparison) { return (Mask)comparison; }
inline Mask mask_of(S16 comparison) { return (Mask) __builtin_convertvector(comparison, S32); }
inline Mask mask_of(S64 comparison) { return (Mask) __builtin_convertvector(comparison, S32); }

inline uint32_t bits_of(const Mask& mask) {
  uint32_t bits = 0;
  for (int i = 0; i < LANES; i++) bits |= (mask[i] & 1u) << i;
  return bits;
}

inline U16 pick(Mask m, U16 a, U16 b) { return __builtin_convertvector((S32)m, S16) ? a : b; }
inline U32 pick(Mask m, U32 a, U32 b) { return (S32)m ? a : b; }
inline U64 pick(Mask m, U64 a, U64 b) { return __builtin_convertvector((S32)m, S64) ? a : b; }

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

// --- Memory ----------------------------------------------------------------------------------------------------------

struct Range {
  uint64_t begin, end;
};

// Who touched a byte of shared, or a word of global memory, last.
struct Touch {
  uint32_t write_block = 0, write_epoch = 0, read_block = 0, read_epoch = 0;
  int16_t writer = -1, reader = -1;  // warps; -2: several
};

struct Traffic {
  uint64_t loaded = 0, stored = 0, barriers = 0;
};

struct Launch {
  const uint64_t* parameters;
  uint32_t grid[3];
  uint32_t shared_bytes;
  std::vector<Range> ranges;  // sorted; empty: nothing is checked
  uint64_t* counts;           // of each basic block, how often a warp went through
  Traffic traffic;
  std::unordered_map<uint64_t, Touch> words;
  std::map<uint64_t, std::map<uint32_t, uint32_t>> released;  // address -> of each block the epoch that it released
  bool checks() const { return !ranges.empty(); }
};

struct Block;

struct Copy {
  uint32_t target, size, filled;
  uint64_t source;
  int lane, line;
};

struct Warp {
  Block* block;
  Launch* launch;
  int index;
  U32 tid;
  ucontext_t context;
  bool done = false;
  std::vector<Copy> issued;
  std::deque<std::vector<Copy>> committed;
  void barrier();
};

struct Block {
  Launch* launch;
  uint32_t number;
  uint32_t id[3];
  uint32_t epoch = 1;
  std::vector<uint8_t> shared;
  std::vector<Touch> touched;
  std::map<uint32_t, uint32_t> acquired;  // of other blocks, the epoch up to which their writes are visible
  std::vector<Warp> warps;
  ucontext_t scheduler;
  std::string error;
};

inline void Warp::barrier() { swapcontext(&context, &block->scheduler); }

inline std::string place(const Warp& w, int lane, int line) {
  return " (block " + std::to_string(w.block->number) + ", warp " + std::to_string(w.index) + ", lane " +
         std::to_string(lane) + ", line " + std::to_string(line) + " of the PTX)";
}

// written: what a write puts there; several warps may write the same.
inline void check_shared(Warp& w, uint32_t at, uint32_t size, const void* written, bool writes, int lane, int line) {
  Block& b = *w.block;
  if (uint64_t{at} + size > b.shared.size()) fail("shared memory overrun" + place(w, lane, line));
  if (at % size) fail("misaligned access to shared memory" + place(w, lane, line));
  if (!w.launch->checks()) return;
  for (uint32_t i = at; i < at + size; i++) {
    Touch& t = b.touched[i];
    const bool same = written && static_cast<const uint8_t*>(written)[i - at] == b.shared[i];
    if (t.write_epoch == b.epoch && t.writer != w.index && !same)
      fail("race in shared memory: no barrier after another warp's write" + place(w, lane, line));
    if (writes) {
      if (t.read_epoch == b.epoch && t.reader != w.index)
        fail("race in shared memory: written with no barrier after another warp's read" + place(w, lane, line));
      t.write_epoch = b.epoch, t.writer = static_cast<int16_t>(w.index);
    } else {
      t.reader = t.read_epoch == b.epoch && t.reader != w.index ? -2 : static_cast<int16_t>(w.index);
      t.read_epoch = b.epoch;
    }
  }
}

inline void check_inside(Warp& w, uint64_t at, uint32_t size, int lane, int line) {
  const std::vector<Range>& ranges = w.launch->ranges;
  auto next = std::upper_bound(ranges.begin(), ranges.end(), at,
                               [](uint64_t value, const Range& range) { return value < range.begin; });
  if (next == ranges.begin() || at + size > (next - 1)->end)
    fail("access outside of the tensors that the kernel was given" + place(w, lane, line));
  if (at % size) fail("misaligned access" + place(w, lane, line));
}

inline void check_global(Warp& w, uint64_t at, uint32_t size, const void* written, bool writes, int lane, int line) {
  Launch& launch = *w.launch;
  if (!launch.checks()) return;
  check_inside(w, at, size, lane, line);
  Block& b = *w.block;
  for (uint64_t word = at / 2; word < (at + size) / 2; word++) {
    Touch& t = launch.words[word];
    auto unordered = [&](uint32_t block, uint32_t epoch, int who) {
      if (block == 0) return false;  // nobody yet
      if (block == b.number + 1) return epoch == b.epoch && who != w.index;
      auto seen = b.acquired.find(block);
      return seen == b.acquired.end() || seen->second < epoch;
    };
    const size_t offset = word * 2 - at;
    const bool same = written && !std::memcmp(static_cast<const uint8_t*>(written) + offset,
                                              reinterpret_cast<const uint8_t*>(at) + offset, 2);
    if (!same && unordered(t.write_block, t.write_epoch, t.writer))
      fail("race: not ordered after another's write" + place(w, lane, line));
    if (writes) {
      if (unordered(t.read_block, t.read_epoch, t.reader))
        fail("race: a write that is not ordered after another's read" + place(w, lane, line));
      t.write_block = b.number + 1, t.write_epoch = b.epoch, t.writer = static_cast<int16_t>(w.index);
    } else {
      const bool again = t.read_block == b.number + 1 && t.read_epoch == b.epoch;
      t.reader = again && t.reader != w.index ? -2 : static_cast<int16_t>(w.index);
      t.read_block = b.number + 1, t.read_epoch = b.epoch;
    }
  }
}

// T: a number's type; N: numbers of a lane. Vectors of registers lie in `out`.
template <class T, int N, class V>
void load_global(Warp& w, const Mask& m, const U64& address, int64_t offset, V* const (&out)[N], int line) {
  for (int i = 0; i < LANES; i++) {
    if (!m[i]) continue;
    const uint64_t at = address[i] + offset;
    check_global(w, at, sizeof(T) * N, nullptr, false, i, line);
    T numbers[N];
    std::memcpy(numbers, reinterpret_cast<const void*>(at), sizeof numbers);
    for (int n = 0; n < N; n++) (*out[n])[i] = numbers[n];
    w.launch->traffic.loaded += sizeof numbers;
  }
}

template <class T, int N, class V>
void store_global(Warp& w, const Mask& m, const U64& address, int64_t offset, const V* const (&in)[N], int line) {
  for (int i = 0; i < LANES; i++) {
    if (!m[i]) continue;
    const uint64_t at = address[i] + offset;
    T numbers[N];
    for (int n = 0; n < N; n++) numbers[n] = static_cast<T>((*in[n])[i]);
    check_global(w, at, sizeof(T) * N, numbers, true, i, line);
    std::memcpy(reinterpret_cast<void*>(at), numbers, sizeof numbers);
    w.launch->traffic.stored += sizeof numbers;
  }
}

template <class T, int N, class V>
void load_shared(Warp& w, const Mask& m, const U32& address, int offset, V* const (&out)[N], int line) {
  const uint8_t* shared = w.block->shared.data();
  for (int i = 0; i < LANES; i++) {
    if (!m[i]) continue;
    const uint32_t at = address[i] + offset;
    check_shared(w, at, sizeof(T) * N, nullptr, false, i, line);
    T numbers[N];
    std::memcpy(numbers, shared + at, sizeof numbers);
    for (int n = 0; n < N; n++) (*out[n])[i] = numbers[n];
  }
}

template <class T, int N, class V>
void store_shared(Warp& w, const Mask& m, const U32& address, int offset, const V* const (&in)[N], int line) {
  uint8_t* shared = w.block->shared.data();
  for (int i = 0; i < LANES; i++) {
    if (!m[i]) continue;
    const uint32_t at = address[i] + offset;
    T numbers[N];
    for (int n = 0; n < N; n++) numbers[n] = static_cast<T>((*in[n])[i]);
    check_shared(w, at, sizeof(T) * N, numbers, true, i, line);
    std::memcpy(shared + at, numbers, sizeof numbers);
  }
}

// Atomics on global memory order this block after those that used the address before, and the other way round.
template <class T, class V, class Operation>
void atomic(Warp& w, const Mask& m, V& out, const U64& address, int64_t offset, const V& in, Operation operation,
            int line) {
  Launch& launch = *w.launch;
  Block& b = *w.block;
  for (int i = 0; i < LANES; i++) {
    if (!m[i]) continue;
    const uint64_t at = address[i] + offset;
    if (launch.checks()) {
      check_inside(w, at, sizeof(T), i, line);
      auto& released = launch.released[at];
      for (auto [block, epoch] : released) b.acquired[block] = std::max(b.acquired[block], epoch);
      for (auto [block, epoch] : b.acquired) released[block] = std::max(released[block], epoch);
      released[b.number + 1] = b.epoch;
    }
    T old, operand = static_cast<T>(in[i]);
    std::memcpy(&old, reinterpret_cast<const void*>(at), sizeof old);
    const T now = operation(old, operand);
    std::memcpy(reinterpret_cast<void*>(at), &now, sizeof now);
    out[i] = static_cast<std::remove_reference_t<decltype(out[0])>>(old);
  }
}

inline void copy_async(Warp& w, const Mask& m, const U32& target, int offset, const U64& source, int64_t source_offset,
                       uint32_t size, const U32& filled, int line) {
  for (int i = 0; i < LANES; i++) {
    if (!m[i]) continue;
    const uint32_t at = target[i] + offset;
    check_shared(w, at, size, nullptr, true, i, line);
    std::memset(w.block->shared.data() + at, 0xFF, size);
    if (filled[i]) check_global(w, source[i] + source_offset, std::min(size, filled[i]), nullptr, false, i, line);
    w.issued.push_back({at, size, std::min(size, filled[i]), source[i] + source_offset, i, line});
    w.launch->traffic.loaded += std::min(size, filled[i]);
  }
}

inline void copy_commit(Warp& w) {
  w.committed.push_back(std::move(w.issued));
  w.issued.clear();
}

inline void copy_wait(Warp& w, size_t pending) {
  for (; w.committed.size() > pending; w.committed.pop_front()) {
    for (const Copy& copy : w.committed.front()) {
      check_shared(w, copy.target, copy.size, nullptr, true, copy.lane, copy.line);  // it is written now, too
      uint8_t* target = w.block->shared.data() + copy.target;
      std::memset(target, 0, copy.size);
      std::memcpy(target, reinterpret_cast<const void*>(copy.source), copy.filled);
    }
  }
}

// --- Arithmetic ------------------------------------------------------------------------------------------------------

template <class Function>
inline U32 each(F32 x, Function function) {
  F32 out;
  for (int i = 0; i < LANES; i++) out[i] = function(x[i]);
  return (U32)out;
}

inline U32 fma(F32 a, F32 b, F32 c) {
  F32 out;
  for (int i = 0; i < LANES; i++) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return (U32)out;
}

inline U32 smaller(F32 a, F32 b) { return (U32)(((a < b) | (b != b)) ? a : b); }
inline U32 larger(F32 a, F32 b) { return (U32)(((a > b) | (b != b)) ? a : b); }
inline U32 absolute(U32 x) { return x & 0x7FFFFFFFu; }
[[gnu::noinline]] inline U32 exp2_of(F32 x) {
  return each(x, [](float v) { return std::exp2f(v); });
}
[[gnu::noinline]] inline U32 rsqrt_of(F32 x) {
  return each(x, [](float v) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(v))); });
}

// Numbers of 16 bits: each of a vector is the low half of a lane.
inline U32 round_bf16(F32 x) {
  const U32 bits = (U32)x;
  return pick(mask_of(x == x), (bits + 0x7FFF + (bits >> 16 & 1)) >> 16, splat<U32>(0x7FFF));
}
inline U32 round_f16(F32 x) {
  const U32 bits = (U32)x & 0x7FFFFFFF;
  const U32 normal = (bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13;
  const U32 tiny = (U32)((F32)bits + 0.5f) - 0x3F000000;  // beside a half floats are as far apart as these
  const U32 code = pick(mask_of((S32)bits < 0x38800000), tiny, normal);
  const U32 large = pick(mask_of(x == x), splat<U32>(0x7C00), splat<U32>(0x7FFF));
  return pick(mask_of((S32)bits < 0x47800000), code, large) | ((U32)x >> 16 & 0x8000);
}
inline F32 widen_bf16(U32 x) { return (F32)(x << 16); }
inline F32 widen_f16(U32 x) {
  const U32 size = (x & 0x7FFF) << 13;
  const U32 finite = (U32)((F32)size * 0x1p112f);
  return (F32)(pick(mask_of((S32)size < 0xF800000), finite, size | 0x7F800000) | (x & 0x8000) << 16);
}

template <class V>
inline V shift_left(V x, U32 by) {
  V out;
  for (int i = 0; i < LANES; i++) out[i] = by[i] < 8 * sizeof(x[0]) ? x[i] << by[i] : 0;
  return out;
}

// Right shifts; V signed: copies of the sign come in.
template <class V>
inline V shift_right(V x, U32 by) {
  constexpr uint32_t bits = 8 * sizeof(x[0]);
  V out;
  for (int i = 0; i < LANES; i++) out[i] = by[i] < bits ? x[i] >> by[i] : (x[i] < 0 ? -1 : 0);
  return out;
}

template <class Signed>
inline Signed field(Signed x, U32 start, U32 length) {
  Signed out;
  for (int i = 0; i < LANES; i++) {
    const uint32_t from = std::min(start[i] & 0xFF, 31u), count = std::min(length[i] & 0xFF, 32 - from);
    const auto value = count ? static_cast<uint32_t>(x[i]) << (32 - from - count) : 0u;
    out[i] = count ? static_cast<std::remove_reference_t<decltype(x[0])>>(value) >> (32 - count) : 0;
  }
  return out;
}

inline U32 high_half(U32 a, U32 b) { return to<U32>(to<U64>(a) * to<U64>(b) >> 32); }
inline U32 high_half(S32 a, S32 b) { return to<U32>((U64)(to<S64>(a) * to<S64>(b)) >> 32); }
inline U16 high_half(U16 a, U16 b) { return to<U16>(to<U32>(a) * to<U32>(b) >> 16); }
template <class Wide, class V>
inline U64 high_half_of(V a, V b) {
  U64 out;
  for (int i = 0; i < LANES; i++)
    out[i] = static_cast<uint64_t>(static_cast<Wide>(a[i]) * static_cast<Wide>(b[i]) >> 64);
  return out;
}
inline U64 high_half(U64 a, U64 b) { return high_half_of<unsigned __int128>(a, b); }
inline U64 high_half(S64 a, S64 b) { return high_half_of<__int128>(a, b); }

[[gnu::noinline]] inline U32 count_ones(U32 x) {
  for (int i = 0; i < LANES; i++) x[i] = static_cast<uint32_t>(std::popcount(x[i]));
  return x;
}

// --- Between the lanes of a warp -------------------------------------------------------------------------------------

enum class Shuffle { up, down, bfly, idx };

[[gnu::noinline]] inline U32 shuffle(Shuffle kind, U32 x, U32 by, U32 clamp) {
  U32 out;
  for (int lane = 0; lane < LANES; lane++) {
    const int b = static_cast<int>(by[lane] & 31), segment = static_cast<int>(clamp[lane] >> 8 & 31);
    const int most = (lane & segment) | (static_cast<int>(clamp[lane] & 31) & ~segment);
    int from = 0;
    bool inside = true;
    switch (kind) {
      case Shuffle::up:
        from = lane - b, inside = from >= most;
        break;
      case Shuffle::down:
        from = lane + b, inside = from <= most;
        break;
      case Shuffle::bfly:
        from = lane ^ b, inside = from <= most;
        break;
      case Shuffle::idx:
        from = (lane & segment) | (b & ~segment), inside = from <= most;
        break;
    }
    out[lane] = x[inside ? from : lane];
  }
  return out;
}

template <class V, class Operation>
inline V reduce(V x, Operation operation) {
  auto all = x[0];
  for (int i = 1; i < LANES; i++) all = operation(all, x[i]);
  return V{} + all;
}

// Eight-by-eight matrices of 16-bit numbers; each eight lanes say where the rows of one of them are.
template <int N, bool TRANSPOSED>
void load_matrix(Warp& w, const U32& address, int offset, U32* const (&out)[N], int line) {
  const uint8_t* shared = w.block->shared.data();
  for (int n = 0; n < N; n++) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; row++) {
      const uint32_t at = address[8 * n + row] + offset;
      check_shared(w, at, 16, nullptr, false, 8 * n + row, line);
      std::memcpy(matrix[row], shared + at, 16);
    }
    for (int lane = 0; lane < LANES; lane++) {
      const int a = lane / 4, b = lane % 4 * 2;
      const uint32_t low = TRANSPOSED ? matrix[b][a] : matrix[a][b];
      const uint32_t high = TRANSPOSED ? matrix[b + 1][a] : matrix[a][b + 1];
      (*out[n])[lane] = high << 16 | low;
    }
  }
}

template <int N, bool TRANSPOSED>
void store_matrix(Warp& w, const U32& address, int offset, const U32* const (&in)[N], int line) {
  uint8_t* shared = w.block->shared.data();
  for (int n = 0; n < N; n++) {
    uint16_t matrix[8][8];
    for (int lane = 0; lane < LANES; lane++) {
      const int a = lane / 4, b = lane % 4 * 2;
      const uint32_t both = (*in[n])[lane];
      (TRANSPOSED ? matrix[b][a] : matrix[a][b]) = static_cast<uint16_t>(both);
      (TRANSPOSED ? matrix[b + 1][a] : matrix[a][b + 1]) = static_cast<uint16_t>(both >> 16);
    }
    for (int row = 0; row < 8; row++) {
      const uint32_t at = address[8 * n + row] + offset;
      check_shared(w, at, 16, matrix[row], true, 8 * n + row, line);
      std::memcpy(shared + at, matrix[row], 16);
    }
  }
}

// A lane of a product has rows lane / 4 and that + 8, and columns 2 (lane % 4) and that + 1; of the factors it holds
// the numbers with inner index 2 (lane % 4), that + 1, and 8 more. So number K of its rows is in its group of four
// lanes.
template <int K, int... Lane>
inline F64 of_row(F32 x, std::integer_sequence<int, Lane...>) {
  return to<F64>(__builtin_shufflevector(x, x, (Lane / 4 * 4 + K % 8 / 2)...));
}
template <int K, int HALF, int... Lane>
inline F64 of_column(F32 x, std::integer_sequence<int, Lane...>) {
  return to<F64>(__builtin_shufflevector(x, x, ((Lane % 4 * 2 + HALF) * 4 + K % 8 / 2)...));
}
template <int K>
inline void add_product(F64 (&sum)[4], const F32 (&a)[2][4], const F32 (&b)[2][2]) {
  constexpr std::make_integer_sequence<int, LANES> lanes{};
  const F64 above = of_row<K>(a[K % 2][K / 8 * 2], lanes), below = of_row<K>(a[K % 2][K / 8 * 2 + 1], lanes);
  const F64 first = of_column<K, 0>(b[K % 2][K / 8], lanes), second = of_column<K, 1>(b[K % 2][K / 8], lanes);
  sum[0] += above * first, sum[1] += above * second, sum[2] += below * first, sum[3] += below * second;
}

// [16, 16] times [16, 8] of 16 bits, plus [16, 8] float32: products are exact, sums are rounded once.
template <F32 widen(U32)>
[[gnu::noinline]] inline void multiply(U32* const (&out)[4], const U32* const (&a)[4], const U32* const (&b)[2],
                                       const U32* const (&c)[4]) {
  F32 left[2][4], right[2][2];
  F64 sum[4];
  for (int i = 0; i < 4; i++) left[0][i] = widen(*a[i] & 0xFFFF), left[1][i] = widen(*a[i] >> 16);
  for (int i = 0; i < 2; i++) right[0][i] = widen(*b[i] & 0xFFFF), right[1][i] = widen(*b[i] >> 16);
  for (int i = 0; i < 4; i++) sum[i] = to<F64>((F32)*c[i]);
  [&]<int... K>(std::integer_sequence<int, K...>) {
    (add_product<K>(sum, left, right), ...);
  }(std::make_integer_sequence<int, 16>{});
  for (int i = 0; i < 4; i++) *out[i] = (U32)to<F32>(sum[i]);
}

inline bool uniform(const Mask& taken, int line) {
  const uint32_t bits = bits_of(taken);
  if (bits != 0 && bits != 0xFFFFFFFFu)
    fail("the lanes of a warp part at line " + std::to_string(line) + " of the PTX, where they are not followed");
  return bits != 0;
}

// --- Running ---------------------------------------------------------------------------------------------------------

void kernel(Warp& w);  // the translated PTX

inline void enter(uint32_t high, uint32_t low) {
  auto& w = *reinterpret_cast<Warp*>(static_cast<uint64_t>(high) << 32 | low);
  try {
    kernel(w);
  } catch (const std::exception& error) {
    w.block->error = error.what();
  }
  w.done = true;
  swapcontext(&w.context, &w.block->scheduler);
}

constexpr size_t STACK = 16 << 20;

inline void run_block(Block& block, const std::vector<uint8_t*>& stacks) {
  for (size_t i = 0; i < stacks.size(); i++) {
    Warp& w = block.warps[i];
    w.block = &block, w.launch = block.launch, w.index = static_cast<int>(i);
    for (int lane = 0; lane < LANES; lane++) w.tid[lane] = static_cast<uint32_t>(i) * LANES + lane;
    getcontext(&w.context);
    w.context.uc_stack.ss_sp = stacks[i];
    w.context.uc_stack.ss_size = STACK;
    w.context.uc_link = nullptr;
    const auto address = reinterpret_cast<uint64_t>(&w);
    makecontext(&w.context, reinterpret_cast<void (*)()>(enter), 2, static_cast<uint32_t>(address >> 32),
                static_cast<uint32_t>(address));
  }
  for (bool going = true; going; block.epoch++) {
    size_t done = 0;
    for (Warp& w : block.warps) {
      if (!w.done) swapcontext(&block.scheduler, &w.context);
      if (!block.error.empty()) fail(block.error);
      done += w.done;
    }
    if (done != 0 && done != block.warps.size()) fail("some warps wait at a barrier that others never reach");
    going = done == 0;
    block.launch->traffic.barriers += going;
  }
}

}  // namespace gpu

extern "C" int launch(uint32_t x, uint32_t y, uint32_t z, const uint64_t* parameters, uint32_t warps,
                      uint32_t shared_bytes, const gpu::Range* ranges, uint64_t n_ranges, const uint32_t* order,
                      uint64_t* counts, uint64_t* traffic, char* error, uint64_t error_size) {
  using namespace gpu;
  Launch launch{.parameters = parameters,
                .grid = {x, y, z},
                .shared_bytes = shared_bytes,
                .ranges = std::vector<Range>(ranges, ranges + n_ranges),
                .counts = counts};
  std::vector<uint8_t*> stacks;
  for (uint32_t i = 0; i < warps; i++)
    stacks.push_back(static_cast<uint8_t*>(
        mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
  int failed = 0;
  try {
    for (uint32_t i = 0; i < x * y * z; i++) {
      const uint32_t number = order ? order[i] : i;
      Block block{.launch = &launch,
                  .number = number,
                  .id = {number % x, number / x % y, number / x / y},
                  .shared = std::vector<uint8_t>(shared_bytes, 0xFF),
                  .touched = std::vector<Touch>(launch.checks() ? shared_bytes : 0),
                  .warps = std::vector<Warp>(warps)};
      run_block(block, stacks);
    }
  } catch (const std::exception& problem) {
    std::snprintf(error, error_size, "%s", problem.what());
    failed = 1;
  }
  for (uint8_t* stack : stacks) munmap(stack, STACK);
  traffic[0] += launch.traffic.loaded, traffic[1] += launch.traffic.stored, traffic[2] += launch.traffic.barriers;
  return failed;
}
