// 15-bit factors as two int8 parts, for VNNI: the factors of attention's products with codes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/generic/attention_tiles-inl.h"
#include "simd/lanes.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kParts = 2;  // high and low

template <int kSize>
struct ByteFactors : Codes<kSize> {
  // 128 * high + low; rows of whole vectors, so that stores are aligned.
  alignas(64) int8_t parts[kParts][(kSize + 63) / 64 * 64];

  void split(int n) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(this->codes + i));
      store_part(0, i, _mm256_srai_epi16(x, 7));
      store_part(1, i, _mm256_and_si256(x, _mm256_set1_epi16(127)));
    }
    if (i == n) return;
    const __m128i x = _mm_load_si128(reinterpret_cast<const __m128i*>(this->codes + i));
    _mm_storel_epi64(at(0, i), _mm_packs_epi16(_mm_srai_epi16(x, 7), x));
    _mm_storel_epi64(at(1, i), _mm_packs_epi16(_mm_and_si128(x, _mm_set1_epi16(127)), x));
  }

 private:
  __m128i* at(int part, int i) { return reinterpret_cast<__m128i*>(parts[part] + i); }
  void store_part(int part, int i, __m256i x) {
    _mm_store_si128(at(part, i),
                    _mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }
};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
