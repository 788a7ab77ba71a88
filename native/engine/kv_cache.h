// The KV cache of a layer: memory is reserved when a session is made and committed page by page as
// positions arrive.
//
// Letters:  G KV heads   D head size
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/kernels.h"
#include "runtime/buffer.h"

namespace yocobit {

// The closed set of cache types. int8 and int4 rows have a float scale per position and KV head.
struct CacheType {
  const char* name;
  FloatType type;
  int bits;         // of a value
  int row_values;   // a row is padded to a multiple of this
  int scale_bytes;  // of a row
};

std::span<const CacheType> cache_types();

// The cache type of that name; std::invalid_argument if there is none.
const CacheType& cache_type(const std::string& name);

// Bytes of a row of D values, without its scale.
int64_t row_bytes(FloatType type, int64_t D);

// Keys and values of G heads for the last `capacity` positions: [G][capacity][D] each, int8 and
// int4 in tiles of positions (kv_tiles.h). Position p is slot p % capacity.
class KvCache {
 public:
  KvCache(FloatType type, int n_heads, int head_dim, int64_t n_positions);

  int n_heads() const { return n_heads_; }
  int head_dim() const { return head_dim_; }
  int64_t capacity() const { return capacity_; }

  // Of K and V of all heads, scales included.
  int64_t bytes_per_position() const;

  // Cache the key and the value [D] of a head.
  void store(const Kernels& kernels, int head, int64_t position, const float* key,
             const float* value);

  // Read back the key, or the value, [D] of a position that is still cached.
  void load_key(const Kernels& kernels, int head, int64_t position, float* key) const;
  void load_value(const Kernels& kernels, int head, int64_t position, float* value) const;

  // The most positions of a head that share a page of memory.
  int64_t positions_per_page() const;

  // First touch, in advance, of the pages of a head positions_per_page() after this position.
  void commit_ahead(int head, int64_t position);

  // Copy the cached positions [begin, end): of each head the rows of keys, of values, and their
  // scales. Returns the end of the copy.
  uint8_t* copy_out(int64_t begin, int64_t end, uint8_t* out) const;

  // The inverse. Returns the end of the bytes read.
  const uint8_t* copy_in(int64_t begin, int64_t end, const uint8_t* from);

  // Whether no value, or scale of quantised values, of positions [begin, end) is NaN or infinite.
  bool is_finite(int64_t begin, int64_t end) const;

  // One head, as the kernels read it.
  KeysValues view(int head) const;

 private:
  bool has_scales() const { return type_ == FloatType::i8 || type_ == FloatType::i4; }
  int64_t scale_bytes() const { return has_scales() ? sizeof(float) : 0; }
  int64_t slot_of(int head, int64_t position) const {
    return head * capacity_ + position % capacity_;
  }
  template <typename Visit>
  void for_each_run(int64_t begin, int64_t end, const Visit& visit) const;
  template <typename Order>
  void write_row(const Order& order, int64_t slot, const uint8_t* row, uint8_t* memory);
  template <typename Order>
  void read_row(const Order& order, int64_t slot, const uint8_t* memory, uint8_t* row) const;

  FloatType type_;
  int n_heads_, head_dim_;
  int64_t capacity_;  // multiple of kAttentionTile
  int64_t row_bytes_;
  Buffer<uint8_t> keys_, values_;            // [G][capacity][row_bytes]
  Buffer<float> key_scales_, value_scales_;  // [G][capacity], int8 and int4 only
};

}  // namespace yocobit
