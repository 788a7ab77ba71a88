#include "engine/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "kernels/kv_tiles.h"
#include "model/tensor_contents.h"

namespace yocobit {
namespace {

constexpr int kMaxRowBytes = kMaxHeadDim * int{sizeof(float)};
constexpr int64_t kPageBytes = 4096;

constexpr CacheType kCacheTypes[] = {
    {.name = "f32", .type = FloatType::f32, .bits = 32, .row_values = kLanes, .scale_bytes = 0},
    {.name = "f16", .type = FloatType::f16, .bits = 16, .row_values = kLanes, .scale_bytes = 0},
    {.name = "int8", .type = FloatType::i8, .bits = 8, .row_values = kLanes, .scale_bytes = 4},
    {.name = "int4", .type = FloatType::i4, .bits = 4, .row_values = 16, .scale_bytes = 4},
};

const CacheType& record_of(FloatType type) {
  return *std::find_if(std::begin(kCacheTypes), std::end(kCacheTypes),
                       [&](const CacheType& each) { return each.type == type; });
}

}  // namespace

std::span<const CacheType> cache_types() { return kCacheTypes; }

const CacheType& cache_type(const std::string& name) {
  for (const CacheType& type : kCacheTypes) {
    if (name == type.name) return type;
  }
  throw std::invalid_argument("cache type must be f32, f16, int8 or int4 but is '" + name + "'");
}

int64_t row_bytes(FloatType type, int64_t D) {
  const CacheType& record = record_of(type);
  return round_up(D, record.row_values) * record.bits / 8;
}

KvCache::KvCache(FloatType type, int n_heads, int head_dim, int64_t n_positions)
    : type_(type),
      n_heads_(n_heads),
      head_dim_(head_dim),
      capacity_(round_up(n_positions, kAttentionTile)),
      row_bytes_(row_bytes(type, head_dim)),
      keys_(make_buffer<uint8_t>(n_heads * capacity_ * row_bytes_)),
      values_(make_buffer<uint8_t>(n_heads * capacity_ * row_bytes_)),
      key_scales_(make_buffer<float>(has_scales() ? n_heads * capacity_ : 0)),
      value_scales_(make_buffer<float>(has_scales() ? n_heads * capacity_ : 0)) {}

int64_t KvCache::bytes_per_position() const { return 2 * n_heads_ * (row_bytes_ + scale_bytes()); }

void KvCache::store(const Kernels& kernels, int head, int64_t position, const float* key,
                    const float* value) {
  const int64_t slot = slot_of(head, position), scale = slot * has_scales();
  alignas(kCacheLine) uint8_t row[kMaxRowBytes];
  kernels.store(key, head_dim_, type_, row, &key_scales_[scale]);
  write_row(key_byte, slot, row, keys_.get());
  kernels.store(value, head_dim_, type_, row, &value_scales_[scale]);
  write_row(value_byte, slot, row, values_.get());
}

void KvCache::load_key(const Kernels& kernels, int head, int64_t position, float* key) const {
  const int64_t slot = slot_of(head, position);
  alignas(kCacheLine) uint8_t row[kMaxRowBytes];
  read_row(key_byte, slot, keys_.get(), row);
  kernels.load(row, key_scales_[slot * has_scales()], head_dim_, type_, key);
}

void KvCache::load_value(const Kernels& kernels, int head, int64_t position, float* value) const {
  const int64_t slot = slot_of(head, position);
  alignas(kCacheLine) uint8_t row[kMaxRowBytes];
  read_row(value_byte, slot, values_.get(), row);
  kernels.load(row, value_scales_[slot * has_scales()], head_dim_, type_, value);
}

int64_t KvCache::positions_per_page() const {
  return std::max<int64_t>(kPageBytes / row_bytes_, 1);
}

void KvCache::commit_ahead(int head, int64_t position) {
  const int64_t last = std::min(position + positions_per_page() + kAttentionTile, capacity_ - 1);
  for (int64_t next = position + positions_per_page(); next <= last; next += kAttentionTile) {
    // Tiles of int8 and int4 interleave positions: other threads may be writing this one, and
    // caching `position` has touched its pages.
    if (has_scales() && next / kAttentionTile == position / kAttentionTile) continue;
    for (uint8_t* memory : {keys_.get(), values_.get()}) {
      volatile uint8_t* byte = memory + slot_of(head, next) * row_bytes_;
      *byte = *byte;  // a write commits the page; a read would map the shared zero page
    }
  }
}

uint8_t* KvCache::copy_out(int64_t begin, int64_t end, uint8_t* out) const {
  for_each_run(begin, end, [&](int64_t slot, int64_t n) {
    for (int64_t i = slot; i < slot + n; ++i, out += row_bytes_) {
      read_row(key_byte, i, keys_.get(), out);
    }
    for (int64_t i = slot; i < slot + n; ++i, out += row_bytes_) {
      read_row(value_byte, i, values_.get(), out);
    }
    const int64_t bytes = n * scale_bytes();
    std::memcpy(out, &key_scales_[slot * has_scales()], bytes);
    std::memcpy(out + bytes, &value_scales_[slot * has_scales()], bytes);
    out += 2 * bytes;
  });
  return out;
}

const uint8_t* KvCache::copy_in(int64_t begin, int64_t end, const uint8_t* from) {
  for_each_run(begin, end, [&](int64_t slot, int64_t n) {
    for (int64_t i = slot; i < slot + n; ++i, from += row_bytes_) {
      write_row(key_byte, i, from, keys_.get());
    }
    for (int64_t i = slot; i < slot + n; ++i, from += row_bytes_) {
      write_row(value_byte, i, from, values_.get());
    }
    const int64_t bytes = n * scale_bytes();
    std::memcpy(&key_scales_[slot * has_scales()], from, bytes);
    std::memcpy(&value_scales_[slot * has_scales()], from + bytes, bytes);
    from += 2 * bytes;
  });
  return from;
}

bool KvCache::is_finite(int64_t begin, int64_t end) const {
  bool result = true;
  const ContentRule& rule = type_ == FloatType::f16 ? kFiniteF16 : kFiniteF32;
  const auto check = [&](const void* data, int64_t n) {
    result = result && rule.find_invalid(data, 0, n) == n;
  };
  for_each_run(begin, end, [&](int64_t slot, int64_t n) {
    if (has_scales()) {
      check(&key_scales_[slot], n);
      check(&value_scales_[slot], n);
    } else {
      check(&keys_[slot * row_bytes_], n * head_dim_);
      check(&values_[slot * row_bytes_], n * head_dim_);
    }
  });
  return result;
}

KeysValues KvCache::view(int head) const {
  const int64_t first = head * capacity_;
  return {.keys = &keys_[first * row_bytes_],
          .values = &values_[first * row_bytes_],
          .key_scales = &key_scales_[first * has_scales()],
          .value_scales = &value_scales_[first * has_scales()],
          .type = type_,
          .row_bytes = row_bytes_,
          .capacity = capacity_,
          .head_dim = head_dim_};
}

// Call visit(slot, n) for runs of adjacent slots of each head.
template <typename Visit>
void KvCache::for_each_run(int64_t begin, int64_t end, const Visit& visit) const {
  for (int head = 0; head < n_heads_; ++head) {
    for (int64_t position = begin; position < end;) {
      const int64_t n = std::min(end - position, capacity_ - position % capacity_);
      visit(slot_of(head, position), n);
      position += n;
    }
  }
}

template <typename Order>
void KvCache::write_row(const Order& order, int64_t slot, const uint8_t* row, uint8_t* memory) {
  if (!has_scales()) {
    std::memcpy(memory + slot * row_bytes_, row, row_bytes_);
    return;
  }
  const int position = static_cast<int>(slot % kAttentionTile);
  put_row(order, type_, position, row_bytes_, row, memory + (slot - position) * row_bytes_);
}

template <typename Order>
void KvCache::read_row(const Order& order, int64_t slot, const uint8_t* memory,
                       uint8_t* row) const {
  if (!has_scales()) {
    std::memcpy(row, memory + slot * row_bytes_, row_bytes_);
    return;
  }
  const int position = static_cast<int>(slot % kAttentionTile);
  get_row(order, type_, position, row_bytes_, memory + (slot - position) * row_bytes_, row);
}

}  // namespace yocobit
