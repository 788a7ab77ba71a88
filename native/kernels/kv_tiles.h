// Layout of a tile of positions in an int8 or int4 KV cache: interleaved, so that each lane
// accumulates one position (keys) or one column (values) and hardly a sum over lanes is left.
//
//   keys    [row_bytes / 4][kAttentionTile][4]   four bytes of a row, of one position after another
//   values  [kAttentionTile / 4][row_bytes][4]   four positions of a byte of the rows
//
// Rows are as Kernels::store writes them; codes are kept in offset binary (code + 128, code + 8).
#pragma once

#include <cstdint>

#include "kernels/formats.h"

namespace yocobit {

constexpr int kBytesPerLane = 4;  // that a 32-bit lane sums up

// Static: the linker must not choose a copy that was compiled for one instruction set.
static inline int64_t key_byte(int position, int64_t byte, int64_t) {
  return (byte / kBytesPerLane * kAttentionTile + position) * kBytesPerLane + byte % kBytesPerLane;
}
static inline int64_t value_byte(int position, int64_t byte, int64_t row_bytes) {
  return (position / kBytesPerLane * row_bytes + byte) * kBytesPerLane + position % kBytesPerLane;
}

// By exclusive or: codes to offset binary, and back.
static inline uint8_t code_offset(FloatType type) { return type == FloatType::i8 ? 0x80 : 0x88; }

// Put the row of a position into a tile, and get it back; `at` is one of the orders above.
template <typename Order>
static inline void put_row(const Order& at, FloatType type, int position, int64_t row_bytes,
                           const uint8_t* row, uint8_t* tile) {
  for (int64_t byte = 0; byte < row_bytes; ++byte) {
    tile[at(position, byte, row_bytes)] = row[byte] ^ code_offset(type);
  }
}
template <typename Order>
static inline void get_row(const Order& at, FloatType type, int position, int64_t row_bytes,
                           const uint8_t* tile, uint8_t* row) {
  for (int64_t byte = 0; byte < row_bytes; ++byte) {
    row[byte] = tile[at(position, byte, row_bytes)] ^ code_offset(type);
  }
}

}  // namespace yocobit
