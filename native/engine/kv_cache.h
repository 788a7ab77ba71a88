// What positions leave for later ones: keys and values, whose memory is reserved when a session is
// made and touched as positions arrive.
//
// Letters:  G K/V heads   D head size
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/code_tiles.h"
#include "kernels/kernels.h"
#include "runtime/buffer.h"

namespace yocobit {

inline int64_t size_bits(FloatType type) {
  return type == FloatType::f32 ? 32 : type == FloatType::f16 ? 16 : type == FloatType::i8 ? 8 : 4;
}

// Of n values that are stored together.
inline int64_t row_bytes(FloatType type, int64_t n) {
  return (type == FloatType::i4 ? round_up(n, 16) : n) * size_bits(type) / 8;
}

// Keys and values of G heads for the last `capacity` positions, [G][capacity][D] each; codes by
// tiles of positions (code_tiles.h).
class KeyValueCache {
 public:
  KeyValueCache(FloatType type, int n_heads, int head_dim, int64_t n_positions)
      : type_(type),
        n_heads_(n_heads),
        head_dim_(head_dim),
        capacity_(round_up(n_positions, kAttentionTile)),
        keys_(make_buffer<uint8_t>(n_heads * capacity_ * row_bytes())),
        values_(make_buffer<uint8_t>(n_heads * capacity_ * row_bytes())),
        key_scales_(make_buffer<float>(has_scales() ? n_heads * capacity_ : 0)),
        value_scales_(make_buffer<float>(has_scales() ? n_heads * capacity_ : 0)) {}

  int n_heads() const { return n_heads_; }
  int head_dim() const { return head_dim_; }
  int64_t capacity() const { return capacity_; }

  // Of K and V of all heads, scales included.
  int64_t bytes_per_position() const {
    return 2 * n_heads_ * (row_bytes() + (has_scales() ? int64_t{sizeof(float)} : 0));
  }

  void store(const Kernels& kernels, int head, int64_t position, const float* key,
             const float* value) {
    const int64_t slot = slot_of(head, position), scale = slot * has_scales();
    alignas(kCacheLine) uint8_t row[kMaxRowBytes];
    kernels.store(key, head_dim_, type_, row, &key_scales_[scale]);
    put(key_byte, slot, row, keys_.get());
    kernels.store(value, head_dim_, type_, row, &value_scales_[scale]);
    put(value_byte, slot, row, values_.get());
  }

  // Positions of a head that share a page of the system's memory, at most.
  int64_t positions_per_page() const { return std::max<int64_t>(kPageBytes / row_bytes(), 1); }

  // Take from the system what the tiles of as many positions after this one need for a head.
  void touch_ahead(int head, int64_t position) {
    const int64_t last = std::min(position + positions_per_page() + kAttentionTile, capacity_ - 1);
    for (int64_t next = position + positions_per_page(); next <= last; next += kAttentionTile) {
      for (uint8_t* memory : {keys_.get(), values_.get()}) {
        volatile uint8_t* byte = memory + slot_of(head, next) * row_bytes();
        *byte = *byte;  // by writing: the system shares one page of zeros among readers
      }
    }
  }

  // Write the key [D] of a head and position that is still cached, or its value.
  void load_key(const Kernels& kernels, int head, int64_t position, float* key) const {
    const int64_t slot = slot_of(head, position);
    alignas(kCacheLine) uint8_t row[kMaxRowBytes];
    get(key_byte, slot, keys_.get(), row);
    kernels.load(row, key_scales_[slot * has_scales()], head_dim_, type_, key);
  }
  void load_value(const Kernels& kernels, int head, int64_t position, float* value) const {
    const int64_t slot = slot_of(head, position);
    alignas(kCacheLine) uint8_t row[kMaxRowBytes];
    get(value_byte, slot, values_.get(), row);
    kernels.load(row, value_scales_[slot * has_scales()], head_dim_, type_, value);
  }

  // Copy what positions [begin, end) have, all of them cached, of each head rows of keys and of
  // values and their scales; returns the end of it.
  uint8_t* copy_out(int64_t begin, int64_t end, uint8_t* out) const {
    for_each_run(begin, end, [&](int64_t slot, int64_t n) {
      for (int64_t i = slot; i < slot + n; ++i, out += row_bytes()) {
        get(key_byte, i, keys_.get(), out);
      }
      for (int64_t i = slot; i < slot + n; ++i, out += row_bytes()) {
        get(value_byte, i, values_.get(), out);
      }
      const int64_t bytes = n * scale_bytes();
      std::memcpy(out, &key_scales_[slot * has_scales()], bytes);
      std::memcpy(out + bytes, &value_scales_[slot * has_scales()], bytes);
      out += 2 * bytes;
    });
    return out;
  }

  // The inverse, for positions that are cached or about to be.
  const uint8_t* copy_in(int64_t begin, int64_t end, const uint8_t* from) {
    for_each_run(begin, end, [&](int64_t slot, int64_t n) {
      for (int64_t i = slot; i < slot + n; ++i, from += row_bytes()) {
        put(key_byte, i, from, keys_.get());
      }
      for (int64_t i = slot; i < slot + n; ++i, from += row_bytes()) {
        put(value_byte, i, from, values_.get());
      }
      const int64_t bytes = n * scale_bytes();
      std::memcpy(&key_scales_[slot * has_scales()], from, bytes);
      std::memcpy(&value_scales_[slot * has_scales()], from + bytes, bytes);
      from += 2 * bytes;
    });
    return from;
  }

  KeysValues view(int head) const {
    const int64_t first = head * capacity_;
    return {.keys = &keys_[first * row_bytes()],
            .values = &values_[first * row_bytes()],
            .key_scales = &key_scales_[first * has_scales()],
            .value_scales = &value_scales_[first * has_scales()],
            .type = type_,
            .row_bytes = row_bytes(),
            .capacity = capacity_,
            .head_dim = head_dim_};
  }

 private:
  static constexpr int kMaxRowBytes = kMaxHeadDim * int{sizeof(float)};
  static constexpr int64_t kPageBytes = 4096;

  bool has_scales() const { return type_ == FloatType::i8 || type_ == FloatType::i4; }
  int64_t scale_bytes() const { return has_scales() ? sizeof(float) : 0; }
  int64_t row_bytes() const { return yocobit::row_bytes(type_, head_dim_); }
  int64_t slot_of(int head, int64_t position) const {
    return head * capacity_ + position % capacity_;
  }

  // Call visit(slot, n) for slots next to each other of each head.
  template <typename Visit>
  void for_each_run(int64_t begin, int64_t end, const Visit& visit) const {
    for (int head = 0; head < n_heads_; ++head) {
      for (int64_t position = begin; position < end;) {
        const int64_t n = std::min(end - position, capacity_ - position % capacity_);
        visit(slot_of(head, position), n);
        position += n;
      }
    }
  }

  // A row into its slot, and from there; codes are kept in tiles.
  template <typename Order>
  void put(const Order& order, int64_t slot, const uint8_t* row, uint8_t* memory) {
    if (!has_scales()) {
      std::memcpy(memory + slot * row_bytes(), row, row_bytes());
      return;
    }
    const int position = static_cast<int>(slot % kAttentionTile);
    put_row(order, type_, position, row_bytes(), row, memory + (slot - position) * row_bytes());
  }
  template <typename Order>
  void get(const Order& order, int64_t slot, const uint8_t* memory, uint8_t* row) const {
    if (!has_scales()) {
      std::memcpy(row, memory + slot * row_bytes(), row_bytes());
      return;
    }
    const int position = static_cast<int>(slot % kAttentionTile);
    get_row(order, type_, position, row_bytes(), memory + (slot - position) * row_bytes(), row);
  }

  FloatType type_;
  int n_heads_, head_dim_;
  int64_t capacity_;
  Buffer<uint8_t> keys_, values_;
  Buffer<float> key_scales_, value_scales_;  // [G][capacity], i8 and i4 only
};

}  // namespace yocobit
