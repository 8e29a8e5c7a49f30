// The kernels of eager.py in one pass over memory; see native.py for who calls this.
//
// Operation by operation the same as the eager kernels in float32, so that the bits are the same:
// compile with -ffp-contract=off. Vectors are GCC's (and clang's), eight lanes wide, and worked on
// in pairs.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AVX2__)
#define HAS_AVX2 true
#else
#define HAS_AVX2 false
#endif

typedef float F __attribute__((vector_size(32)));
typedef uint32_t U __attribute__((vector_size(32)));
typedef int32_t I __attribute__((vector_size(32)));
typedef uint64_t Q __attribute__((vector_size(32)));
typedef uint16_t W __attribute__((vector_size(32)));
typedef uint16_t H __attribute__((vector_size(16)));
typedef uint8_t B __attribute__((vector_size(16)));
typedef float G __attribute__((vector_size(16)));
typedef double D __attribute__((vector_size(32)));

enum Dtype { BF16, F32, F16, MIXED, SIGNS1, SIGNS2 };  // the last two: of signs.py, by their bits
// SIGNED: a weighted sum as NONE is, in which some terms are signs.
enum Thin { NONE, MAGNITUDE, BAND, RANDOM, RANKED, VOTES, VARIANCE, SIGNED };
enum Join { SUM, ELECT, LARGEST };

struct Term {  // one model of one tensor
  const char* data;
  const uint8_t* levels;  // RANKED: of every element
  float weight, low, high, inverse;
  uint32_t key0, key1, threshold;
  int32_t dtype;
};

struct Piece {  // one tensor
  int64_t size;
  const char* base;    // null: a weighted sum
  char* out;
  const Term* terms;
  uint64_t* digests;   // one a tile
  float* variances;    // those in `bin`: `inside` of them, `room` at most
  int64_t first_tile, inside, room;
  int32_t count, base_dtype, dtype, out_dtype;
  int32_t thin, join, normalize, least;
  float scale;
  int32_t broken;      // set where an element is not finite
  int32_t bin;         // below 0: this piece is not surveyed
  int32_t spare;       // fills the record up
};

static const int TILE_BYTES = 1 << 16, LANES = 8, PAIR = 16, GROUP = 128, MOST = 64, ROUNDS = 7;
static const int BLOCK = 16;  // bytes of the random generator
static_assert(TILE_BYTES / 4 % (GROUP * GROUP) == 0, "tiles begin where groups of groups do");
static const uint32_t SIGN = 0x80000000u, HIGH = 0xFFFF0000u;
#define INLINE __attribute__((always_inline)) inline

static INLINE F splat(float x) { return F{x, x, x, x, x, x, x, x}; }
static INLINE U splat(uint32_t x) { return U{x, x, x, x, x, x, x, x}; }
static INLINE F magnitude(F x) { return (F)((U)x & splat(~SIGN)); }
static INLINE F where(I mask, F a, F b) { return mask ? a : b; }
static INLINE F smaller(F a, F b) {
#if defined(__AVX2__)
  return (F)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
static INLINE F larger(F a, F b) {
#if defined(__AVX2__)
  return (F)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
static INLINE bool any(I mask) {
#if defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  I found = mask;
  for (int i = 1; i < LANES; i++) found[0] |= mask[i];
  return found[0];
#endif
}

// a, or zero: of either sign in the eager form, which no sum from zero tells apart
static INLINE F only(I mask, F a) { return (F)((U)mask & (U)a); }

// Sixteen elements. If all that is read and written is bfloat16 (S is BF16), `of[0]` holds those
// of even index and `of[1]` the odd ones, which takes no shuffling; else the first and last eight.
struct Pair {
  F of[2];
};

// The float32 bits that a bfloat16 has, above zeros: to nearest, ties to even; x is no NaN.
static INLINE U bf16_bits(F x) {
  U bits = (U)x;
  return bits + splat(0x7FFFu) + ((bits >> 16) & splat(1u));
}

static INLINE F from_f16(H half) {
#if defined(__F16C__)
  return (F)_mm256_cvtph_ps((__m128i)half);
#else
  return F{};
#endif
}

static INLINE H to_f16(F x) {
#if defined(__F16C__)
  return (H)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return H{};
#endif
}

template <class V>
static INLINE V read(const void* from) {
  V x;
  memcpy(&x, from, sizeof x);
  return x;
}

// S, here and below: the dtype of all there is, or MIXED where they are looked up.
template <int S>
static INLINE Pair load(const char* data, int dtype, int64_t at) {
  Pair x;
  if (S == BF16) {
    U both = read<U>(data + 2 * at);
    x.of[0] = (F)(both << 16);
    x.of[1] = (F)(both & splat(HIGH));
    return x;
  }
  for (int h = 0; h < 2; h++) {
    if (S == F32 || dtype == F32) {
      x.of[h] = read<F>(data + 4 * (at + h * LANES));
      continue;
    }
    H half = read<H>(data + 2 * (at + h * LANES));
    x.of[h] = dtype == F16 ? from_f16(half) : (F)(__builtin_convertvector(half, U) << 16);
  }
  return x;
}

static INLINE Q products(Q x, Q y) {  // of the low halves: 32 x 32 -> 64 bits
#if defined(__AVX2__)
  return (Q)_mm256_mul_epu32((__m256i)x, (__m256i)y);
#else
  return (x & 0xFFFFFFFFu) * (y & 0xFFFFFFFFu);
#endif
}

// What a merge does with an element once it is made: everything that would be a pass over memory of
// its own (the checksum, the search for infinities, the copy into the live model) is done here.
//
// Where merged elements go: digested and put into place, past the cache if it is aligned.
struct Sink {
  char* out;           // the piece's
  const char* keys;    // a tile's
  int dtype, out_dtype;
  bool aligned;
  Q even, odd;         // the digest so far
  I largest;           // bits of a magnitude

  INLINE void digest(U words, int64_t byte) {
    Q word = (Q)words, key = read<Q>(keys + byte);
    even += products(word, key);
    odd += products(word >> 32, key >> 32);
  }

  INLINE void put(char* to, U x) {
#if defined(__AVX2__)
    if (aligned) {
      _mm256_stream_si256((__m256i*)to, (__m256i)x);
      return;
    }
#endif
    memcpy(to, &x, sizeof x);
  }

  // Sixteen elements; `from` counts them in the piece, `within` in the tile.
  template <int S>
  INLINE void take(Pair x, int64_t from, int64_t within) {
    for (int h = 0; h < 2; h++) {
      I bits = (I)magnitude(x.of[h]);
      largest = bits > largest ? bits : largest;
    }
    if (S == F32 || (S == MIXED && dtype == F32)) {
      for (int h = 0; h < 2; h++) {
        digest((U)x.of[h], 4 * (within + h * LANES));
        if (out_dtype == F32) put(out + 4 * (from + h * LANES), (U)x.of[h]);
      }
      if (out_dtype != F32) narrow(x, from);
      return;
    }
    U both = S == BF16 ? (bf16_bits(x.of[0]) >> 16) | (bf16_bits(x.of[1]) & splat(HIGH))
                       : halves(x, dtype);
    digest(both, 2 * within);
    if (out_dtype == dtype) {
      put(out + 2 * from, both);
      return;
    }
    x = load<MIXED>((const char*)&both, dtype, 0);
    if (out_dtype != F32) narrow(x, from);
    else
      for (int h = 0; h < 2; h++) put(out + 4 * (from + h * LANES), (U)x.of[h]);
  }

  INLINE void narrow(Pair x, int64_t from) { put(out + 2 * from, halves(x, out_dtype)); }

  static INLINE U halves(Pair x, int dtype) {  // sixteen 16-bit floats from a pair in order
    H half[2];
    for (int h = 0; h < 2; h++)
      half[h] = dtype == F16 ? to_f16(x.of[h])
                             : __builtin_convertvector(bf16_bits(x.of[h]) >> 16, H);
    return read<U>(half);
  }
};

template <int S>
static INLINE F rounded(F x, int dtype) {  // to what a task vector of that dtype holds
  if (S == F32 || (S == MIXED && dtype == F32)) return x;
  if (S == MIXED && dtype == F16) return from_f16(to_f16(x));
  return (F)(bf16_bits(x) & splat(HIGH));
}

// Sixteen 16-bit numbers as the lanes of a pair have them.
template <int S>
static INLINE U widen(const uint16_t* from, int h) {
  if (S == BF16) return h ? read<U>(from) >> 16 : read<U>(from) & splat(0xFFFFu);
  return __builtin_convertvector(read<H>(from + h * LANES), U);
}

// Keys change from round to round and not from block to block: made once for a tile.
struct Keys {  // of the generator's rounds
  Q of[ROUNDS][2];

  Keys() = default;
  Keys(uint32_t key0, uint32_t key1) {
    for (auto& pair : of) {
      pair[0] = (Q)splat(key0), pair[1] = (Q)splat(key1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
  }
};

// The bytes of philox.py for the 128 elements from `start` on, a multiple of 128. A block's words
// are in the low halves of 64-bit lanes; what is above them is nothing.
static INLINE void draw(uint8_t* out, int64_t start, uint64_t stream, const Keys& keys) {
  const Q by0 = (Q)splat(0xD2511F53u), by1 = (Q)splat(0xCD9E8D57u);
  Q c[2][4];
  for (int h = 0; h < 2; h++) {
    uint64_t first = (uint64_t)(start / BLOCK) + 4 * h;
    c[h][0] = Q{first, first + 1, first + 2, first + 3};
    c[h][1] = Q{first >> 32, first >> 32, first >> 32, first >> 32};
    c[h][2] = Q{stream, stream, stream, stream};
    c[h][3] = Q{};
  }
  for (int round = 0; round < ROUNDS; round++) {
    for (int h = 0; h < 2; h++) {
      Q p0 = products(c[h][0], by0), p1 = products(c[h][2], by1);
      c[h][0] = (p1 >> 32) ^ c[h][1] ^ keys.of[round][0];
      c[h][1] = p1;
      c[h][2] = (p0 >> 32) ^ c[h][3] ^ keys.of[round][1];
      c[h][3] = p0;
    }
  }
  for (int word = 0; word < 4; word++) {
    Q both = (c[0][word] & 0xFFFFFFFFu) | (c[1][word] << 32);
    memcpy(out + 32 * word, &both, sizeof both);
  }
}

template <int S, int K>
static INLINE Pair weighted(const Term* terms, int count, int64_t at) {
  Pair total{};
  for (int k = 0; k < (K ? K : count); k++) {
    Pair x = load<S>(terms[k].data, terms[k].dtype, at);
    for (int h = 0; h < 2; h++) total.of[h] += x.of[h] * splat(terms[k].weight);
  }
  return total;
}

// Which of sixteen elements each lane of half `h` of a pair is.
template <int S>
static INLINE U lane(int h) {
  const U i{0, 1, 2, 3, 4, 5, 6, 7};
  return S == BF16 ? i * 2 + splat((uint32_t)h) : i + splat((uint32_t)(h * LANES));
}

static INLINE F picked(F values, U index) {  // of four values, by the lowest two bits
#if defined(__AVX2__)
  return (F)_mm256_permutevar_ps((__m256)values, (__m256i)index);
#else
  F found{};
  for (int i = 0; i < LANES; i++) found[i] = values[index[i] & 3];
  return found;
#endif
}

// What the codes of signs stand for, times the weight; see `Signs` in signs.py. Twice, for either
// half of the lanes. Of one bit, the next element's is looked at too, and makes no difference.
static INLINE F values_of(const Term& t) {
  const float w = t.weight;
  if (t.dtype == SIGNS2) return F{0.0f, w, 0.0f, -w, 0.0f, w, 0.0f, -w};
  return F{w, -w, w, -w, w, -w, w, -w};
}

// Add signs' elements from `at` on, which is a multiple of 32 where N is above 1.
template <int S, int BITS, int N>
static INLINE void add_signs(Pair (&total)[N], const char* codes, F values, int64_t at) {
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) {
    const int64_t from = at + n * PAIR;
    const U word = splat(read<uint32_t>(codes + from * BITS / 32 * 4));
    // of one bit, a word is of 32 elements, of which these are the first or the last
    const uint32_t before = BITS == 2 ? 0 : N > 1 ? n % 2 * PAIR : from % 32;
    total[n].of[0] += picked(values, word >> (lane<S>(0) * BITS + splat(before)));
    total[n].of[1] += picked(values, word >> (lane<S>(1) * BITS + splat(before)));
  }
}

// Sums of N times sixteen elements, in the order of the terms.
template <int S, int N>
static INLINE void signed_sum(Pair (&total)[N], const Term* terms, const F* values, int count,
                              int64_t at) {
  for (int k = 0; k < count; k++) {
    const Term& t = terms[k];
    if (t.dtype == SIGNS2) {
      add_signs<S, 2>(total, t.data, values[k], at);
    } else if (t.dtype == SIGNS1) {
      add_signs<S, 1>(total, t.data, values[k], at);
    } else {
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) {
        Pair x = load<S>(t.data, t.dtype, at + n * PAIR);
        total[n].of[0] += x.of[0] * splat(t.weight);
        total[n].of[1] += x.of[1] * splat(t.weight);
      }
    }
  }
}

template <int S, int THIN>
static INLINE F thinned(const Term& t, F tau, int h, const uint16_t* draws, W levels) {
  if (THIN == MAGNITUDE) return only(magnitude(tau) >= splat(t.low), tau);
  if (THIN == BAND)
    return only((magnitude(tau) >= splat(t.low)) & (magnitude(tau) <= splat(t.high)), tau);
  if (THIN == RANDOM)
    return only((I)widen<S>(draws, h) < (I)splat(t.threshold), tau * splat(t.inverse));
  if (THIN == RANKED) {
    // `low` is the threshold of level 0, `high` what a level adds; see keep_by_rank in chances.py.
    F level = __builtin_convertvector((I)(S != BF16 ? widen<S>((const uint16_t*)&levels, h)
                                          : h       ? (U)levels >> 16
                                                    : (U)levels & splat(0xFFFFu)),
                                      F);
    const F most = splat(65536.0f);
    F chance = larger(smaller(splat(t.low) + level * splat(t.high), most), F{});
    I threshold = __builtin_convertvector(chance, I);
    F kept = only((I)widen<S>(draws, h) < threshold, tau);
    if (t.inverse == 0.0f) return kept;
    return kept * (most / larger(__builtin_convertvector(threshold, F), splat(1.0f)));
  }
  return tau;
}

// One over the sum of |weight| of the models that are left of an element, 1 where none is. Division
// is the slowest operation here, and there are only 2^K sums: up to three models look theirs up.
template <int K>
struct Sharing {
  F divisor;
  I pattern;  // up to three models: a bit for each

  static constexpr bool LOOKED_UP = HAS_AVX2 && K > 0 && K <= 3;

  INLINE void add(int k, I left, float weight) {
    if (LOOKED_UP) pattern |= left & (I)splat(1u << k);
    else divisor += only(left, splat(__builtin_fabsf(weight)));
  }

  INLINE F inverse(F inverses) const {
#if defined(__AVX2__)
    if (LOOKED_UP) return (F)_mm256_permutevar8x32_ps((__m256)inverses, (__m256i)pattern);
#endif
    return splat(1.0f) / where(divisor > F{}, divisor, splat(1.0f));
  }

  static F table(const Term* terms) {  // the inverse for every pattern
    F inverses = splat(1.0f);
    for (int pattern = 1; LOOKED_UP && pattern < (1 << K); pattern++) {
      float sum = 0.0f;
      for (int k = 0; k < K; k++)
        if (pattern >> k & 1) sum += __builtin_fabsf(terms[k].weight);
      if (sum > 0.0f) inverses[pattern] = 1.0f / sum;
    }
    return inverses;
  }
};

// The variance across models, in the order of `variance` in task_vector.py.
template <int K>
static INLINE F spread(const Pair* parts, int given, int h) {
  const int count = K ? K : given;
  const F models = splat((float)count);
  F mean = parts[0].of[h] - parts[0].of[h], total{};
  for (int k = 1; k < count; k++) mean += parts[k].of[h] - parts[0].of[h];
  mean /= models;
  for (int k = 0; k < count; k++) {
    F apart = parts[k].of[h] - parts[0].of[h] - mean;
    total += apart * apart;
  }
  return total / models;
}

template <int S, int THIN, int K>
static INLINE Pair masked(const Piece& p, const Term* terms, const char* origin, int64_t at,
                          const uint16_t (*draws)[GROUP], F inverses) {
  const int count = K ? K : p.count, join = p.join;
  const bool normalize = p.normalize;
  Pair base = load<S>(origin, p.base_dtype, at), parts[K ? K : MOST], out;
  for (int k = 0; k < count; k++) {
    Pair x = load<S>(terms[k].data, terms[k].dtype, at);
    alignas(32) W levels{};
    if (THIN == RANKED) levels = __builtin_convertvector(read<B>(terms[k].levels + at), W);
    for (int h = 0; h < 2; h++) {
      F tau = rounded<S>(x.of[h] - base.of[h], p.base_dtype);
      parts[k].of[h] = thinned<S, THIN>(terms[k], tau, h, draws[k] + at % GROUP,
                                            levels);
    }
  }
  for (int h = 0; h < 2; h++) {
    if (THIN == VOTES) {
      F total{}, votes{};
      for (int k = 0; k < count; k++) total += parts[k].of[h];
      for (int k = 0; k < count; k++) {
        F others = magnitude(total - parts[k].of[h]) * splat(terms[k].low);
        votes += only(magnitude(parts[k].of[h]) > others, splat(1.0f));
      }
      I mask = votes >= splat((float)p.least);
      for (int k = 0; k < count; k++) parts[k].of[h] = only(mask, parts[k].of[h]);
    }
    if (THIN == VARIANCE) {
      I mask = spread<K>(parts, count, h) >= splat(terms[0].low);
      for (int k = 0; k < count; k++) parts[k].of[h] = only(mask, parts[k].of[h]);
    }
    F whole{};
    for (int k = 0; k < count; k++) {
      parts[k].of[h] *= splat(terms[k].weight);
      whole += parts[k].of[h];
    }
    F total = whole;
    if (join == LARGEST) {
      total = parts[0].of[h];
      for (int k = 1; k < count; k++) {
        F part = parts[k].of[h];
        total = where(magnitude(part) >= magnitude(total), part, total);
      }
      total += F{};  // as no zero is negative elsewhere
    } else if (join == ELECT) {
      // Seen from the elected side, what agrees is above zero: one comparison instead of two signs.
      F sign = (F)((U)whole & splat(SIGN));
      Sharing<K> sharing{};
      total = F{};
      for (int k = 0; k < count; k++) {
        F part = (F)((U)parts[k].of[h] ^ (U)sign);
        I left = part > F{};
        total += only(left, part);
        if (normalize) sharing.add(k, left, terms[k].weight);
      }
      total = only(whole != F{}, (F)((U)total ^ (U)sign));
      if (normalize) total *= sharing.inverse(inverses);
    } else if (normalize) {
      Sharing<K> sharing{};
      for (int k = 0; k < count; k++) sharing.add(k, parts[k].of[h] != F{}, terms[k].weight);
      total *= sharing.inverse(inverses);
    }
    out.of[h] = base.of[h] + total * splat(p.scale);
  }
  return out;
}

// The last elements of a tensor, beside zeros, which merge into zeros.
struct Rest {
  alignas(32) char rows[MOST + 1][4 * PAIR] = {}, ranks[MOST][PAIR] = {};

  // Return where `data` would begin, if its elements from `at` to `end` were these.
  const char* beside(int row, const char* data, int dtype, int64_t at, int64_t end) {
    int bytes = dtype == F32 ? 4 : 2;
    memcpy(rows[row], data + at * bytes, (end - at) * bytes);
    return rows[row] - at * bytes;
  }
};

// Merge the elements from `start` to `stop` of one piece, which are a tile.
template <int S, int THIN, int K>
static void merge(const Piece& piece, int64_t start, int64_t stop, Sink& result) {
  constexpr bool DRAWS = THIN == RANDOM || THIN == RANKED, SUMS = THIN == NONE || THIN == SIGNED;
  constexpr int QUAD = 4;  // pairs of a sum of signs at a time: as many as stay in registers
  alignas(32) uint8_t bytes[GROUP], low[DRAWS ? MOST : 1][TILE_BYTES / 2 / GROUP];
  alignas(32) uint16_t draws[DRAWS ? MOST : 1][GROUP];
  Term terms[MOST];
  Keys keys[DRAWS ? MOST : 1];
  F values[THIN == SIGNED ? MOST : 1];
  const Piece p = piece;  // copies that nothing else points at stay in registers
  Sink sink = result;
  std::copy(p.terms, p.terms + p.count, terms);
  for (int k = 0; DRAWS && k < p.count; k++) {
    keys[k] = Keys(terms[k].key0, terms[k].key1);
    for (int64_t at = 0; at < (stop - start + GROUP - 1) / GROUP; at += GROUP)
      draw(low[k] + at, start / GROUP + at, 1, keys[k]);
  }
  for (int k = 0; THIN == SIGNED && k < p.count; k++) values[k] = values_of(terms[k]);
  const F inverses = Sharing<K>::table(terms);
  // One block of sixteen elements; inlined, so that all its branches on S, THIN and K are gone.
  auto block = [&](const char* base, int64_t at) __attribute__((always_inline)) {
    if constexpr (THIN == SIGNED) {
      Pair total[1] = {};
      signed_sum<S>(total, terms, values, p.count, at);
      return total[0];
    } else {
      return THIN == NONE ? weighted<S, K>(terms, p.count, at)
                          : masked<S, THIN, K>(p, terms, base, at, draws, inverses);
    }
  };
  for (int64_t group = start; group < stop; group += GROUP) {
    for (int k = 0; DRAWS && k < p.count; k++) {
      draw(bytes, group, 0, keys[k]);
      const uint16_t shared = low[k][(group - start) / GROUP];
      for (int i = 0; i < GROUP; i++) draws[k][i] = (uint16_t)(bytes[i] << 8 | shared);
    }
    // Whole blocks, then the elements that are left at the end of a tensor, from a padded copy.
    int64_t end = group + GROUP < stop ? group + GROUP : stop, at = group;
    for (; THIN == SIGNED && at + QUAD * PAIR <= end; at += QUAD * PAIR) {
      Pair total[QUAD] = {};
      signed_sum<S>(total, terms, values, p.count, at);
#pragma GCC unroll 4
      for (int n = 0; n < QUAD; n++) sink.take<S>(total[n], at + n * PAIR, at + n * PAIR - start);
    }
    for (; at + PAIR <= end; at += PAIR) sink.take<S>(block(p.base, at), at, at - start);
    if (at == end) continue;
    Rest rest;
    alignas(32) char last[4 * PAIR];
    for (int k = 0; k < p.count; k++) {
      if (terms[k].dtype >= SIGNS1) continue;  // which have codes for more elements than there are
      terms[k].data = rest.beside(k, terms[k].data, terms[k].dtype, at, end);
      if (THIN != RANKED) continue;
      memcpy(rest.ranks[k], terms[k].levels + at, end - at);
      terms[k].levels = (const uint8_t*)rest.ranks[k] - at;
    }
    Pair x = block(SUMS ? nullptr : rest.beside(MOST, p.base, p.base_dtype, at, end), at);
    for (int h = 0; THIN == SIGNED && h < 2; h++)  // which of one bit are no zeros there
      x.of[h] = only((I)(lane<S>(h) < splat((uint32_t)(end - at))), x.of[h]);
    char* out = sink.out;
    sink.out = last, sink.aligned = false;
    sink.take<S>(x, 0, at - start);
    int bytes = p.out_dtype == F32 ? 4 : 2;
    memcpy(out + at * bytes, last, (end - at) * bytes);
  }
  result = sink;
}

template <int S, int K>
static void merge_as(const Piece& p, int64_t start, int64_t stop, Sink& sink) {
  switch (p.thin) {
    case NONE: return merge<S, NONE, K>(p, start, stop, sink);
    case MAGNITUDE: return merge<S, MAGNITUDE, K>(p, start, stop, sink);
    case BAND: return merge<S, BAND, K>(p, start, stop, sink);
    case RANDOM: return merge<S, RANDOM, K>(p, start, stop, sink);
    case RANKED: return merge<S, RANKED, K>(p, start, stop, sink);
    case VOTES: return merge<S, VOTES, K>(p, start, stop, sink);
    case SIGNED: return merge<S, SIGNED, 0>(p, start, stop, sink);
    default: return merge<S, VARIANCE, K>(p, start, stop, sink);
  }
}

// Add up the squares of what VARIANCE keeps, a sum for each model; or, where `energy` is null, find
// the variances above zero whose upper 16 bits are the piece's bin.
template <int S>
static void survey(Piece& p, int64_t start, int64_t stop, double* energy) {
  Term terms[MOST];
  D sums[MOST] = {};
  std::copy(p.terms, p.terms + p.count, terms);
  auto block = [&](const char* base, int64_t at) __attribute__((always_inline)) {
    Pair origin = load<S>(base, p.base_dtype, at), parts[MOST];
    for (int k = 0; k < p.count; k++) {
      Pair x = load<S>(terms[k].data, terms[k].dtype, at);
      for (int h = 0; h < 2; h++)
        parts[k].of[h] = rounded<S>(x.of[h] - origin.of[h], p.base_dtype);
    }
    for (int h = 0; h < 2; h++) {
      F found = spread<0>(parts, p.count, h);
      I mask = found >= splat(terms[0].low);
      for (int k = 0; energy && k < p.count; k++) {
        F part = only(mask, parts[k].of[h]);
        G halves[2];
        memcpy(halves, &part, sizeof part);
        for (G half : halves) {
          D wide = __builtin_convertvector(half, D);
          sums[k] += wide * wide;
        }
      }
      I inside = ((I)found >> 16 == p.bin) & (found > F{});
      if (energy || !any(inside)) continue;
      for (int i = 0; i < LANES; i++) {
        if (!inside[i]) continue;
        int64_t place = __atomic_fetch_add(&p.inside, 1, __ATOMIC_RELAXED);
        if (place < p.room) p.variances[place] = found[i];
      }
    }
  };
  int64_t at = start;
  for (; at + PAIR <= stop; at += PAIR) block(p.base, at);
  if (at < stop) {
    Rest rest;
    for (int k = 0; k < p.count; k++)
      terms[k].data = rest.beside(k, terms[k].data, terms[k].dtype, at, stop);
    block(rest.beside(MOST, p.base, p.base_dtype, at, stop), at);
  }
  for (int k = 0; energy && k < p.count; k++)
    energy[k] = sums[k][0] + sums[k][1] + sums[k][2] + sums[k][3];
}

// Whether all that is read and written has one dtype, which has kernels of its own: no element then
// asks for its dtype, and bfloat16 is taken apart without a shuffle.
static bool alike(const Piece& p) {
  bool same = p.dtype != F16 && (!p.base || p.base_dtype == p.dtype);
  for (int k = 0; k < p.count; k++)
    same &= p.terms[k].dtype == p.dtype || p.terms[k].dtype >= SIGNS1;
  return same;
}

static void work(Piece& p, int64_t index, int64_t start, int64_t stop, const uint32_t* keys) {
  const bool same = alike(p);
  auto merge = merge_as<MIXED, 0>;
  if (same && p.dtype == F32) merge = merge_as<F32, 0>;
  if (same && p.dtype == BF16)  // with the loop over the usual numbers of models unrolled
    merge = p.count == 2   ? merge_as<BF16, 2>
            : p.count == 3 ? merge_as<BF16, 3>
            : p.count == 4 ? merge_as<BF16, 4>
                           : merge_as<BF16, 0>;
  Sink sink{p.out, (const char*)keys, p.dtype, p.out_dtype, (uintptr_t)p.out % 32 == 0};
  merge(p, start, stop, sink);
  // The first bits that round to infinity in the dtype of the result.
  uint32_t limit = p.dtype == F32 ? 0x7F800000u : p.dtype == BF16 ? 0x7F7F8000u : 0x477FF000u;
  for (int i = 0; i < LANES; i++)
    if ((uint32_t)sink.largest[i] >= limit) __atomic_store_n(&p.broken, 1, __ATOMIC_RELAXED);
  Q both = sink.even + sink.odd;
  p.digests[index] = both[0] + both[1] + both[2] + both[3];
}

extern "C" int evomerge_has_f16() {
#if defined(__F16C__)
  return 1;
#else
  return 0;
#endif
}

extern "C" int64_t evomerge_sizes() { return (int64_t)sizeof(Piece) << 32 | sizeof(Term); }

// Call `each(piece, tile, its index in the piece, start, stop)` for all tiles. Threads take the
// next tile that is left, so that a slow core holds nobody up; tiles are digested by themselves, so
// that the checksum does not depend on who took which.
template <class Each>
static void over_tiles(Piece* pieces, int64_t count, int64_t tiles, int threads, Each each) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    int64_t at = 0;
    for (int64_t tile; (tile = next.fetch_add(1)) < tiles;) {
      while (at + 1 < count && pieces[at + 1].first_tile <= tile) at++;
      Piece& p = pieces[at];
      int64_t index = tile - p.first_tile, size = TILE_BYTES / (p.dtype == F32 ? 4 : 2);
      each(p, tile, index, index * size, std::min((index + 1) * size, p.size));
    }
#if defined(__AVX2__)
    _mm_sfence();
#endif
  };
  std::vector<std::thread> others;
  try {
    for (int i = 1; i < threads; i++) others.emplace_back(run);
  } catch (const std::system_error&) {  // no more threads to be had: go on with these
  }
  run();
  for (auto& thread : others) thread.join();
}

extern "C" void evomerge_merge(Piece* pieces, int64_t count, int64_t tiles, const uint32_t* keys,
                               int threads) {
  over_tiles(pieces, count, tiles, threads,
             [&](Piece& p, int64_t, int64_t index, int64_t start, int64_t stop) {
               work(p, index, start, stop, keys);
             });
}

// What `Sink` digests on the way, of elements that lie somewhere: one number a tile.
extern "C" void evomerge_digest(const char* data, int64_t bytes, const uint32_t* keys,
                                uint64_t* digests) {
  for (int64_t start = 0; start < bytes; start += TILE_BYTES) {
    const char* tile = data + start;
    int64_t size = std::min<int64_t>(TILE_BYTES, bytes - start), words = size / 4;
    uint64_t sum = 0;
    for (int64_t i = 0; i < words; i++) sum += (uint64_t)read<uint32_t>(tile + 4 * i) * keys[i];
    if (size % 4) {
      uint32_t last = 0;
      memcpy(&last, tile + 4 * words, size % 4);
      sum += (uint64_t)last * keys[words];
    }
    *digests++ = sum;
  }
}

// `energy`: MOST numbers a tile, or null; see `survey`.
extern "C" void evomerge_survey(Piece* pieces, int64_t count, int64_t tiles, double* energy,
                                int threads) {
  over_tiles(pieces, count, tiles, threads,
             [&](Piece& p, int64_t tile, int64_t, int64_t start, int64_t stop) {
               if (p.thin != VARIANCE || p.bin < 0) return;
               auto one = alike(p) && p.dtype == BF16 ? survey<BF16> : survey<MIXED>;
               one(p, start, stop, energy ? energy + MOST * tile : nullptr);
             });
}
