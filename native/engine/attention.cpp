// The attention layers of the decoder: keys and values into caches, queries over them.

#include <algorithm>
#include <cmath>

#include "engine/decoder.h"
#include "engine/session.h"

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
  prepare(x_.get(), config.d_model, layer.mixer_norm);
  apply({{&layer.q, q_.get()}, {&layer.k, k_.get()}, {&layer.v, v_.get()}});
  attend({.index = index,
          .rotation = is_window ? window_rotation_ : full_rotation_,
          .n_heads = is_window ? config.n_self_heads : config.n_heads,
          .window = is_window ? config.window : 0,
          .stores = true,
          .is_first = false});
  project_out(layer.out, y_.get(), layer.out_norm);
}

void Decoder::cross_attend(const Layer& layer, bool is_first) {
  prepare(x_.get(), model_.config.d_model, layer.mixer_norm);
  apply({{&layer.q, q_.get()}});
  attend({.index = model_.n_self_layers,
          .rotation = cross_rotation_,
          .n_heads = model_.config.n_heads,
          .window = 0,
          .stores = false,
          .is_first = is_first});
  project_out(layer.out, y_.get(), layer.out_norm);
}

void Decoder::store_shared_keys_values() {
  const int G = model_.config.n_kv_heads;
  pool_.run(int64_t{n_} * G, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      store_keys_values(model_.n_self_layers, cross_rotation_, static_cast<int>(i / G),
                        static_cast<int>(i % G));
    }
  });
  const auto makes_whole = [&](const Segment& segment) {
    const int64_t end = rows_[segment.end - 1].position + 1;
    return rows_[segment.begin].session->blocks &&
           rows_[segment.begin].position / kAttentionTile != end / kAttentionTile;
  };
  if (std::none_of(segments_.begin(), segments_.end(), makes_whole)) return;
  pool_.run(static_cast<int64_t>(segments_.size()) * G, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Segment& segment = segments_[i / G];
      if (!makes_whole(segment)) continue;
      Session& session = *rows_[segment.begin].session;
      session.blocks->update(kernels_, *session.shared, static_cast<int>(i % G),
                             rows_[segment.begin].position, rows_[segment.end - 1].position + 1);
    }
  });
}

// Whether a row sees more of the shared cache than it may attend to.
bool Decoder::chooses(int row) const {
  return model_.config.cross_attention != CrossAttention::full &&
         n_blocks(rows_[row].position) > model_.config.cross_blocks();
}

// For all cross layers, by the queries of the first one, in q_.
void Decoder::choose_blocks() {
  const ModelConfig& config = model_.config;
  const int G = config.n_kv_heads, n_queries = config.n_heads / G, n = config.cross_blocks();
  // Rows of one session take turns, as they share its work space.
  pool_.run(static_cast<int64_t>(segments_.size()) * G, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Segment& segment = segments_[i / G];
      const int head = static_cast<int>(i % G);
      for (int row = segment.begin; row < segment.end; ++row) {
        if (!chooses(row)) continue;
        int32_t* chosen = &chosen_[(int64_t{row} * G + head) * n];
        if (config.cross_attention == CrossAttention::window) {
          choose_window(n, rows_[row].position, chosen);
        } else {
          const float* q =
              &q_[int64_t{row} * config.d_model + head * n_queries * config.head_dim()];
          Session& session = *rows_[row].session;
          session.blocks->choose(kernels_, *session.shared, head, q, n_queries, rows_[row].position,
                                 chosen);
        }
      }
    }
  });
}

// The key in k_, rotated, and the value in v_ of a row and K/V head go into the cache. The caches
// of heads and layers come to new pages at the same positions; each takes its next one at another
// position before, so that no step has to wait for all of them.
void Decoder::store_keys_values(int index, const Rotation& rotation, int row, int head) {
  Session* const session = rows_[row].session;
  const int64_t position = rows_[row].position;
  KeyValueCache& cache = cache_of(*session, index);
  const int64_t at = (int64_t{row} * cache.n_heads() + head) * cache.head_dim();
  rotation.apply(kernels_, row, &k_[at]);
  cache.store(kernels_, head, position, &k_[at], &v_[at]);
  const bool is_last = row + 1 == n_ || rows_[row + 1].session != session;
  const int64_t turn = position + int64_t{index} * cache.n_heads() + head;
  if (is_last && (!is_decoding() || turn % cache.positions_per_page() == 0)) {
    cache.touch_ahead(head, position);
  }
}

// Queries in q_ to outputs in y_.
void Decoder::attend(const Attention& layer) {
  const int D = model_.config.d_model / layer.n_heads;
  const int G = cache_of(*rows_[0].session, layer.index).n_heads(), n_queries = layer.n_heads / G;
  const auto begin_head = [&](int row, int head) {
    if (layer.stores) store_keys_values(layer.index, layer.rotation, row, head);
    for (int i = 0; i < n_queries; ++i) {
      layer.rotation.apply(kernels_, row,
                           &q_[(int64_t{row} * layer.n_heads + head * n_queries + i) * D]);
    }
  };
  int64_t n_partitions = 0;
  bool any_chooses = false;
  for (int row = 0; row < n_; ++row) {
    n_partitions = std::max(n_partitions, span(layer, row).size);
    any_chooses |= layer.is_first && chooses(row);
  }
  // Where no row waits for the keys of another and nothing is to be merged, threads meet once.
  const bool sees_own_only = !layer.stores || is_decoding();
  const bool is_one_round = n_partitions == 1 && sees_own_only && !any_chooses;
  pool_.run(int64_t{n_} * G, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int row = static_cast<int>(i / G), head = static_cast<int>(i % G);
      begin_head(row, head);
      if (!is_one_round) continue;
      attend_partition(layer, row, head, 0, 0, 1);
      for (int query = 0; query < n_queries; ++query) {
        finish_head(layer, row, head * n_queries + query, 1);
      }
    }
  });
  if (is_one_round) return;
  if (any_chooses) choose_blocks();
  // As many partitions of every row at a time as there is room for; the first place of a row
  // holds the sum of those before.
  const int64_t places = kPartials / n_;
  for (int64_t first = 0; first < n_partitions;) {
    const int64_t n = std::min(n_partitions - first, places - (first > 0));
    attend_partitions(layer, first, n, places, first + n == n_partitions);
    first += n;
  }
}

// The partitions that a row sees, of which the first and the last need not be whole.
Decoder::Span Decoder::span(const Attention& layer, int row) const {
  int64_t end = rows_[row].position + 1;
  if (!layer.stores && chooses(row)) {  // of the last block no more than there is
    end -= (n_blocks(rows_[row].position) - model_.config.cross_blocks()) * kAttentionTile;
  }
  const int64_t begin = layer.window ? std::max<int64_t>(0, end - layer.window) : 0;
  const int64_t first = begin / kPartition;
  return {.begin = begin, .end = end, .first = first, .size = (end - 1) / kPartition - first + 1};
}

// The partition of that number, counted from the first that the row sees, to a place of the row.
void Decoder::attend_partition(const Attention& layer, int row, int head, int64_t partition,
                               int64_t place, int64_t places) {
  const KeyValueCache& cache = cache_of(*rows_[row].session, layer.index);
  const int D = cache.head_dim(), n_queries = layer.n_heads / cache.n_heads();
  const int64_t stride = D + kPartialExtra;
  const Span seen = span(layer, row);
  if (partition >= seen.size) return;
  const int64_t from = (seen.first + partition) * kPartition;
  const int64_t query = int64_t{row} * layer.n_heads + head * n_queries;
  KeysValues view = cache.view(head);
  if (!layer.stores && chooses(row)) {
    view.tiles = &chosen_[(int64_t{row} * cache.n_heads() + head) * model_.config.cross_blocks()];
  }
  kernels_.attend(&q_[query * D], n_queries, view, std::max(seen.begin, from),
                  std::min(seen.end, from + kPartition), 1.0f / std::sqrt(static_cast<float>(D)),
                  &partials_[(query * places + place) * stride], places * stride);
}

void Decoder::finish_head(const Attention& layer, int row, int head, int64_t places) {
  const int D = model_.config.d_model / layer.n_heads;
  const int64_t query = int64_t{row} * layer.n_heads + head;
  kernels_.finish(&partials_[query * places * (D + kPartialExtra)], D, &y_[query * D]);
}

// Partitions [first, first + n) of every row, merged with those before.
void Decoder::attend_partitions(const Attention& layer, int64_t first, int64_t n, int64_t places,
                                bool is_last) {
  const int G = cache_of(*rows_[0].session, layer.index).n_heads();
  const int D = model_.config.d_model / layer.n_heads;
  const int64_t stride = D + kPartialExtra;
  // Rows next to each other see the same keys and values, which then stay in the CPU's caches.
  pool_.run(G * n * n_, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int row = static_cast<int>(i % n_), head = static_cast<int>(i / n_ / n);
      const int64_t partition = i / n_ % n;
      attend_partition(layer, row, head, first + partition, partition + (first > 0), places);
    }
  });
  pool_.run(int64_t{n_} * layer.n_heads, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int row = static_cast<int>(i / layer.n_heads);
      const int64_t left = span(layer, row).size - first;
      const int64_t n_partials = std::min(n, left) + (first > 0);
      kernels_.merge(&partials_[i * places * stride], stride, static_cast<int>(n_partials), D);
      if (is_last) finish_head(layer, row, static_cast<int>(i % layer.n_heads), places);
    }
  });
}

}  // namespace yocobit
