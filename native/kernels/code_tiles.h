// How a cache of int8 or int4 keeps a tile of positions: so that a vector holds several positions
// of the same codes, which products then sum up with hardly a sum over lanes.
//
//   keys    [row_bytes / 4][kAttentionTile][4]   four bytes of a row, of one position after another
//   values  [kAttentionTile / 4][row_bytes][4]   four positions of a byte of the rows
//
// Rows are as Kernels::store writes them; codes are kept in offset binary (code + 128, code + 8).
#pragma once

#include "kernels/kernels.h"

namespace yocobit {

constexpr int kTogether = 4;  // bytes that a 32-bit lane sums up

// Static, so that no file compiled for one instruction set gives its copy to the others.
static inline int64_t key_byte(int position, int64_t byte, int64_t) {
  return (byte / kTogether * kAttentionTile + position) * kTogether + byte % kTogether;
}
static inline int64_t value_byte(int position, int64_t byte, int64_t row_bytes) {
  return (position / kTogether * row_bytes + byte) * kTogether + position % kTogether;
}

// What turns codes into offset binary, and back.
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
