// Attention over KV caches against float64 within its rounding, and with many queries against each
// of them alone.
//
// Letters:  D head size   S cached positions

#include <algorithm>
#include <limits>

#include "kernel_equality.h"
#include "kernels/kv_tiles.h"

namespace yocobit::test {
namespace {

constexpr double kEps = 0x1p-23;

// Rows of one K/V head as a cache keeps them.
struct Cache {
  Cache(const KernelFamily& family, FloatType type, int D, int S, const std::vector<float>& keys,
        const std::vector<float>& values)
      : row_bytes(type == FloatType::f32   ? D * 4
                  : type == FloatType::f16 ? D * 2
                  : type == FloatType::i8  ? D
                                           : (D + 15) / 16 * 8),
        capacity((S + kAttentionTile - 1) / kAttentionTile * kAttentionTile),
        rows{Aligned<uint8_t>(capacity * row_bytes), Aligned<uint8_t>(capacity * row_bytes)},
        scales{std::vector<float>(capacity, 1.0f), std::vector<float>(capacity, 1.0f)} {
    alignas(64) uint8_t row[kMaxHeadDim * 4];
    for (int s = 0; s < S; ++s) {
      for (int part = 0; part < 2; ++part) {
        const float* x = (part == 0 ? keys : values).data() + size_t(s) * D;
        family.kernels.store(x, D, type, row, &scales[part][s]);
        if (type == FloatType::f32 || type == FloatType::f16) {
          std::memcpy(rows[part].data() + s * row_bytes, row, row_bytes);
        } else if (part == 0) {
          put_row(key_byte, type, s % kAttentionTile, row_bytes, row, tile(part, s));
        } else {
          put_row(value_byte, type, s % kAttentionTile, row_bytes, row, tile(part, s));
        }
      }
    }
    view = {.keys = rows[0].data(),
            .values = rows[1].data(),
            .key_scales = scales[0].data(),
            .value_scales = scales[1].data(),
            .type = type,
            .row_bytes = row_bytes,
            .capacity = capacity,
            .head_dim = D};
  }

  uint8_t* tile(int part, int s) {
    return rows[part].data() + int64_t{s} / kAttentionTile * kAttentionTile * row_bytes;
  }

  int64_t row_bytes, capacity;
  Aligned<uint8_t> rows[2];
  std::vector<float> scales[2];
  KeysValues view;
};

constexpr FloatType kCacheTypes[] = {FloatType::f32, FloatType::f16, FloatType::i8, FloatType::i4};

// Bound of the rounding error of a cached value, for rows with the given largest magnitude.
double storage_error(FloatType type, double largest) {
  switch (type) {
    case FloatType::f32:
      return 0.0;
    case FloatType::f16:
      return largest * 0x1p-11;
    case FloatType::i8:
      return largest / 127 * 0.51;
    default:
      return largest / 7 * 0.51;
  }
}

}  // namespace

uint64_t kv_rows(const KernelFamily& family) {
  Checksum checksum;
  for (const int D : {8, 24, 128, 1024}) {
    for (const FloatType type : kCacheTypes) {
      Random random(static_cast<uint32_t>(D));
      const std::vector<float> x = random.numbers(D, 2.0f);
      std::vector<float> loaded(D);
      alignas(64) uint8_t row[kMaxHeadDim * 4] = {};
      float scale = 1.0f;
      family.kernels.store(x.data(), D, type, row, &scale);
      family.kernels.load(row, scale, D, type, loaded.data());
      const double bound = storage_error(type, largest_magnitude(x.data(), D));
      for (int d = 0; d < D; ++d) check_near(loaded[d], x[d], bound, family, "store and load");
      checksum.add(row, sizeof row);
      checksum.add(loaded);
    }
  }
  return checksum.value();
}

uint64_t attention(const KernelFamily& family) {
  Checksum checksum;
  for (const int D : {8, 24, 64, 128}) {
    for (const FloatType type : kCacheTypes) {
      for (const int n_queries : {1, 2, 3, 5}) {
        constexpr int S = 203, kSplit = 96;
        Random random(static_cast<uint32_t>(D * 10 + n_queries));
        const std::vector<float> keys = random.numbers(size_t(S) * D),
                                 values = random.numbers(size_t(S) * D),
                                 q = random.numbers(size_t(n_queries) * D);
        Cache cache(family, type, D, S, keys, values);
        const float scale = 1.0f / std::sqrt(static_cast<float>(D));
        const int begin = 5, end = S;
        const ptrdiff_t stride = D + kPartialExtra;
        constexpr int kSplits = (S + kSplit - 1) / kSplit;
        std::vector<float> partials(size_t(n_queries) * kSplits * stride), o(D), whole(D);
        std::vector<float> single(size_t(n_queries) * stride);
        std::vector<AttentionQuery> queries(n_queries);
        const auto attend = [&](int from, int to, float* first, ptrdiff_t query_stride) {
          for (int n = 0; n < n_queries; ++n) {
            queries[n] = {.q = &q[size_t(n) * D],
                          .begin = from,
                          .end = to,
                          .partial = first + n * query_stride};
          }
          family.kernels.attend(queries.data(), n_queries, cache.view, scale);
        };
        for (int i = 0; i < kSplits; ++i) {
          attend(std::max(begin, i * kSplit), std::min(end, (i + 1) * kSplit),
                 partials.data() + i * stride, kSplits * stride);
        }
        attend(begin, end, single.data(), stride);
        for (int i = 0; i < n_queries; ++i) {
          float* partial = partials.data() + i * kSplits * stride;
          family.kernels.combine(partial, stride, kSplits, D);
          family.kernels.normalize(partial, D, o.data());
          family.kernels.normalize(single.data() + i * stride, D, whole.data());
          std::vector<double> scores(S, 0.0);
          double largest = -1e300, total = 0.0;
          for (int s = begin; s < end; ++s) {
            for (int d = 0; d < D; ++d) {
              scores[s] += double{q[size_t(i) * D + d]} * keys[size_t(s) * D + d] * scale;
            }
            largest = std::max(largest, scores[s]);
          }
          for (int s = begin; s < end; ++s) total += std::exp(scores[s] - largest);
          // The error of a score is that of a key times |q|_1; of an output twice that, for
          // |v| <= 1, plus that of a value. 1e-4 covers rounding, as of 15-bit queries and weights.
          double magnitude = 0.0;
          for (int d = 0; d < D; ++d) magnitude += std::fabs(q[size_t(i) * D + d]);
          const double lost = storage_error(type, 1.0);
          const double bound = 2 * std::expm1(2 * lost * magnitude * scale) + lost + 1e-4;
          for (int d = 0; d < D; ++d) {
            double expected = 0.0;
            for (int s = begin; s < end; ++s) {
              expected += std::exp(scores[s] - largest) / total * values[size_t(s) * D + d];
            }
            check_near(o[d], expected, bound, family, "attention of KV splits");
            check_near(whole[d], expected, bound, family, "attention");
          }
          checksum.add(o);
          checksum.add(whole);
        }
      }
    }
  }
  return checksum.value();
}

// How the positions of query i, one of kHeads of a row, lie in a cache.
enum class Positions { causal, window, spread, wrapped, sparse };

void set_positions(Positions positions, int64_t capacity, int i, AttentionQuery* query) {
  constexpr int kHeads = 3;
  const int row = i / kHeads;
  switch (positions) {
    case Positions::causal:  // from none to some of the last tile
      query->begin = 0;
      query->end = 120 + row;
      break;
    case Positions::window:
      query->begin = 25 + row;
      query->end = query->begin + 90;
      break;
    case Positions::spread:  // of some tiles few queries attend to any
      query->begin = i * 37 % 140;
      query->end = query->begin + 1 + i * 13 % 17;
      break;
    case Positions::wrapped:  // the first positions have been replaced
      query->begin = 2 * capacity - 70 + row;
      query->end = query->begin + 100;
      break;
    case Positions::sparse:
      query->begin = 3;
      query->end = 97 + row;
      break;
  }
}

// A query whose scores overflow keeps what it has in tiles that only others attend to.
void check_overflow(const KernelFamily& family) {
  constexpr int S = 160, D = 64, kQueries = 8;
  constexpr ptrdiff_t kStride = D + kPartialExtra;
  for (const FloatType type : {FloatType::i8, FloatType::i4}) {
    Random random(3);
    const std::vector<float> keys(size_t(S) * D, 1.0f), values = random.numbers(size_t(S) * D);
    std::vector<float> q = random.numbers(size_t(kQueries) * D), together(kQueries * kStride),
                       alone(kStride);
    std::fill_n(q.begin(), D, std::numeric_limits<float>::max());
    Cache cache(family, type, D, S, keys, values);
    AttentionQuery queries[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      queries[i] = {.q = &q[size_t(i) * D],
                    .begin = 0,
                    .end = i == 0 ? 40 : S,
                    .partial = &together[i * kStride]};
    }
    family.kernels.attend(queries, kQueries, cache.view, 1.0f);
    queries[0].partial = alone.data();
    family.kernels.attend(queries, 1, cache.view, 1.0f);
    for (int d = 0; d < D + 2; ++d) {
      check(alone[d] == together[d] || (std::isnan(alone[d]) && std::isnan(together[d])), family,
            "attention that overflows must not depend on other queries");
    }
  }
}

// Many queries together leave the bits of each alone.
uint64_t attention_together(const KernelFamily& family) {
  check_overflow(family);
  Checksum checksum;
  const int32_t tiles[] = {3, 0, 4, 1};
  for (const int D : {8, 24, 64, 80, 128}) {
    for (const FloatType type : kCacheTypes) {
      for (const int n : {1, 7, 8, 16, 19, 40}) {
        constexpr int S = 160;
        Random random(static_cast<uint32_t>(D * 50 + n));
        const std::vector<float> keys = random.numbers(size_t(S) * D),
                                 values = random.numbers(size_t(S) * D),
                                 q = random.numbers(size_t(n) * D, 3.0f);
        Cache cache(family, type, D, S, keys, values);
        const float scale = 1.0f / std::sqrt(static_cast<float>(D));
        const ptrdiff_t stride = D + kPartialExtra;
        for (const Positions positions : {Positions::causal, Positions::window, Positions::spread,
                                          Positions::wrapped, Positions::sparse}) {
          cache.view.tiles = positions == Positions::sparse ? tiles : nullptr;
          std::vector<float> together(n * stride), alone(n * stride);
          std::vector<AttentionQuery> queries(n);
          for (int i = 0; i < n; ++i) {
            queries[i].q = &q[size_t(i) * D];
            set_positions(positions, cache.capacity, i, &queries[i]);
            queries[i].partial = &alone[i * stride];
            family.kernels.attend(&queries[i], 1, cache.view, scale);
            queries[i].partial = &together[i * stride];
          }
          family.kernels.attend(queries.data(), n, cache.view, scale);
          check(!std::memcmp(together.data(), alone.data(), n * stride * sizeof(float)), family,
                "attention of a query must not depend on the others");
          checksum.add(together);
        }
      }
    }
  }
  return checksum.value();
}

// Every code is the largest: all of a row and of a tile are summed.
uint64_t largest_attention(const KernelFamily& family) {
  Checksum checksum;
  for (const FloatType type : {FloatType::i8, FloatType::i4}) {
    for (const float sign : {1.0f, -1.0f}) {
      constexpr int S = kAttentionTile, D = kMaxHeadDim, kQueries = 9;
      const std::vector<float> keys(size_t(S) * D, sign * 0.5f), values(size_t(S) * D, sign * 3.0f),
          q(size_t(kQueries) * D, 1.0f);
      Cache cache(family, type, D, S, keys, values);
      std::vector<float> partials(size_t(kQueries) * (D + kPartialExtra));
      AttentionQuery queries[kQueries];
      for (int i = 0; i < kQueries; ++i) {
        queries[i] = {.q = &q[size_t(i) * D],
                      .begin = 0,
                      .end = S,
                      .partial = &partials[size_t(i) * (D + kPartialExtra)]};
      }
      family.kernels.attend(queries, kQueries, cache.view, 0.125f);
      for (const AttentionQuery& query : queries) {
        const double score = sign * 0.5 * D * 0.125;
        check_near(query.partial[D], score, 8 * kEps * std::fabs(score), family, "largest score");
        for (int d = 0; d < D; ++d) {
          check_near(query.partial[d], sign * 3.0 * S, 8 * kEps * 3 * S, family, "largest output");
        }
      }
      checksum.add(partials);
    }
  }
  return checksum.value();
}

}  // namespace yocobit::test
