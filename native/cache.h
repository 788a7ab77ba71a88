// What positions leave for later ones: keys and values, whose memory is reserved when a session is
// made and touched as positions arrive.
//
// Letters:  G K/V heads   D head size
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"

namespace yocobit {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Memory for n values of T, 64-byte aligned and not initialised: the system hands out large ones
// page by page, when they are first written.
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> make_buffer(size_t n) {
  const size_t bytes = (n * sizeof(T) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes ? bytes : 64);
  if (!memory) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(memory));
}

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

inline int64_t size_bits(FloatType type) {
  return type == FloatType::f32 ? 32 : type == FloatType::f16 ? 16 : type == FloatType::i8 ? 8 : 4;
}

// Of n values that are stored together.
inline int64_t row_bytes(FloatType type, int64_t n) {
  return (type == FloatType::i4 ? round_up(n, 16) : n) * size_bits(type) / 8;
}

// Keys and values of G heads for the last `capacity` positions, [G][capacity][D] each.
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
    const int64_t slot = head * capacity_ + position % capacity_;
    kernels.store(key, head_dim_, type_, &keys_[slot * row_bytes()],
                  &key_scales_[slot * has_scales()]);
    kernels.store(value, head_dim_, type_, &values_[slot * row_bytes()],
                  &value_scales_[slot * has_scales()]);
  }

  // Write the key and value [D] of a head and position that is still cached.
  void load(const Kernels& kernels, int head, int64_t position, float* key, float* value) const {
    const int64_t slot = head * capacity_ + position % capacity_;
    const int64_t scale = slot * has_scales();
    kernels.load(&keys_[slot * row_bytes()], key_scales_[scale], head_dim_, type_, key);
    kernels.load(&values_[slot * row_bytes()], value_scales_[scale], head_dim_, type_, value);
  }

  // Call visit(memory, bytes) for what positions [begin, end) have in memory, of each head its
  // keys, values and their scales; all must be cached, or about to be.
  template <typename Visit>
  void for_each_piece(int64_t begin, int64_t end, const Visit& visit) {
    for (int head = 0; head < n_heads_; ++head) {
      for (int64_t position = begin; position < end;) {
        const int64_t slot = position % capacity_;
        const int64_t n = std::min(end - position, capacity_ - slot);
        const int64_t first = head * capacity_ + slot;
        visit(&keys_[first * row_bytes()], n * row_bytes());
        visit(&values_[first * row_bytes()], n * row_bytes());
        if (has_scales()) {
          visit(reinterpret_cast<uint8_t*>(&key_scales_[first]), n * sizeof(float));
          visit(reinterpret_cast<uint8_t*>(&value_scales_[first]), n * sizeof(float));
        }
        position += n;
      }
    }
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
  bool has_scales() const { return type_ == FloatType::i8 || type_ == FloatType::i4; }
  int64_t row_bytes() const { return yocobit::row_bytes(type_, head_dim_); }

  FloatType type_;
  int n_heads_, head_dim_;
  int64_t capacity_;
  Buffer<uint8_t> keys_, values_;
  Buffer<float> key_scales_, value_scales_;  // [G][capacity], i8 and i4 only
};

}  // namespace yocobit
