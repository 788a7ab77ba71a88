// Attention over int8 and int4 KV caches on tiles, for queries that attend to the same positions:
// scores are queries (A operand) by keys (B), outputs are weights (A) by values (B). The cache has
// the order of B operands (kv_tiles.h): int8 codes are read where they are, int4 codes are unpacked
// first. The body is generic/quantized_attention-inl.h, so are the contract of TileDots and the
// budgets of its int32 sums.
//
// Letters:  D head size
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx/base.h"
#include "kernels/amx/tiles.h"
#include "kernels/amx/vectors.h"
#include "kernels/generic/quantized_attention-inl.h"
#include "kernels/kv_tiles.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kTileQueries = kMaxTileRows;
constexpr int kTileColumns = kMaxTileBytes / kBytesPerLane;  // positions or columns of a B operand
constexpr int kPanelColumns = 2 * kTileColumns;  // of the two that are multiplied at a time
static_assert(kPanelColumns == kAttentionTile);

// Codes as 128 * high + low, with the parts as rows of A operands.
template <int kSize>
struct TileFactors : Codes<kSize> {
  alignas(64) int8_t high[(kSize + 63) / 64 * 64];
  alignas(64) int8_t low[(kSize + 63) / 64 * 64];

  void split(int n) {
    for (int i = 0; i < n; ++i) {
      high[i] = static_cast<int8_t>(this->codes[i] >> 7);
      low[i] = static_cast<int8_t>(this->codes[i] & 127);
    }
  }
};

// Sums of the parts of kTileQueries factors by a panel of codes.
struct alignas(64) PanelSums {
  int32_t high[kTileQueries][kPanelColumns], low[kTileQueries][kPanelColumns];
};

// Tiles 0 to 3 are sums, of the high parts and of the low parts by two B operands, 4 and 5 the
// parts, 6 and 7 the B operands, of which `bytes` of a row of A are multiplied at a time.
constexpr TileConfig panel_config(int bytes) {
  TileConfig config;
  for (const int tile : {4, 5}) config.set(tile, kTileQueries, bytes);
  for (const int tile : {6, 7}) config.set(tile, bytes / kBytesPerLane, kMaxTileBytes);
  return config;
}

inline void zero_sums() {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
}

inline void store_sums(PanelSums* sums) {
  constexpr ptrdiff_t kStride = sizeof sums->high[0];
  tile_store<0>(sums->high[0], kStride);
  tile_store<1>(sums->high[0] + kTileColumns, kStride);
  tile_store<2>(sums->low[0], kStride);
  tile_store<3>(sums->low[0] + kTileColumns, kStride);
}

// The largest number of bytes of a row of A that divides K, which is a multiple of 8.
inline int step_of(int K) {
  int step = kMaxTileBytes;
  while (K % step != 0) step -= kBytesPerLane;
  return step;
}

// 32 bytes of int4 codes as their low and their high halves, a byte each.
inline void unpack_halves(const uint8_t* from, uint8_t* low, uint8_t* high) {
  typedef uint32_t Words __attribute__((vector_size(32)));
  const Words bytes = load_vector<Words>(from), mask = Words{} + 0x0f0f0f0f;
  store_vector(low, bytes & mask);
  store_vector(high, bytes >> 4 & mask);
}

// A tile of int4 keys as one of int8 keys: 16 codes have eight bytes, which are two rows of B, and
// become four.
inline void unpack_keys(const uint8_t* keys, int64_t row_bytes, uint8_t* codes) {
  constexpr int kRow = kAttentionTile * kBytesPerLane;
  for (int64_t row = 0; row < row_bytes / kBytesPerLane; row += 2, codes += 4 * kRow) {
    for (int byte = 0; byte < 2 * kRow; byte += 32, keys += 32) {
      unpack_halves(keys, codes + byte, codes + 2 * kRow + byte);
    }
  }
}

// The same of values: of each four positions, 16 codes have eight bytes.
inline void unpack_values(const uint8_t* values, int64_t row_bytes, uint8_t* codes) {
  for (int64_t byte = 0; byte < kAttentionTile * row_bytes; byte += 32, codes += 64) {
    unpack_halves(values + byte, codes, codes + 32);
  }
}

struct TileDots {
  using QueryCodes = TileFactors<kQueryCodes>;
  using WeightCodes = TileFactors<kAttentionTile>;

  template <FloatType type, int kQueries>
  static void score(const QueryCodes* queries, const uint8_t* keys, int64_t row_bytes,
                    TilePrefetcher& next, int32_t* sums) {
    static_assert(kQueries == kTileQueries);
    alignas(64) uint8_t unpacked[kAttentionTile * kMaxHeadDim];
    if (type == FloatType::i4) {
      unpack_keys(keys, row_bytes, unpacked);
      keys = unpacked;
    }
    const int K = static_cast<int>(type == FloatType::i4 ? 2 * row_bytes : row_bytes);
    const int step = step_of(K);
    PanelSums parts;
    {
      const TileScope scope(panel_config(step));
      zero_sums();
      constexpr ptrdiff_t kStride = kAttentionTile * kBytesPerLane;
      for (int d = 0; d < K; d += step) {
        next.prefetch_part(d + step, K);
        const uint8_t* from = keys + d * kAttentionTile;
        tile_load<4>(queries->high + d, sizeof *queries);
        tile_load<6>(from, kStride);
        tile_dot_s8_u8<0, 4, 6>();
        tile_load<5>(queries->low + d, sizeof *queries);
        tile_dot_s8_u8<2, 5, 6>();
        tile_load<7>(from + kMaxTileBytes, kStride);
        tile_dot_s8_u8<1, 4, 7>();
        tile_dot_s8_u8<3, 5, 7>();
      }
      store_sums(&parts);
    }
    for (int i = 0; i < kQueries; ++i) {
      join<type>(parts, i, queries[i].sum, 0, sums + i * kAttentionTile);
      join<type>(parts, i, queries[i].sum, kTileColumns, sums + i * kAttentionTile + kTileColumns);
    }
  }

  // D is at least kTileColumns. The last of them may be computed twice.
  template <FloatType type, int kQueries>
  static void add(const WeightCodes* weights, const uint8_t* values, int64_t row_bytes, int D,
                  TilePrefetcher& next, int32_t* sums) {
    static_assert(kQueries == kTileQueries);
    alignas(64) uint8_t unpacked[kAttentionTile * kMaxHeadDim];
    if (type == FloatType::i4) {
      unpack_values(values, row_bytes, unpacked);
      values = unpacked;
      row_bytes *= 2;
    }
    static constexpr TileConfig kConfig = panel_config(kAttentionTile);
    const TileScope scope(kConfig);
    tile_load<4>(weights->high, sizeof *weights);
    tile_load<5>(weights->low, sizeof *weights);
    for (int d = 0; d < D; d += kPanelColumns) {
      next.prefetch_part(d + kPanelColumns, D);
      const int last = D - kTileColumns;
      const int columns[] = {d < last ? d : last,
                             d + kTileColumns < last ? d + kTileColumns : last};
      const ptrdiff_t stride = row_bytes * kBytesPerLane;
      zero_sums();
      tile_load<6>(values + columns[0] * kBytesPerLane, stride);
      tile_dot_s8_u8<0, 4, 6>();
      tile_dot_s8_u8<2, 5, 6>();
      tile_load<7>(values + columns[1] * kBytesPerLane, stride);
      tile_dot_s8_u8<1, 4, 7>();
      tile_dot_s8_u8<3, 5, 7>();
      PanelSums parts;
      store_sums(&parts);
      for (int i = 0; i < kQueries; ++i) {
        join<type>(parts, i, weights[i].sum, 0, sums + i * D + columns[0]);
        join<type>(parts, i, weights[i].sum, kTileColumns, sums + i * D + columns[1]);
      }
    }
  }

 private:
  // From sums of the parts by codes in offset binary to those of factor i by codes. Unsigned: they
  // wrap, and wrap back.
  template <FloatType type>
  static void join(const PanelSums& parts, int i, int32_t factor_sum, int column, int32_t* sums) {
    typedef uint32_t Words __attribute__((vector_size(kMaxTileBytes)));
    const uint32_t offset = static_cast<uint32_t>((type == FloatType::i8 ? 128 : 8) * factor_sum);
    const Words high = load_vector<Words>(parts.high[i] + column);
    const Words low = load_vector<Words>(parts.low[i] + column);
    store_vector(sums, (high << 7) + low - offset);
  }
};

// The fewest queries for which tiles pay, half of their rows.
constexpr int kMinTileQueries = 8;

template <FloatType type>
int attend_on_tiles(const AttentionQuery* queries, int n, const KeysValues& cache, float scale) {
  int done = 0;
  while (n - done >= kMinTileQueries) {
    const int count = n - done < kTileQueries ? n - done : kTileQueries;
    attend_to_codes<TileDots, type, kTileQueries>(queries + done, count, cache, scale);
    done += count;
  }
  return done;
}

// Those that are left over, and all of other caches, are the base's.
void attend(const AttentionQuery* queries, int n, const KeysValues& cache, float scale) {
  int done = 0;
  if (cache.head_dim >= kTileColumns) {
    if (cache.type == FloatType::i8) {
      done = attend_on_tiles<FloatType::i8>(queries, n, cache, scale);
    }
    if (cache.type == FloatType::i4) {
      done = attend_on_tiles<FloatType::i4>(queries, n, cache, scale);
    }
  }
  if (done < n) resolved_base.kernels.attend(queries + done, n - done, cache, scale);
}

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
