// Microbenchmark loop with AMX tiles.
#pragma once

#include <cstdint>

#include "kernels/amx/tiles.h"
#include "probes/loops.h"

namespace yocobit::YOCOBIT_TARGET {
namespace {

// Four sums in flight: an operation takes 52 cycles, and another can start every 16.
uint64_t probe_multiply_add(int64_t n_rounds) {
  alignas(64) uint8_t ones[kMaxTileRows][kMaxTileBytes];
  alignas(64) int32_t sums[kMaxTileRows][kMaxTileRows];
  for (auto& row : ones) {
    for (uint8_t& value : row) value = 1;
  }
  const TileScope tiles(TileConfig{});
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  tile_load<4>(ones, kMaxTileBytes);
  tile_load<5>(ones, kMaxTileBytes);
  for (int64_t round = 0; round < n_rounds; ++round) {
    tile_dot_s8_u8<0, 4, 5>();
    tile_dot_s8_u8<1, 4, 5>();
    tile_dot_s8_u8<2, 4, 5>();
    tile_dot_s8_u8<3, 4, 5>();
  }
  tile_store<0>(sums, kMaxTileBytes);
  return static_cast<uint64_t>(sums[0][0]);
}

const MultiplyAddLoop kMultiplyAddLoop = {
    .instruction = "AMX tdpbsud", .per_round = 4 * 16 * 16 * 64, .run = probe_multiply_add};

}  // namespace
}  // namespace yocobit::YOCOBIT_TARGET
