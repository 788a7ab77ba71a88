// AMX tiles: eight registers of at most 16 rows of 64 bytes, and dot products of their bytes.
//
//   tile_zero<t>, tile_load<t>, tile_store<t>   rows are `stride` bytes apart in memory
//   tile_dot_s8_u8<c, a, b> and the like        c[m][n] += sum over k and i < 4 of
//                                               a[m][4 k + i] * b[k][4 n + i], in int32 that wraps
//
// A TileScope configures the tiles and releases them at its end, so no tile state outlives the
// kernel call that needs it. With YOCOBIT_EMULATED the same operations are plain C++, which also
// verifies what the CPU would reject: shapes that do not match, tiles that are not configured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "simd/target.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

constexpr int kTiles = 8;
constexpr int kMaxTileRows = 16, kMaxTileBytes = 64;  // bytes of a row

// As ldtilecfg reads it.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row of each tile
  uint8_t rows[16] = {};

  constexpr TileConfig() {
    for (int tile = 0; tile < kTiles; ++tile) set(tile, kMaxTileRows, kMaxTileBytes);
  }
  constexpr void set(int tile, int n_rows, int n_bytes) {
    rows[tile] = static_cast<uint8_t>(n_rows);
    bytes[tile] = static_cast<uint16_t>(n_bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

#ifndef YOCOBIT_EMULATED

class TileScope {
 public:
  explicit TileScope(const TileConfig& config) {
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  ~TileScope() { asm volatile("tilerelease" : : : "memory"); }
  TileScope(const TileScope&) = delete;
};

// Assembly: the intrinsics take literal tile numbers only.
template <int t>
YOCOBIT_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(t));
}
template <int t>
YOCOBIT_INLINE void tile_load(const void* p, ptrdiff_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(t) : "memory");
}
template <int t>
YOCOBIT_INLINE void tile_store(void* p, ptrdiff_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(t) : "memory");
}
template <int c, int a, int b>
YOCOBIT_INLINE void tile_dot_s8_s8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b>
YOCOBIT_INLINE void tile_dot_s8_u8() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b>
YOCOBIT_INLINE void tile_dot_u8_s8() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b>
YOCOBIT_INLINE void tile_dot_u8_u8() {
  asm volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}

#else

// Each source file of the family has its own: a scope and its operations are in one file.
class EmulatedTiles {
 public:
  void configure(const TileConfig& config) {
    require(!is_configured_);  // not released
    config_ = config;
    is_configured_ = true;
    std::memset(bytes_, 0, sizeof bytes_);
  }
  void release() { is_configured_ = false; }

  void zero(int t) {
    require(is_configured_);
    std::memset(bytes_[t], 0, sizeof bytes_[t]);
  }
  void load(int t, const void* p, ptrdiff_t stride) {
    zero(t);
    for (int row = 0; row < config_.rows[t]; ++row) {
      std::memcpy(bytes_[t][row], static_cast<const uint8_t*>(p) + row * stride, config_.bytes[t]);
    }
  }
  void store(int t, void* p, ptrdiff_t stride) const {
    require(is_configured_);
    for (int row = 0; row < config_.rows[t]; ++row) {
      std::memcpy(static_cast<uint8_t*>(p) + row * stride, bytes_[t][row], config_.bytes[t]);
    }
  }

  // In float, which is exact: at most 64 products of at most 255 * 255 are below 2^23.
  template <typename A, typename B>
  void dot(int c, int a, int b) {
    require(is_configured_ && config_.rows[c] == config_.rows[a] &&
            config_.bytes[a] == 4 * config_.rows[b] && config_.bytes[c] == config_.bytes[b]);
    typedef int32_t Ints __attribute__((vector_size(kMaxTileBytes)));
    typedef float Floats __attribute__((vector_size(kMaxTileBytes)));
    constexpr bool kIsSigned = static_cast<B>(-1) < 0;
    Floats columns[kMaxTileBytes];
    for (int k = 0; k < config_.bytes[a]; ++k) {
      Ints fours;
      std::memcpy(&fours, bytes_[b][k / 4], sizeof fours);
      const Ints bytes =
          kIsSigned ? (fours << (24 - 8 * (k % 4))) >> 24 : fours >> (8 * (k % 4)) & 255;
      columns[k] = __builtin_convertvector(bytes, Floats);
    }
    for (int m = 0; m < config_.rows[c]; ++m) {
      Floats sums = {};
      for (int k = 0; k < config_.bytes[a]; ++k) {
        sums += columns[k] * static_cast<float>(static_cast<A>(bytes_[a][m][k]));
      }
      Ints totals;
      std::memcpy(&totals, bytes_[c][m], sizeof totals);
      totals += __builtin_convertvector(sums, Ints);
      std::memcpy(bytes_[c][m], &totals, sizeof totals);
    }
  }

 private:
  static void require(bool is_met) {
    if (!is_met) std::abort();  // where the CPU would raise an exception
  }

  TileConfig config_;
  bool is_configured_ = false;
  uint8_t bytes_[kTiles][kMaxTileRows][kMaxTileBytes];
};

inline thread_local EmulatedTiles emulated_tiles;

class TileScope {
 public:
  explicit TileScope(const TileConfig& config) { emulated_tiles.configure(config); }
  ~TileScope() { emulated_tiles.release(); }
  TileScope(const TileScope&) = delete;
};

template <int t>
void tile_zero() {
  emulated_tiles.zero(t);
}
template <int t>
void tile_load(const void* p, ptrdiff_t stride) {
  emulated_tiles.load(t, p, stride);
}
template <int t>
void tile_store(void* p, ptrdiff_t stride) {
  emulated_tiles.store(t, p, stride);
}
template <int c, int a, int b>
void tile_dot_s8_s8() {
  emulated_tiles.dot<int8_t, int8_t>(c, a, b);
}
template <int c, int a, int b>
void tile_dot_s8_u8() {
  emulated_tiles.dot<int8_t, uint8_t>(c, a, b);
}
template <int c, int a, int b>
void tile_dot_u8_s8() {
  emulated_tiles.dot<uint8_t, int8_t>(c, a, b);
}
template <int c, int a, int b>
void tile_dot_u8_u8() {
  emulated_tiles.dot<uint8_t, uint8_t>(c, a, b);
}

#endif

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
