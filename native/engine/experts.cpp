#include "engine/experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "engine/feed_forward.h"

namespace yocobit {
namespace {

// Reading an expert's weights costs about as much as the arithmetic of this number of tokens.
constexpr int kReadCost = 8;

using ActiveExperts = std::span<const ExpertRows>;

// Top-k selection: write the experts of a token, by descending logit, and their weights. A NaN
// logit counts as -infinity.
void select_experts(const ForwardPass& pass, int token) {
  Workspace& ws = pass.workspace;
  const int E = pass.model.config.n_experts, n_active = pass.model.config.n_active_experts;
  const float* logits = &ws.router_logits[static_cast<size_t>(token) * E];
  int32_t* experts = &ws.selected_experts[static_cast<size_t>(token) * n_active];
  float* weights = &ws.expert_weights[static_cast<size_t>(token) * ws.weights_stride];
  std::fill_n(weights, ws.weights_stride, -std::numeric_limits<float>::infinity());
  for (int expert = 0, n = 0; expert < E; ++expert) {
    const float logit =
        std::isnan(logits[expert]) ? -std::numeric_limits<float>::infinity() : logits[expert];
    if (n == n_active && !(logit > weights[n - 1])) continue;
    int slot = n < n_active ? n++ : n - 1;
    for (; slot > 0 && logit > weights[slot - 1]; --slot) {
      weights[slot] = weights[slot - 1];
      experts[slot] = experts[slot - 1];
    }
    weights[slot] = logit;
    experts[slot] = expert;
  }
  pass.kernels.exponentials(weights, ws.weights_stride, weights[0], 1.0f, weights);
  float sum = 0.0f;
  for (int slot = 0; slot < n_active; ++slot) sum += weights[slot];
  for (int slot = 0; slot < n_active; ++slot) weights[slot] /= sum;
}

// Sort the pairs of token and expert by expert: each is a routed row. Return the experts with rows.
ActiveExperts sort_by_expert(const ForwardPass& pass) {
  Workspace& ws = pass.workspace;
  const int E = pass.model.config.n_experts, n_active = pass.model.config.n_active_experts;
  const int n_rows = pass.batch.size() * n_active;
  int32_t* next = ws.next_rows.get();
  std::fill_n(next, E, 0);
  for (int i = 0; i < n_rows; ++i) ++next[ws.selected_experts[i]];
  int n_experts = 0, end = 0;
  for (int expert = 0; expert < E; ++expert) {
    const int begin = end;
    end += next[expert];
    next[expert] = begin;
    if (begin < end) ws.active_experts[n_experts++] = {expert, begin, end};
  }
  for (int i = 0; i < n_rows; ++i) {
    const int row = next[ws.selected_experts[i]]++;
    ws.routed_rows[i] = row;
    ws.routed_tokens[row] = i / n_active;
  }
  return {ws.active_experts.get(), static_cast<size_t>(n_experts)};
}

ActiveExperts route(const ForwardPass& pass, const Linear& router, const Activations& x) {
  float* logits = pass.workspace.router_logits.get();
  pass.pool.parallel_for(router.n_groups(), [&](int64_t begin, int64_t end) {
    router.apply(pass.kernels, x, static_cast<int>(begin), static_cast<int>(end), logits, router.m);
  });
  pass.pool.parallel_for(pass.batch.size(), [&](int64_t begin, int64_t end) {
    for (int token = static_cast<int>(begin); token < end; ++token) select_experts(pass, token);
  });
  return sort_by_expert(pass);
}

// Copy the encoded input of each routed row after the rows of the batch, so that the rows of an
// expert are contiguous. An expert with one token reads its row in place.
void gather(const ForwardPass& pass, const Activations& x, LinearOutputs outputs,
            ActiveExperts experts) {
  const int n_rows = experts.back().end;
  if (static_cast<int>(experts.size()) == n_rows) return;  // one token each
  pass.pool.parallel_for(n_rows, [&](int64_t begin, int64_t end) {
    for (int row = static_cast<int>(begin); row < end; ++row) {
      pass.copy_encoded(x, outputs, pass.workspace.routed_tokens[row], x.n + row);
    }
  });
}

Activations inputs_of(const ForwardPass& pass, const Activations& x, const ExpertRows& expert) {
  const bool is_gathered = expert.end - expert.begin > 1;
  const int first = is_gathered ? x.n + expert.begin : pass.workspace.routed_tokens[expert.begin];
  return x.rows(first, first + expert.end - expert.begin);
}

// Call task(expert, group_begin, group_end) for all groups of all experts. Each thread computes
// adjacent groups, and the threads have about equal costs.
template <typename Task>
void for_each_group(const ForwardPass& pass, ActiveExperts experts, int n_groups,
                    const Task& task) {
  const auto cost_of_group = [](const ExpertRows& expert) {
    return int64_t{expert.end} - expert.begin + kReadCost;
  };
  int64_t cost = 0;
  for (const ExpertRows& expert : experts) cost += cost_of_group(expert) * n_groups;
  pass.pool.parallel_for(cost, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // cost of all experts before this one
    for (const ExpertRows& expert : experts) {
      const int64_t each = cost_of_group(expert);
      const auto first_group_from = [&](int64_t at) {
        const int64_t group = (at - first + each - 1) / each;
        return static_cast<int>(std::clamp(group, int64_t{0}, int64_t{n_groups}));
      };
      const int group_begin = first_group_from(begin), group_end = first_group_from(end);
      if (group_begin < group_end) task(expert, group_begin, group_end);
      first += each * n_groups;
    }
  });
}

// workspace.gate = act(W_gate x) * (W_up x) of all routed rows.
void compute_hidden(const ForwardPass& pass, const Layer& layer, const Activations& x,
                    ActiveExperts experts) {
  Workspace& ws = pass.workspace;
  const int F = pass.model.config.d_ff;
  for_each_group(
      pass, experts, F / kRowsPerGroup, [&](const ExpertRows& expert, int begin, int end) {
        const Activations inputs = inputs_of(pass, x, expert);
        float* gate = &ws.gate[static_cast<size_t>(expert.begin) * F];
        float* up = &ws.up[static_cast<size_t>(expert.begin) * F];
        const int first = expert.expert * F;
        layer.ffn_gate.rows(first, first + F).apply(pass.kernels, inputs, begin, end, gate, F);
        layer.ffn_up.rows(first, first + F).apply(pass.kernels, inputs, begin, end, up, F);
        for (int row = 0; row < inputs.n; ++row) {
          const size_t at = static_cast<size_t>(row) * F + begin * kRowsPerGroup;
          activate(pass, gate + at, up + at, (end - begin) * kRowsPerGroup);
        }
      });
}

// y = sum over the experts of each token of weight * output, for features [begin, end).
void combine(const ForwardPass& pass, int begin, int end, float* y) {
  const Workspace& ws = pass.workspace;
  const int C = pass.model.config.d_model, n_active = pass.model.config.n_active_experts;
  for (int token = 0; token < pass.batch.size(); ++token) {
    float* sum = y + static_cast<size_t>(token) * C + begin;
    const float* weights = &ws.expert_weights[static_cast<size_t>(token) * ws.weights_stride];
    const int32_t* rows = &ws.routed_rows[static_cast<size_t>(token) * n_active];
    std::fill_n(sum, end - begin, 0.0f);
    for (int slot = 0; slot < n_active; ++slot) {
      pass.kernels.add_scaled(&ws.expert_outputs[static_cast<size_t>(rows[slot]) * C + begin],
                              weights[slot], end - begin, sum);
    }
  }
}

// stream += the weighted outputs of the experts for their encoded hidden rows x. Each thread
// computes the same features of all experts, so it has all addends of a sum.
void add_outputs(const ForwardPass& pass, const Layer& layer, const Activations& x,
                 ActiveExperts experts) {
  Workspace& ws = pass.workspace;
  const int C = pass.model.config.d_model;
  float* y = ws.q.get();  // the queries are no longer needed
  pass.pool.parallel_for(C / kRowsPerGroup, [&](int64_t group_begin, int64_t group_end) {
    const int from = static_cast<int>(group_begin), to = static_cast<int>(group_end);
    for (const ExpertRows& expert : experts) {
      const int first = expert.expert * C;
      layer.ffn_down.rows(first, first + C)
          .apply(pass.kernels, x.rows(expert.begin, expert.end), from, to,
                 &ws.expert_outputs[static_cast<size_t>(expert.begin) * C], C);
    }
    const int begin = from * kRowsPerGroup, end = to * kRowsPerGroup;
    combine(pass, begin, end, y);
    if (!layer.ffn_post_norm) pass.add_part(0, pass.batch.size(), begin, end, y);
  });
  if (layer.ffn_post_norm) pass.add_normed(layer.ffn_post_norm, y);
}

}  // namespace

void mixture_of_experts(const ForwardPass& pass, const Layer& layer) {
  Workspace& ws = pass.workspace;
  const LinearOutputs projections = {{&layer.ffn_gate, ws.gate.get()},
                                     {&layer.ffn_up, ws.up.get()}};
  const Activations x =
      pass.encode(ws.stream.get(), pass.batch.size(), layer.ffn_norm, projections);
  const ActiveExperts experts = route(pass, layer.ffn_router, x);
  gather(pass, x, projections, experts);
  compute_hidden(pass, layer, x, experts);
  const Activations hidden = pass.encode(ws.gate.get(), experts.back().end, layer.ffn_sub_norm,
                                         {{&layer.ffn_down, ws.expert_outputs.get()}});
  add_outputs(pass, layer, hidden, experts);
}

}  // namespace yocobit
