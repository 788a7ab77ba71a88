"""The decoder in float64 NumPy: a reference implementation of the engine's arithmetic.

Activations are rounded to integers as in the engine. An activation next to a rounding boundary may
round up in float64 and down in float32, and then logits differ by far more than float32 does:
Float64Decoder.tokens_without_ties() returns tokens for which no activation is that close.

Letters: T positions   C d_model   H query heads   G KV heads   D head size   V vocab_size
M output features   K input features   E n_experts   F d_ff
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from yocobit.config import ModelConfig
from yocobit.packing import PackedModel
from yocobit.packing.file_format import DTYPES, scale_name
from yocobit.packing.formats import FLOAT32_ACTIVATIONS, INT16_PER_TOKEN, ActivationEncoding

Array = NDArray[np.float64]

# Distance to a rounding boundary, divided by the largest value of the row, that float32 resolves.
SMALLEST_DISTANCE = 1e-6
LIMITS = (127, 125, 123, 121)  # largest codes of a group of int8 activations
# A value that moves by SMALLEST_DISTANCE moves a sum of 32 squared errors, each of at most half a
# step, by at most 2 * 32 * 0.5 * 127 * SMALLEST_DISTANCE steps; half as much on average.
GAP_OF_ERRORS = 32 * 0.5 * 127


class Float64Decoder:
    """A model given by its parameters in float64, by the names of mixers.model_parameters().

    `encodings` are those of the inputs of matrices; an input without one is not rounded.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Mapping[str, Array],
        encodings: Mapping[str, ActivationEncoding],
    ) -> None:
        self.config = config
        self.parameters = dict(parameters)
        self.encodings = dict(encodings)
        if "head.weight" not in self.parameters:
            self.parameters["head.weight"] = self.parameters["embedding.weight"]
            if "embedding.weight" in encodings:
                self.encodings["head.weight"] = encodings["embedding.weight"]
        self.distances = np.zeros(0)  # (T,) of the last call; see SMALLEST_DISTANCE

    @classmethod
    def of_packed(cls, model: PackedModel) -> Float64Decoder:
        """Return the decoder of a packed model, with the weights in its file."""
        parameters, encodings = {}, {}
        for name, stored in model.parameters.items():
            arrays = [_array(model, tensor) for tensor in stored.format.tensors(name, stored.shape)]
            if stored.format.scale is not None:
                codes, scales = arrays
                assert list(stored.format.tensors(name, stored.shape))[1] == scale_name(name)
                arrays = [stored.format.dequantize(codes, scales, *stored.shape)]
            parameters[name] = arrays[0].astype(np.float64)
            encodings[name] = stored.format.activations
        return cls(model.config, parameters, encodings)

    def logits(self, tokens) -> Array:
        """Return the logits (T, V)."""
        hidden = self.hidden_states(tokens)
        return self.config.logit_scale * self._project("head", hidden)

    def hidden_states(self, tokens) -> Array:
        """Return the hidden states (T, C) after the final norm."""
        config = self.config
        tokens = np.asarray(tokens)
        self.distances = np.full(len(tokens), np.inf)
        scale = config.embedding_scale
        if scale is None:
            scale = config.d_model**0.5 if config.scale_embedding else 1.0
        x = scale * self.parameters["embedding.weight"][tokens]
        memory = shared = None
        for i, mixer in enumerate(config.layers):
            if mixer in ("cross", "gmu") and shared is None:
                shared = self._shared_kv(x)
            input = self._norm(x, f"layers.{i}.mixer_norm")
            if mixer in ("window", "full"):
                y, memory = self._self_attention(i, input)
            elif mixer == "cross":
                y = self._cross_attention(i, input, *shared)
            elif mixer == "gmu":
                gate = self._project(f"layers.{i}.mixer.g_proj", input)
                y = self._out(i, memory * silu(gate))
            elif mixer == "retention":
                y, memory = self._retention(i, input)
            else:
                y = memory = input / (
                    1 + np.exp(-self._project(f"layers.{i}.mixer.gate_proj", input))
                )
            x = self._add(x, y, f"layers.{i}.mixer_post_norm")
            input = self._norm(x, f"layers.{i}.ffn_norm")
            x = self._add(x, self._feed_forward(i, input), f"layers.{i}.ffn_post_norm")
        return self._norm(x, "norm")

    def tokens_without_ties(self, n: int, seed: int = 0) -> NDArray[np.int32]:
        """Return n tokens for which float32 and float64 round every activation alike."""
        rng = np.random.default_rng(seed)
        tokens = rng.integers(self.config.vocab_size, size=n, dtype=np.int32)
        for _ in range(1000):
            self.logits(tokens)
            ties = np.flatnonzero(self.distances <= SMALLEST_DISTANCE)
            if not len(ties):
                return tokens
            # Earlier positions do not depend on later tokens.
            tokens[ties[0] :] = rng.integers(self.config.vocab_size, size=n - ties[0])
        raise AssertionError(f"every token at position {ties[0]} has a tie")

    # ---- the parts of a layer ----

    def _norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self.parameters[f"{name}.weight"], self.config.norm_eps)

    def _add(self, x: Array, y: Array, post_norm: str) -> Array:
        if self.config.post_norms:
            y = self._norm(y, post_norm)
        return x + self.config.residual_scale * y

    def _project(self, name: str, x: Array, expert: int | None = None) -> Array:
        """Return W x + b for rows x (T, K), after the norm and the rounding of its own input.

        With `expert`, W is one of n_experts equal parts of the matrix.
        """
        if f"{name}.norm.weight" in self.parameters:
            weight = self.parameters[f"{name}.norm.weight"]
            x = rms_norm(x, weight, self.config.projection_norm_eps)
        y = self._rounded(x, self.encodings.get(f"{name}.weight", FLOAT32_ACTIVATIONS))
        weight = self.parameters[f"{name}.weight"]
        if expert is not None:
            weight = np.split(weight, self.config.n_experts)[expert]
        y = y @ weight.T
        return y + self.parameters.get(f"{name}.bias", 0.0)

    def _rounded(self, x: Array, encoding: ActivationEncoding) -> Array:
        """Round rows to integers in [-largest, largest], half to even, times a scale per row.

        Or times a scale per group of columns.
        """
        largest, columns = encoding.largest, encoding.group_columns
        if largest is None:
            return x
        if columns is not None:
            K = x.shape[-1]
            groups = np.pad(x, ((0, 0), (0, -K % columns))).reshape(len(x), -1, columns)
            if self.config.exact_activations:  # ties are common, and change logits little
                largest = INT16_PER_TOKEN.largest
                absmax = np.maximum(np.abs(groups).max(axis=-1, keepdims=True), 1e-12)
                rounded = np.rint(groups * largest / absmax) * absmax / largest
            else:
                rounded, distances = round_groups(groups)
                self._record(distances.min(axis=-1))
            return rounded.reshape(len(x), -1)[:, :K]
        absmax = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-12)
        scaled = x * largest / absmax
        distances = np.abs(scaled - np.floor(scaled) - 0.5).reshape(len(x), -1)
        self._record(distances.min(axis=-1) / largest)
        return np.rint(scaled) * absmax / largest

    def _record(self, distances: Array) -> None:
        self.distances = np.minimum(self.distances, distances)

    def _out(self, i: int, y: Array) -> Array:
        """Return the output projection of a mixer's y, after SubLN."""
        if self.config.sub_norm:
            y = self._norm(y, f"layers.{i}.mixer.sub_norm")
        return self._project(f"layers.{i}.mixer.out_proj", y)

    def _feed_forward(self, i: int, x: Array) -> Array:
        kind, name = self.config.ffn, f"layers.{i}.ffn"
        if kind == "moe":
            return self._mixture_of_experts(name, x)
        up = self._project(f"{name}.up_proj", x)
        if kind == "sign":
            self._record((np.abs(up) / np.abs(up).max(axis=-1, keepdims=True)).min(axis=-1))
            return self._project(f"{name}.down_proj", np.where(up > 0, 1.0, -1.0))
        gate = self._project(f"{name}.gate_proj", x)
        if kind == "swiglu":
            y = self._swiglu(gate, up)
        elif kind == "geglu":
            inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
            y = 0.5 * gate * (1 + np.tanh(inner)) * up
        else:
            y = np.maximum(gate, 0) ** 2 * up
        if self.config.sub_norm:
            y = self._norm(y, f"{name}.sub_norm")
        return self._project(f"{name}.down_proj", y)

    def _swiglu(self, gate: Array, up: Array) -> Array:
        limit = self.config.swiglu_limit
        if limit is not None:
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        return silu(gate) * up

    def _mixture_of_experts(self, name: str, x: Array) -> Array:
        """Add the outputs of the n_active_experts experts with the largest logits of each token.

        Every expert is computed for every token, and its output times a weight, often 0.
        """
        config, T = self.config, len(x)
        E, k = config.n_experts, config.n_active_experts
        logits = x @ self.parameters[f"{name}.router.weight"].T  # (T, E)
        order = np.argsort(-logits, axis=-1, kind="stable")
        if k < E:
            last, next = (np.take_along_axis(logits, order[:, [i]], -1)[:, 0] for i in (k - 1, k))
            # Logits that are equal in float64 are so in float32.
            gap = np.where(last == next, np.inf, last - next)
            self._record(gap / np.abs(logits).max(axis=-1))
        is_chosen = np.zeros((T, E), bool)
        np.put_along_axis(is_chosen, order[:, :k], True, -1)
        weights = np.where(is_chosen, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)
        weights /= weights.sum(axis=-1, keepdims=True)
        distances, y = self.distances, np.zeros_like(x)
        for expert in range(E):
            # Only the roundings of tokens that the expert is chosen for are those of the engine.
            self.distances = distances.copy()
            output = self._expert(name, expert, x)
            distances = np.where(is_chosen[:, expert], self.distances, distances)
            y += weights[:, [expert]] * output
        self.distances = distances
        return y

    def _expert(self, name: str, expert: int, x: Array) -> Array:
        gate, up = (self._project(f"{name}.{part}_proj", x, expert) for part in ("gate", "up"))
        y = self._swiglu(gate, up)
        if self.config.sub_norm:
            y = self._norm(y, f"{name}.sub_norm")
        return self._project(f"{name}.down_proj", y, expert)

    # ---- mixers ----

    def _self_attention(self, i: int, x: Array) -> tuple[Array, Array]:
        config, name = self.config, f"layers.{i}.mixer"
        is_window = config.layers[i] == "window"
        n_heads = config.n_self_heads if is_window else config.n_heads
        head_size = config.head_size or config.d_model // n_heads
        q, k, v = (
            self._project(f"{name}.{part}_proj", x).reshape(len(x), -1, head_size) for part in "qkv"
        )
        frequencies = config.window_rope_frequencies if is_window else config.full_rope_frequencies
        kind = config.window_rope if is_window else config.full_rope
        if i in config.nope_layers:
            kind = "none"
        if config.qk_norm == "before_rope":
            q, k = self._norm(q, f"{name}.q_norm"), self._norm(k, f"{name}.k_norm")
        q, k = (self._rope(head, kind, frequencies) for head in (q, k))
        if config.qk_norm == "after_rope":
            q, k = self._norm(q, f"{name}.q_norm"), self._norm(k, f"{name}.k_norm")
        y = attend(q, k, v, config.attention_scale, config.window if is_window else None)
        return self._out(i, y), y

    def _shared_kv(self, x: Array) -> tuple[Array, Array]:
        config = self.config
        input = self._norm(x, "shared_kv.norm")
        shape = len(x), config.n_kv_heads, -1
        k = self._project("shared_kv.k_proj", input).reshape(shape)
        v = self._project("shared_kv.v_proj", input).reshape(shape)
        return self._rope(k, config.cross_rope), v

    def _cross_attention(self, i: int, x: Array, k: Array, v: Array) -> Array:
        config = self.config
        q = self._project(f"layers.{i}.mixer.q_proj", x).reshape(len(x), config.n_heads, -1)
        return self._out(i, attend(self._rope(q, config.cross_rope), k, v))

    def _retention(self, i: int, x: Array) -> tuple[Array, Array]:
        config, name = self.config, f"layers.{i}.mixer"
        shape = len(x), config.n_self_heads, -1
        q, k, v = (self._project(f"{name}.{part}_proj", x).reshape(shape) for part in "qkv")
        q, k = (self._rope(head, config.retention_rope) for head in (q, k))
        k = k * k.shape[-1] ** -0.5
        logits = x @ self.parameters[f"{name}.decay_proj.weight"].T  # (T, H)
        decays = np.exp(-np.log1p(np.exp(-logits)) / 16)
        state = np.zeros((config.n_self_heads, q.shape[-1], v.shape[-1]))
        outputs = []
        for t in range(len(x)):
            state = decays[t, :, None, None] * state + k[t, :, :, None] * v[t, :, None, :]
            outputs.append(np.einsum("hk,hkv->hv", q[t], state))
        y = rms_norm(np.stack(outputs), 1.0, config.norm_eps).reshape(len(x), -1)
        return self._out(i, silu(self._project(f"{name}.g_proj", x)) * y), y

    def _rope(self, x: Array, kind: str, frequencies: tuple[float, ...] = ()) -> Array:
        """Rotate heads x (T, H, D) in pairs."""
        if kind == "none":
            return x
        config, half = self.config, x.shape[-1] // 2
        steps = half - 1 if kind == "interleaved" else half
        default = config.rope_theta ** (-np.arange(half) / steps)
        used = np.array(frequencies) if frequencies else default
        angles = np.arange(len(x))[:, None, None] * used
        rotation = config.rope_factor * np.exp(1j * angles)
        n, result = len(used), x.copy()
        first, second = slice(0, n), slice(n, 2 * n)
        if kind == "interleaved":
            first, second = slice(0, 2 * n, 2), slice(1, 2 * n, 2)
        rotated = (x[..., first] + 1j * x[..., second]) * rotation
        result[..., first], result[..., second] = rotated.real, rotated.imag
        return result


def round_groups(groups: Array) -> tuple[Array, Array]:
    """Round groups (..., 32) to int8 times a scale each.

    The largest code is the one of LIMITS with the least squared error. Also return the distance
    (...) of each group to another result, in units of SMALLEST_DISTANCE: that of a value to a
    rounding boundary, and that of the errors of two limits.
    """
    absmax = np.maximum(np.abs(groups).max(axis=-1, keepdims=True), 1e-12)
    scaled = np.stack([groups * limit / absmax for limit in LIMITS])
    errors = np.stack(
        [np.square(x - np.rint(x)).sum(axis=-1) / n**2 for x, n in zip(scaled, LIMITS, strict=True)]
    )
    best = np.argmin(errors, axis=0)
    limit = np.array(LIMITS, dtype=np.float64)[best][..., None]
    chosen = np.take_along_axis(scaled, best[None, ..., None], 0)[0]
    boundary = np.abs(chosen - np.floor(chosen) - 0.5).min(axis=-1) / LIMITS[0]
    first, second = np.sort(errors, axis=0)[:2] * LIMITS[0] ** 2  # in squared steps
    gap = np.where(second > first, second - first, np.inf) / GAP_OF_ERRORS
    return np.rint(chosen) * absmax / limit, np.minimum(boundary, gap)


def rms_norm(x: Array, weight: Array | float, eps: float) -> Array:
    """Return x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def attend(
    q: Array, k: Array, v: Array, scale: float | None = None, window: int | None = None
) -> Array:
    """Return causal attention (T, H * D) of queries (T, H, D) over K and V (T, G, D)."""
    T, H, D = q.shape
    k, v = (x.repeat(H // k.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) * (D**-0.5 if scale is None else scale)
    distance = np.arange(T)[:, None] - np.arange(T)
    sees = (distance >= 0) & (distance < (window or T))
    scores = np.where(sees, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, v).reshape(T, -1)


def _array(model: PackedModel, tensor: str) -> NDArray[np.generic]:
    info = model.tensors[tensor]
    content = np.memmap(model.file, np.uint8, "r", info.begin, (info.end - info.begin,))
    return np.array(content).view(DTYPES[info.dtype]).reshape(info.shape)
