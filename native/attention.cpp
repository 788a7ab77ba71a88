// The attention layers of the decoder: keys and values into caches, queries over them.

#include <algorithm>
#include <cmath>

#include "decoder.h"
#include "session.h"

namespace yocobit {
namespace {

// The cache of a layer of the self-decoder, or the shared one after it.
KeyValueCache& cache_of(Session& session, int index) {
  const bool is_shared = index >= static_cast<int>(session.layers.size());
  return is_shared ? *session.shared : *session.layers[index].kv;
}

}  // namespace

void Decoder::self_attend(const Layer& layer, int index) {
  const ModelConfig& config = model_.config;
  const bool is_window = layer.mixer == Mixer::window;
  const Rotation& rotation = is_window ? window_rotation_ : full_rotation_;
  prepare(x_.get(), config.d_model, layer.mixer_norm);
  apply({{&layer.q, q_.get()}, {&layer.k, k_.get()}, {&layer.v, v_.get()}});
  store_keys_values(index, rotation);
  if (is_window) {
    attend(index, rotation, config.n_self_heads, config.window);
  } else {
    attend(index, rotation, config.n_heads, 0);
  }
  project_out(layer.out, y_.get(), layer.out_norm);
}

void Decoder::cross_attend(const Layer& layer) {
  prepare(x_.get(), model_.config.d_model, layer.mixer_norm);
  apply({{&layer.q, q_.get()}});
  attend(model_.n_self_layers, cross_rotation_, model_.config.n_heads, 0);
  project_out(layer.out, y_.get(), layer.out_norm);
}

void Decoder::store_keys_values(int index, const Rotation& rotation) {
  const KeyValueCache& any = cache_of(*rows_[0].session, index);
  const int G = any.n_heads(), D = any.head_dim();
  pool_.run(int64_t{n_} * G, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int row = static_cast<int>(i / G), head = static_cast<int>(i % G);
      rotation.apply(kernels_, row, &k_[i * D]);
      cache_of(*rows_[row].session, index)
          .store(kernels_, head, rows_[row].position, &k_[i * D], &v_[i * D]);
    }
  });
}

// Queries in q_ to outputs in y_; window 0 sees everything.
void Decoder::attend(int index, const Rotation& rotation, int n_heads, int64_t window) {
  const int D = model_.config.d_model / n_heads;
  pool_.run(int64_t{n_} * n_heads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rotation.apply(kernels_, static_cast<int>(i / n_heads), &q_[i * D]);
    }
  });
  // As many rows at a time as the partial results of their partitions have room for.
  const int64_t room = partials_size_ / (int64_t{n_heads} * (D + kPartialExtra));
  for (int first = 0; first < n_;) {
    int64_t n_partitions = 0;
    int last = first;
    while (last < n_) {
      const int64_t end = rows_[last].position + 1;
      const int64_t begin = window ? std::max<int64_t>(0, end - window) : 0;
      const int64_t needed = (end - 1) / kPartition - begin / kPartition + 1;
      if (last > first && std::max(n_partitions, needed) * (last + 1 - first) > room) break;
      n_partitions = std::max(n_partitions, needed);
      ++last;
    }
    attend_rows(index, first, last, n_heads, window, n_partitions);
    first = last;
  }
}

void Decoder::attend_rows(int index, int first, int last, int n_heads, int64_t window,
                          int64_t n_partitions) {
  const int G = cache_of(*rows_[0].session, index).n_heads(), D = model_.config.d_model / n_heads;
  const int n_queries = n_heads / G;
  const int64_t stride = D + kPartialExtra;
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  const auto span = [&](int row, int64_t partition) {
    const int64_t end = rows_[row].position + 1;
    const int64_t begin = window ? std::max<int64_t>(0, end - window) : 0;
    const int64_t from = (begin / kPartition + partition) * kPartition;
    return std::pair{std::max(begin, from), std::min(end, from + kPartition)};
  };
  const auto partial = [&](int row, int head, int64_t partition) {
    return &partials_[((int64_t{row - first} * n_heads + head) * n_partitions + partition) *
                      stride];
  };
  pool_.run((last - first) * G * n_partitions, [&](int64_t item, int64_t item_end) {
    for (; item < item_end; ++item) {
      const int row = first + static_cast<int>(item / n_partitions / G);
      const int head = static_cast<int>(item / n_partitions % G);
      const auto [begin, end] = span(row, item % n_partitions);
      if (begin >= end) continue;
      kernels_.attend(&q_[(int64_t{row} * n_heads + head * n_queries) * D], n_queries,
                      cache_of(*rows_[row].session, index).view(head), begin, end, scale,
                      partial(row, head * n_queries, item % n_partitions), n_partitions * stride);
    }
  });
  pool_.run(int64_t{last - first} * n_heads, [&](int64_t item, int64_t item_end) {
    for (; item < item_end; ++item) {
      const int row = first + static_cast<int>(item / n_heads);
      const int head = static_cast<int>(item % n_heads);
      int64_t n = n_partitions;
      while (span(row, n - 1).first >= span(row, n - 1).second) --n;
      kernels_.merge(partial(row, head, 0), stride, static_cast<int>(n), D,
                     &y_[(int64_t{row} * n_heads + head) * D]);
    }
  });
}

}  // namespace yocobit
