// The kernels of kernels.py in one pass over memory; see native.py for who calls this.
//
// Operation by operation the same as the eager kernels in float32, so the bits are the same: compile
// with -ffp-contract=off. Vectors are GCC's (and clang's), eight lanes wide.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef float F __attribute__((vector_size(32)));
typedef uint32_t U __attribute__((vector_size(32)));
typedef int32_t I __attribute__((vector_size(32)));
typedef uint16_t H __attribute__((vector_size(16)));

enum Dtype { BF16, F32, F16 };
enum Thin { NONE, MAGNITUDE, RANDOM, RANKED, VOTES };
enum Join { SUM, ELECT, LARGEST };

struct Term {  // one model of one tensor
  const char* data;
  const uint8_t* levels;        // RANKED: of every element
  const uint32_t* thresholds;   // RANKED: of every level
  const float* inverses;
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
  int64_t first_tile;
  int32_t count, base_dtype, dtype, out_dtype;
  int32_t thin, join, normalize, least;
  float scale;
  int32_t broken;      // set where an element is not finite
};

static const int TILE_BYTES = 1 << 16, LANES = 8, GROUP = 128, MOST = 32;
static const uint32_t SIGN = 0x80000000u;

static inline F splat(float x) { return F{x, x, x, x, x, x, x, x}; }
static inline U splat(uint32_t x) { return U{x, x, x, x, x, x, x, x}; }
static inline F as_float(U x) { return (F)x; }
static inline F magnitude(F x) { return (F)((U)x & splat(~SIGN)); }
static inline F where(I mask, F a, F b) { return (F)(((U)mask & (U)a) | (~(U)mask & (U)b)); }
// x times 1 or 0, which keeps the sign of zero as a product does
static inline F times(F x, I mask) { return (F)((U)x & ((U)mask | splat(SIGN))); }

static inline U bf16_bits(F x) {  // rounded to nearest, ties to even; x is no NaN
  U bits = (U)x;
  return (bits + splat(0x7FFFu) + ((bits >> 16) & splat(1u))) >> 16;
}

static inline F from_f16(H half) {
#if defined(__F16C__)
  return (F)_mm256_cvtph_ps((__m128i)half);
#else
  return F{};
#endif
}

static inline H to_f16(F x) {
#if defined(__F16C__)
  return (H)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return H{};
#endif
}

static inline F load(const char* data, int dtype, int64_t at, int lanes) {
  if (dtype == F32) {
    F x{};
    memcpy(&x, data + 4 * at, 4 * lanes);
    return x;
  }
  H half{};
  memcpy(&half, data + 2 * at, 2 * lanes);
  if (dtype == F16) return from_f16(half);
  return (F)(__builtin_convertvector(half, U) << 16);
}

static inline void store(char* data, int dtype, int64_t at, int lanes, F x) {
  if (dtype == F32) {
    memcpy(data + 4 * at, &x, 4 * lanes);
    return;
  }
  H half = dtype == F16 ? to_f16(x) : __builtin_convertvector(bf16_bits(x), H);
  memcpy(data + 2 * at, &half, 2 * lanes);
}

static inline F rounded(F x, int dtype) {  // to what a task vector of that dtype holds
  if (dtype == F32) return x;
  return dtype == F16 ? from_f16(to_f16(x)) : (F)(bf16_bits(x) << 16);
}

static inline void multiply(U x, uint32_t by, U& high, U& low) {  // 32 x 32 -> 64 bits
#if defined(__AVX2__)
  __m256i b = _mm256_set1_epi32((int)by), a = (__m256i)x;
  __m256i even = _mm256_mul_epu32(a, b), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
  low = (U)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  high = (U)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
#else
  low = x * by;
  for (int i = 0; i < LANES; i++) high[i] = (uint32_t)(((uint64_t)x[i] * by) >> 32);
#endif
}

// The draws of philox.py for the 128 elements from `start` on, a multiple of 128.
static void draw(uint16_t* out, int64_t start, uint32_t key0, uint32_t key1) {
  for (int side = 0; side < 2; side++) {
    uint64_t first = (uint64_t)(start / LANES) + side * LANES;
    U c0 = splat((uint32_t)first) + U{0, 1, 2, 3, 4, 5, 6, 7}, c1 = splat((uint32_t)(first >> 32));
    U c2{}, c3{};
    uint32_t k0 = key0, k1 = key1;
    for (int round = 0; round < 10; round++) {
      U high0, low0, high1, low1;
      multiply(c0, 0xD2511F53u, high0, low0);
      multiply(c2, 0xCD9E8D57u, high1, low1);
      c0 = high1 ^ c1 ^ splat(k0);
      c1 = low1;
      c2 = high0 ^ c3 ^ splat(k1);
      c3 = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    U words[4] = {c0, c1, c2, c3};
    for (int word = 0; word < 4; word++) {
      H low = __builtin_convertvector(words[word] & splat(0xFFFFu), H);
      H high = __builtin_convertvector(words[word] >> 16, H);
      memcpy(out + 32 * word + 8 * side, &low, 16);
      memcpy(out + 32 * word + 16 + 8 * side, &high, 16);
    }
  }
}

static inline U widen(const uint16_t* draws) {
  H half;
  memcpy(&half, draws, 16);
  return __builtin_convertvector(half, U);
}

static inline F weighted(const Piece& p, int64_t at, int lanes) {
  F total{};
  for (int k = 0; k < p.count; k++)
    total += load(p.terms[k].data, p.terms[k].dtype, at, lanes) * splat(p.terms[k].weight);
  return total;
}

static inline F thinned(const Piece& p, const Term& t, F tau, int64_t at, int lanes,
                        const uint16_t* draws) {
  if (p.thin == MAGNITUDE) {
    F size = magnitude(tau);
    return times(tau, (size >= splat(t.low)) & (size <= splat(t.high)));
  }
  if (p.thin == RANDOM)
    return times(tau, (I)(widen(draws) < splat(t.threshold))) * splat(t.inverse);
  if (p.thin == RANKED) {
    U limits{};
    F inverses{};
    for (int i = 0; i < lanes; i++) {
      limits[i] = t.thresholds[t.levels[at + i]];
      inverses[i] = t.inverses[t.levels[at + i]];
    }
    return times(tau, (I)(widen(draws) < limits)) * inverses;
  }
  return tau;
}

static inline F merged(const Piece& p, int64_t at, int lanes, const uint16_t (*draws)[GROUP]) {
  if (!p.base) return weighted(p, at, lanes);
  F base = load(p.base, p.base_dtype, at, lanes), parts[MOST];
  for (int k = 0; k < p.count; k++) {
    const Term& t = p.terms[k];
    F tau = rounded(load(t.data, t.dtype, at, lanes) - base, p.base_dtype);
    parts[k] = thinned(p, t, tau, at, lanes, draws[k] + at % GROUP);
  }
  if (p.thin == VOTES) {
    F total{}, votes{};
    for (int k = 0; k < p.count; k++) total += parts[k];
    for (int k = 0; k < p.count; k++)
      votes += where(magnitude(parts[k]) > magnitude(total - parts[k]) * splat(p.terms[k].low),
                     splat(1.0f), F{});
    I mask = votes >= splat((float)p.least);
    for (int k = 0; k < p.count; k++) parts[k] = times(parts[k], mask);
  }
  F whole{};
  for (int k = 0; k < p.count; k++) {
    parts[k] *= splat(p.terms[k].weight);
    whole += parts[k];
  }
  F total = whole;
  if (p.join == LARGEST) {
    total = parts[0];
    for (int k = 1; k < p.count; k++)
      total = where(magnitude(parts[k]) >= magnitude(total), parts[k], total);
  } else if (p.join == ELECT || p.normalize) {
    F divisor{};
    total = F{};
    for (int k = 0; k < p.count; k++) {
      I left = parts[k] != F{};
      if (p.join == ELECT) left &= ((parts[k] > F{}) & (whole > F{})) | ((parts[k] < F{}) & (whole < F{}));
      total += times(parts[k], left);
      divisor += where(left, splat(__builtin_fabsf(p.terms[k].weight)), F{});
    }
    if (p.normalize) total /= where(divisor > F{}, divisor, splat(1.0f));
  }
  return base + total * splat(p.scale);
}

static uint64_t digest(const char* data, int64_t bytes, const uint32_t* keys) {
  uint64_t total = 0;
  int64_t words = bytes / 4;
  const uint32_t* word = (const uint32_t*)data;
  for (int64_t i = 0; i < words; i++) total += (uint64_t)word[i] * keys[i];
  if (bytes % 4) {
    uint32_t last = 0;
    memcpy(&last, data + 4 * words, bytes % 4);
    total += (uint64_t)last * keys[words];
  }
  return total;
}

static void put(char* to, const char* from, int64_t bytes) {  // past the cache, where it can be
#if defined(__AVX2__)
  if ((uintptr_t)to % 32 == 0) {
    int64_t whole = bytes & ~(int64_t)31;
    for (int64_t i = 0; i < whole; i += 32)
      _mm256_stream_si256((__m256i*)(to + i), _mm256_load_si256((const __m256i*)(from + i)));
    memcpy(to + whole, from + whole, bytes - whole);
    return;
  }
#endif
  memcpy(to, from, bytes);
}

// One tile: merged into `tile`, digested while it is in the cache, and put into its place.
static void work(Piece& p, int64_t index, const uint32_t* keys, char* tile, char* wide) {
  int bytes = p.dtype == F32 ? 4 : 2;
  int64_t per_tile = TILE_BYTES / bytes, start = index * per_tile;
  int64_t stop = start + per_tile < p.size ? start + per_tile : p.size;
  bool draws_needed = p.base && (p.thin == RANDOM || p.thin == RANKED);
  alignas(32) static thread_local uint16_t draws[MOST][GROUP];
  // The first bits that round to infinity in the dtype of the result.
  U limit = splat(p.dtype == F32 ? 0x7F800000u : p.dtype == BF16 ? 0x7F7F8000u : 0x477FF000u);
  I broken{};
  for (int64_t group = start; group < stop; group += GROUP) {
    if (draws_needed)
      for (int k = 0; k < p.count; k++) draw(draws[k], group, p.terms[k].key0, p.terms[k].key1);
    int64_t end = group + GROUP < stop ? group + GROUP : stop, at = group;
    for (; at + LANES <= end; at += LANES) {
      F x = merged(p, at, LANES, draws);
      broken |= (I)((U)magnitude(x) >= limit);
      store(tile, p.dtype, at - start, LANES, x);
    }
    if (at < end) {
      F x = merged(p, at, (int)(end - at), draws);
      for (int i = (int)(end - at); i < LANES; i++) x[i] = 0.0f;
      broken |= (I)((U)magnitude(x) >= limit);
      store(tile, p.dtype, at - start, (int)(end - at), x);
    }
  }
  for (int i = 0; i < LANES; i++)
    if (broken[i]) __atomic_store_n(&p.broken, 1, __ATOMIC_RELAXED);
  int64_t size = stop - start;
  p.digests[index] = digest(tile, size * bytes, keys);
  if (p.out_dtype == p.dtype) {
    put(p.out + start * bytes, tile, size * bytes);
    return;
  }
  for (int64_t i = 0; i < size; i += LANES) {
    int lanes = (int)(size - i < LANES ? size - i : LANES);
    store(wide, p.out_dtype, i, lanes, load(tile, p.dtype, i, lanes));
  }
  put(p.out + start * (p.out_dtype == F32 ? 4 : 2), wide, size * (p.out_dtype == F32 ? 4 : 2));
}

extern "C" int evomerge_has_f16() {
#if defined(__F16C__)
  return 1;
#else
  return 0;
#endif
}

extern "C" void evomerge_merge(Piece* pieces, int64_t count, int64_t tiles, const uint32_t* keys,
                               int threads) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    alignas(64) static thread_local char tile[TILE_BYTES], wide[2 * TILE_BYTES];
    int64_t at = 0;
    for (int64_t index; (index = next.fetch_add(1)) < tiles;) {
      while (at + 1 < count && pieces[at + 1].first_tile <= index) at++;
      work(pieces[at], index - pieces[at].first_tile, keys, tile, wide);
    }
#if defined(__AVX2__)
    _mm_sfence();
#endif
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++) others.emplace_back(run);
  run();
  for (auto& thread : others) thread.join();
}
