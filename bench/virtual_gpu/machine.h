// A GPU's thread block on a CPU: what translated PTX (ptx.py) runs on.
//
// A register holds the 32 lanes of a warp. Warps are fibres that take turns at barriers; blocks run one after the
// other, in any order. Shared memory is poisoned, copies in flight arrive when they are waited for and no sooner. With
// checks on, every access to memory is looked at: is it inside a tensor that the kernel was given, is it aligned, and
// is it ordered against the other warps' (by barriers) and the other blocks' (by releases and acquires)?
#pragma once

#ifdef __F16C__
#include <immintrin.h>
#endif
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <csetjmp>
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
using Lane = std::remove_cvref_t<decltype(V{}[0])>;

// A register's lanes one by one, as they lie in memory: a vector with an index that varies is copied for each.
template <class V>
[[gnu::always_inline]] inline Lane<V>* lanes(V& x) {
  return reinterpret_cast<Lane<V>*>(&x);
}
template <class V>
[[gnu::always_inline]] inline const Lane<V>* lanes(const V& x) {
  return reinterpret_cast<const Lane<V>*>(&x);
}

template <class V>
inline V splat(uint64_t value) {
  return V{} + static_cast<Lane<V>>(value);
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

// Of a warp, on its way to shared memory.
struct Copy {
  Mask live;
  U32 target, filled;
  U64 source;
  uint32_t size;
  int line;
};

struct Warp {
  Block* block;
  Launch* launch;
  int index;
  U32 tid;
  jmp_buf context;
  bool done = false;
  std::vector<Copy> copies;      // the oldest first
  size_t arrived = 0;            // of these; the others are in flight
  std::deque<size_t> committed;  // of each group in flight, where among the copies it ends
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
  jmp_buf scheduler;
  std::string error;
};

// Unlike swapcontext these leave signals alone, which would take two calls of the kernel.
[[gnu::noinline]] inline void Warp::barrier() {
  if (_setjmp(context) == 0) _longjmp(block->scheduler, 1);
}

inline std::string place(const Warp& w, int lane, int line) {
  return " (block " + std::to_string(w.block->number) + ", warp " + std::to_string(w.index) + ", lane " +
         std::to_string(lane) + ", line " + std::to_string(line) + " of the PTX)";
}

[[gnu::noinline]] inline void touch_shared(Warp& w, uint32_t at, uint32_t size, const void* written, bool writes,
                                           int lane, int line) {
  Block& b = *w.block;
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

// written: what a write puts there; several warps may write the same.
[[gnu::always_inline]] inline void check_shared(Warp& w, uint32_t at, uint32_t size, const void* written, bool writes,
                                                int lane, int line) {
  if (uint64_t{at} + size > w.block->shared.size()) [[unlikely]]
    fail("shared memory overrun" + place(w, lane, line));
  if (at % size) [[unlikely]]
    fail("misaligned access to shared memory" + place(w, lane, line));
  if (w.launch->checks()) touch_shared(w, at, size, written, writes, lane, line);
}

inline void check_inside(Warp& w, uint64_t at, uint32_t size, int lane, int line) {
  const std::vector<Range>& ranges = w.launch->ranges;
  auto next = std::upper_bound(ranges.begin(), ranges.end(), at,
                               [](uint64_t value, const Range& range) { return value < range.begin; });
  if (next == ranges.begin() || at + size > (next - 1)->end)
    fail("access outside of the tensors that the kernel was given" + place(w, lane, line));
  if (at % size) fail("misaligned access" + place(w, lane, line));
}

[[gnu::noinline]] inline void touch_global(Warp& w, uint64_t at, uint32_t size, const void* written, bool writes,
                                           int lane, int line) {
  Launch& launch = *w.launch;
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

[[gnu::always_inline]] inline void check_global(Warp& w, uint64_t at, uint32_t size, const void* written, bool writes,
                                                int lane, int line) {
  if (w.launch->checks()) touch_global(w, at, size, written, writes, lane, line);
}

// T: a number's type; N: numbers of a lane, each in a register of its own.
template <class T, int N, class V>
[[gnu::noinline]] void load_global(Warp& w, const Mask& m, const U64& address, int64_t offset, V (&out)[N], int line) {
  for (int i = 0; i < LANES; i++) {
    if (!lanes(m)[i]) continue;
    const uint64_t at = lanes(address)[i] + offset;
    check_global(w, at, sizeof(T) * N, nullptr, false, i, line);
    T numbers[N];
    std::memcpy(numbers, reinterpret_cast<const void*>(at), sizeof numbers);
    for (int n = 0; n < N; n++) lanes(out[n])[i] = numbers[n];
    w.launch->traffic.loaded += sizeof numbers;
  }
}

template <class T, int N, class V>
[[gnu::noinline]] void store_global(Warp& w, const Mask& m, const U64& address, int64_t offset, const V (&in)[N],
                                    int line) {
  for (int i = 0; i < LANES; i++) {
    if (!lanes(m)[i]) continue;
    const uint64_t at = lanes(address)[i] + offset;
    T numbers[N];
    for (int n = 0; n < N; n++) numbers[n] = static_cast<T>(lanes(in[n])[i]);
    check_global(w, at, sizeof(T) * N, numbers, true, i, line);
    std::memcpy(reinterpret_cast<void*>(at), numbers, sizeof numbers);
    w.launch->traffic.stored += sizeof numbers;
  }
}

template <class T, int N, class V>
[[gnu::noinline]] void load_shared(Warp& w, const Mask& m, const U32& address, int offset, V (&out)[N], int line) {
  const uint8_t* shared = w.block->shared.data();
  for (int i = 0; i < LANES; i++) {
    if (!lanes(m)[i]) continue;
    const uint32_t at = lanes(address)[i] + offset;
    check_shared(w, at, sizeof(T) * N, nullptr, false, i, line);
    T numbers[N];
    std::memcpy(numbers, shared + at, sizeof numbers);
    for (int n = 0; n < N; n++) lanes(out[n])[i] = numbers[n];
  }
}

template <class T, int N, class V>
[[gnu::noinline]] void store_shared(Warp& w, const Mask& m, const U32& address, int offset, const V (&in)[N],
                                    int line) {
  uint8_t* shared = w.block->shared.data();
  for (int i = 0; i < LANES; i++) {
    if (!lanes(m)[i]) continue;
    const uint32_t at = lanes(address)[i] + offset;
    T numbers[N];
    for (int n = 0; n < N; n++) numbers[n] = static_cast<T>(lanes(in[n])[i]);
    check_shared(w, at, sizeof(T) * N, numbers, true, i, line);
    std::memcpy(shared + at, numbers, sizeof numbers);
  }
}

// Atomics on global memory order this block after those that used the address before, and the other way round.
template <class T, class V, class Operation>
[[gnu::noinline]] void atomic(Warp& w, const Mask& m, V& out, const U64& address, int64_t offset, const V& in,
                              Operation operation, int line) {
  Launch& launch = *w.launch;
  Block& b = *w.block;
  for (int i = 0; i < LANES; i++) {
    if (!lanes(m)[i]) continue;
    const uint64_t at = lanes(address)[i] + offset;
    if (launch.checks()) {
      check_inside(w, at, sizeof(T), i, line);
      auto& released = launch.released[at];
      for (auto [block, epoch] : released) b.acquired[block] = std::max(b.acquired[block], epoch);
      for (auto [block, epoch] : b.acquired) released[block] = std::max(released[block], epoch);
      released[b.number + 1] = b.epoch;
    }
    T old, operand = static_cast<T>(lanes(in)[i]);
    std::memcpy(&old, reinterpret_cast<const void*>(at), sizeof old);
    const T now = operation(old, operand);
    std::memcpy(reinterpret_cast<void*>(at), &now, sizeof now);
    lanes(out)[i] = static_cast<Lane<V>>(old);
  }
}

template <uint32_t SIZE>
[[gnu::noinline]] void copy_async(Warp& w, const Mask& m, const U32& target, int offset, const U64& source,
                                  int64_t source_offset, const U32& filled, int line) {
  const Copy copy{
      m, target + offset, pick(mask_of(filled < SIZE), filled, splat<U32>(SIZE)), source + source_offset, SIZE, line};
  for (int i = 0; i < LANES; i++) {
    if (!lanes(m)[i]) continue;
    const uint32_t at = lanes(copy.target)[i], count = lanes(copy.filled)[i];
    check_shared(w, at, SIZE, nullptr, true, i, line);
    std::memset(w.block->shared.data() + at, 0xFF, SIZE);
    if (count) check_global(w, lanes(copy.source)[i], count, nullptr, false, i, line);
    w.launch->traffic.loaded += count;
  }
  w.copies.push_back(copy);
}

inline void copy_commit(Warp& w) { w.committed.push_back(w.copies.size()); }

template <uint32_t SIZE>
void arrive(Warp& w, const Copy& copy) {
  for (int i = 0; i < LANES; i++) {
    if (!lanes(copy.live)[i]) continue;
    const uint32_t at = lanes(copy.target)[i], count = lanes(copy.filled)[i];
    check_shared(w, at, SIZE, nullptr, true, i, copy.line);  // it is written now, too
    const auto* source = reinterpret_cast<const uint8_t*>(lanes(copy.source)[i]);
    uint8_t* target = w.block->shared.data() + at;
    if (count == SIZE) {
      std::memcpy(target, source, SIZE);
    } else {
      std::memset(target, 0, SIZE);
      std::memcpy(target, source, count);
    }
  }
}

[[gnu::noinline]] inline void copy_wait(Warp& w, size_t pending) {
  for (; w.committed.size() > pending; w.committed.pop_front()) {
    for (; w.arrived < w.committed.front(); w.arrived++) {
      const Copy& copy = w.copies[w.arrived];
      (copy.size == 16 ? arrive<16> : copy.size == 8 ? arrive<8> : arrive<4>)(w, copy);
    }
  }
  if (w.arrived < w.copies.size()) return;
  w.copies.clear();
  w.arrived = 0;
  std::fill(w.committed.begin(), w.committed.end(), 0);
}

// --- Arithmetic ------------------------------------------------------------------------------------------------------

template <class Function>
inline U32 each(F32 x, Function function) {
  for (int i = 0; i < LANES; i++) lanes(x)[i] = function(lanes(x)[i]);
  return (U32)x;
}

inline U32 fma(F32 a, F32 b, F32 c) {
#if defined __clang__ && defined __FMA__
#pragma clang fp contract(on)
  return (U32)(a * b + c);
#else
  for (int i = 0; i < LANES; i++) lanes(c)[i] = __builtin_fmaf(lanes(a)[i], lanes(b)[i], lanes(c)[i]);
  return (U32)c;
#endif
}

inline U32 smaller(F32 a, F32 b) { return (U32)(((a < b) | (b != b)) ? a : b); }
inline U32 larger(F32 a, F32 b) { return (U32)(((a > b) | (b != b)) ? a : b); }
inline U32 absolute(U32 x) { return x & 0x7FFFFFFFu; }
[[gnu::noinline]] inline U32 exp2_of(F32 x) {
  return each(x, [](float v) { return v < -200 ? 0.0f : std::exp2f(v); });
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
inline F32 widen_bf16(U16 x) { return (F32)(to<U32>(x) << 16); }
inline F32 widen_f16(U16 x) {
#ifdef __F16C__
  F32 out;
  for (int i = 0; i < LANES; i += 8)
    _mm256_storeu_ps(lanes(out) + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i*>(lanes(x) + i))));
  return out;
#else
  const U32 bits = to<U32>(x), size = (bits & 0x7FFF) << 13;
  const U32 finite = (U32)((F32)size * 0x1p112f);
  return (F32)(pick(mask_of((S32)size < 0xF800000), finite, size | 0x7F800000) | (bits & 0x8000) << 16);
#endif
}

template <class V>
inline V shift_left(V x, U32 by) {
  for (int i = 0; i < LANES; i++) lanes(x)[i] = lanes(by)[i] < 8 * sizeof(x[0]) ? lanes(x)[i] << lanes(by)[i] : 0;
  return x;
}

// Right shifts; V signed: copies of the sign come in.
template <class V>
inline V shift_right(V x, U32 by) {
  constexpr uint32_t bits = 8 * sizeof(x[0]);
  for (int i = 0; i < LANES; i++) {
    Lane<V>& number = lanes(x)[i];
    number = lanes(by)[i] < bits ? number >> lanes(by)[i] : (number < 0 ? -1 : 0);
  }
  return x;
}

template <class Signed>
inline Signed field(Signed x, U32 start, U32 length) {
  for (int i = 0; i < LANES; i++) {
    const uint32_t from = std::min(lanes(start)[i] & 0xFF, 31u), count = std::min(lanes(length)[i] & 0xFF, 32 - from);
    const auto value = count ? static_cast<uint32_t>(lanes(x)[i]) << (32 - from - count) : 0u;
    lanes(x)[i] = count ? static_cast<Lane<Signed>>(value) >> (32 - count) : 0;
  }
  return x;
}

inline U32 high_half(U32 a, U32 b) { return to<U32>(to<U64>(a) * to<U64>(b) >> 32); }
inline U32 high_half(S32 a, S32 b) { return to<U32>((U64)(to<S64>(a) * to<S64>(b)) >> 32); }
inline U16 high_half(U16 a, U16 b) { return to<U16>(to<U32>(a) * to<U32>(b) >> 16); }
template <class Wide, class V>
inline U64 high_half_of(V a, V b) {
  U64 out;
  for (int i = 0; i < LANES; i++)
    lanes(out)[i] = static_cast<uint64_t>(static_cast<Wide>(lanes(a)[i]) * static_cast<Wide>(lanes(b)[i]) >> 64);
  return out;
}
inline U64 high_half(U64 a, U64 b) { return high_half_of<unsigned __int128>(a, b); }
inline U64 high_half(S64 a, S64 b) { return high_half_of<__int128>(a, b); }

[[gnu::noinline]] inline U32 count_ones(U32 x) {
  for (int i = 0; i < LANES; i++) lanes(x)[i] = static_cast<uint32_t>(std::popcount(lanes(x)[i]));
  return x;
}

// --- Between the lanes of a warp -------------------------------------------------------------------------------------

enum class Shuffle { up, down, bfly, idx };

template <int... I>
inline U32 count_up(std::integer_sequence<int, I...>) {
  return U32{I...};
}

template <Shuffle KIND>
[[gnu::noinline]] U32 shuffle(const U32& x, const U32& by, const U32& clamp) {
  const U32 lane = count_up(std::make_integer_sequence<int, LANES>{});
  const U32 b = by & 31, segment = clamp >> 8 & 31, most = (lane & segment) | (clamp & 31 & ~segment);
  U32 from;
  if constexpr (KIND == Shuffle::up) from = lane - b;
  if constexpr (KIND == Shuffle::down) from = lane + b;
  if constexpr (KIND == Shuffle::bfly) from = lane ^ b;
  if constexpr (KIND == Shuffle::idx) from = (lane & segment) | (b & ~segment);
  const Mask inside = KIND == Shuffle::up ? mask_of((S32)from >= (S32)most) : mask_of((S32)from <= (S32)most);
  from = pick(inside, from, lane);
  U32 out;
  for (int i = 0; i < LANES; i++) lanes(out)[i] = lanes(x)[lanes(from)[i]];
  return out;
}

template <class V, class Operation>
inline V reduce(V x, Operation operation) {
  auto all = x[0];
  for (int i = 1; i < LANES; i++) all = operation(all, x[i]);
  return V{} + all;
}

// Eight rows of eight numbers of 16 bits, as a register of 32 lanes holds them, two in each; mirrored at the diagonal.
inline void transpose(U32& matrix) {
  typedef uint16_t Row __attribute__((vector_size(16)));
  Row row[8], next[8];
  std::memcpy(row, &matrix, sizeof row);
  for (int times = 0; times < 3; times++) {  // like a deck of cards that is halved and shuffled
    for (int i = 0; i < 4; i++) {
      next[2 * i] = __builtin_shufflevector(row[i], row[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = __builtin_shufflevector(row[i], row[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    std::memcpy(row, next, sizeof row);
  }
  std::memcpy(&matrix, row, sizeof row);
}

// Eight-by-eight matrices of 16-bit numbers; each eight lanes say where the rows of one of them are. A lane holds two
// neighbours of a row, or of a column if TRANSPOSED.
template <int N, bool TRANSPOSED>
[[gnu::noinline]] void load_matrix(Warp& w, const U32& address, int offset, U32 (&out)[N], int line) {
  const uint8_t* shared = w.block->shared.data();
  for (int n = 0; n < N; n++) {
    for (int row = 0; row < 8; row++) {
      const uint32_t at = lanes(address)[8 * n + row] + offset;
      check_shared(w, at, 16, nullptr, false, 8 * n + row, line);
      std::memcpy(lanes(out[n]) + 4 * row, shared + at, 16);
    }
    if (TRANSPOSED) transpose(out[n]);
  }
}

template <int N, bool TRANSPOSED>
[[gnu::noinline]] void store_matrix(Warp& w, const U32& address, int offset, const U32 (&in)[N], int line) {
  uint8_t* shared = w.block->shared.data();
  for (int n = 0; n < N; n++) {
    U32 matrix = in[n];
    if (TRANSPOSED) transpose(matrix);
    for (int row = 0; row < 8; row++) {
      const uint32_t at = lanes(address)[8 * n + row] + offset;
      check_shared(w, at, 16, lanes(matrix) + 4 * row, true, 8 * n + row, line);
      std::memcpy(shared + at, lanes(matrix) + 4 * row, 16);
    }
  }
}

// 64 numbers of 16 bits, two in a lane, as float64.
template <F32 widen(U16)>
inline void spread(const U32& pairs, double (&numbers)[8][8]) {
  for (int half = 0; half < 2; half++) {
    U16 part;
    std::memcpy(&part, lanes(pairs) + half * LANES / 2, sizeof part);
    const F64 wide = to<F64>(widen(part));
    std::memcpy(numbers[4 * half], &wide, sizeof wide);
  }
}

// Two registers' numbers in turns, as float64, and back.
template <int... I>
inline void weave(F32 even, F32 odd, double (&numbers)[8][8], std::integer_sequence<int, I...>) {
  const F64 first = to<F64>(__builtin_shufflevector(even, odd, (I / 2 + I % 2 * LANES)...));
  const F64 second = to<F64>(__builtin_shufflevector(even, odd, (I / 2 + I % 2 * LANES + LANES / 2)...));
  std::memcpy(numbers[0], &first, sizeof first);
  std::memcpy(numbers[4], &second, sizeof second);
}
template <int... I>
inline void unweave(const double (&numbers)[8][8], U32& even, U32& odd, std::integer_sequence<int, I...>) {
  F64 first, second;
  std::memcpy(&first, numbers[0], sizeof first);
  std::memcpy(&second, numbers[4], sizeof second);
  even = (U32)__builtin_shufflevector(to<F32>(first), to<F32>(second), (2 * I)...);
  odd = (U32)__builtin_shufflevector(to<F32>(first), to<F32>(second), (2 * I + 1)...);
}

// [16, 16] times [16, 8] of 16 bits, plus [16, 8] float32: products are exact, sums are rounded once. In a matrix of
// eight by eight four lanes share a row, with two neighbours each, of 32 bits in two registers; b is given by columns.
template <F32 widen(U16)>
[[gnu::noinline]] inline void multiply(U32 (&out)[4], const U32 (&a)[4], const U32 (&b)[2], const U32 (&c)[4]) {
  typedef double Row __attribute__((vector_size(64)));
  constexpr std::make_integer_sequence<int, LANES> every{};
  alignas(64) double left[4][8][8], right[2][8][8], sum[2][8][8];
  for (int i = 0; i < 4; i++) spread<widen>(a[i], left[i]);
  for (int i = 0; i < 2; i++) {
    U32 rows = b[i];
    transpose(rows);
    spread<widen>(rows, right[i]);
    weave((F32)c[2 * i], (F32)c[2 * i + 1], sum[i], every);
  }
  for (int row = 0; row < 16; row += 4) {
    Row part[4];
    std::memcpy(part, sum[row / 8][row % 8], sizeof part);
    for (int k = 0; k < 16; k++) {
      Row inner;
      std::memcpy(&inner, right[k / 8][k % 8], sizeof inner);
      for (int i = 0; i < 4; i++) part[i] += left[k / 8 * 2 + row / 8][row % 8 + i][k % 8] * inner;
    }
    std::memcpy(sum[row / 8][row % 8], part, sizeof part);
  }
  for (int i = 0; i < 2; i++) unweave(sum[i], out[2 * i], out[2 * i + 1], every);
}

inline bool uniform(const Mask& taken, int line) {
  const uint32_t bits = bits_of(taken);
  if (bits != 0 && bits != 0xFFFFFFFFu)
    fail("the lanes of a warp part at line " + std::to_string(line) + " of the PTX, where they are not followed");
  return bits != 0;
}

// --- Running ---------------------------------------------------------------------------------------------------------

constexpr size_t STACK = 16 << 20;

void kernel(Warp& w);  // the translated PTX

inline void enter(uint32_t high, uint32_t low) {
  auto& w = *reinterpret_cast<Warp*>(static_cast<uint64_t>(high) << 32 | low);
  try {
    kernel(w);
  } catch (const std::exception& error) {
    w.block->error = error.what();
  }
  w.done = true;
  _longjmp(w.block->scheduler, 1);
}

// Run a warp up to its next barrier, or to its end.
[[gnu::noinline]] inline void resume(Warp& w, uint8_t* stack) {
  if (_setjmp(w.block->scheduler) != 0) return;
  if (stack == nullptr) _longjmp(w.context, 1);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  const auto address = reinterpret_cast<uint64_t>(&w);
  makecontext(&context, reinterpret_cast<void (*)()>(enter), 2, static_cast<uint32_t>(address >> 32),
              static_cast<uint32_t>(address));
  setcontext(&context);
}

inline void run_block(Block& block, const std::vector<uint8_t*>& stacks) {
  for (size_t i = 0; i < stacks.size(); i++) {
    Warp& w = block.warps[i];
    w.block = &block, w.launch = block.launch, w.index = static_cast<int>(i);
    w.tid = count_up(std::make_integer_sequence<int, LANES>{}) + static_cast<uint32_t>(i) * LANES;
  }
  for (bool going = true; going; block.epoch++) {
    size_t done = 0;
    for (Warp& w : block.warps) {
      if (!w.done) resume(w, block.epoch == 1 ? stacks[w.index] : nullptr);
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
