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
  int64_t n_partitions = 0;
  for (int row = 0; row < n_; ++row) n_partitions = std::max(n_partitions, span(row, window).size);
  // As many partitions of every row at a time as there is room for; the first place of a row
  // holds the sum of those before.
  const int64_t places = kPartials / n_;
  for (int64_t first = 0; first < n_partitions;) {
    const int64_t n = std::min(n_partitions - first, places - (first > 0));
    attend_partitions(index, n_heads, window, first, n, places);
    first += n;
  }
  pool_.run(int64_t{n_} * n_heads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels_.finish(&partials_[i * places * (D + kPartialExtra)], D, &y_[i * D]);
    }
  });
}

// The partitions that a row sees, of which the first and the last need not be whole.
Decoder::Span Decoder::span(int row, int64_t window) const {
  const int64_t end = rows_[row].position + 1;
  const int64_t begin = window ? std::max<int64_t>(0, end - window) : 0;
  const int64_t first = begin / kPartition;
  return {.begin = begin, .end = end, .first = first, .size = (end - 1) / kPartition - first + 1};
}

// Partitions [first, first + n) of every row, counted from the first that it sees.
void Decoder::attend_partitions(int index, int n_heads, int64_t window, int64_t first, int64_t n,
                                int64_t places) {
  const int G = cache_of(*rows_[0].session, index).n_heads(), D = model_.config.d_model / n_heads;
  const int n_queries = n_heads / G;
  const int64_t stride = D + kPartialExtra;
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  // Rows next to each other see the same keys and values, which then stay in the CPU's caches.
  pool_.run(G * n * n_, [&](int64_t item, int64_t item_end) {
    for (; item < item_end; ++item) {
      const int row = static_cast<int>(item % n_), head = static_cast<int>(item / n_ / n);
      const int64_t partition = item / n_ % n;
      const Span seen = span(row, window);
      if (first + partition >= seen.size) continue;
      const int64_t from = (seen.first + first + partition) * kPartition;
      const int64_t query = int64_t{row} * n_heads + head * n_queries;
      kernels_.attend(&q_[query * D], n_queries, cache_of(*rows_[row].session, index).view(head),
                      std::max(seen.begin, from), std::min(seen.end, from + kPartition), scale,
                      &partials_[(query * places + partition + (first > 0)) * stride],
                      places * stride);
    }
  });
  pool_.run(int64_t{n_} * n_heads, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t left = span(static_cast<int>(i / n_heads), window).size - first;
      const int64_t n_partials = std::min(n, left) + (first > 0);
      kernels_.merge(&partials_[i * places * stride], stride, static_cast<int>(n_partials), D);
    }
  });
}

}  // namespace yocobit
