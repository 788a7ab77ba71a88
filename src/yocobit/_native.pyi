"""The native engine; use it through yocobit.Engine. Bound in native/bindings*.cpp."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

def supported_kernels() -> list[str]: ...

class Engine:
    kernels: str
    n_threads: int
    vocab_size: int
    buffer_bytes: int
    def __init__(
        self,
        path: str,
        config: dict[str, Any],
        tensors: dict[str, tuple[str, list[int], int, int]],
        kernels: str,
        n_threads: int,
    ) -> None: ...
    def feed(
        self, session: Session, tokens: NDArray[np.int32], logits: str, out: Floats | None
    ) -> None: ...
    def step(
        self,
        sessions: list[Session],
        tokens: NDArray[np.int32],
        out: Floats,
        prompts: list[tuple[Session, NDArray[np.int32]]],
    ) -> None: ...
    def copy_state(self, session: Session, out: Bytes) -> None: ...
    def copy_positions(self, session: Session, begin: int, end: int, out: Bytes) -> None: ...
    def restore(
        self,
        session: Session,
        tokens: NDArray[np.int32],
        state: Bytes,
        kept: int,
        pieces: list[Bytes],
    ) -> None: ...

class Session:
    position: int
    max_tokens: int
    def __init__(self, engine: Engine, max_tokens: int, cache_type: str) -> None: ...
    def retention_state(self, layer: int) -> Floats | None: ...
    def keys_values(self, layer: int, begin: int, end: int) -> tuple[Floats, Floats] | None: ...
    def memory(self) -> dict[str, int]: ...
    bytes_per_position: int
    def copy_tokens(self, out: NDArray[np.int32]) -> None: ...
    def state_bytes(self, position: int) -> int: ...

class Sampler:
    n_generated: int
    def __init__(
        self,
        *,
        state: int,
        increment: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        prompt: Sequence[int] = (),
        logit_bias: Sequence[tuple[int, float]] = (),
    ) -> None: ...
    def sample(self, logits: Floats) -> int: ...

def sample_batch(samplers: Sequence[Sampler], logits: Sequence[Floats]) -> list[int]: ...
def sample_at(
    logits: Floats, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int: ...

class TokenDrawer:
    def __init__(self) -> None: ...
    def draw(
        self,
        logits: Floats,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        uniform: float,
    ) -> int: ...

# What yocobit bench and plan need.
def multiply_add_instructions() -> list[str]: ...
def multiply_adds_per_s(instruction: str, cpus: list[int], n_passes: int) -> float: ...
def read_bytes_per_s(cpus: list[int], size: int, n_passes: int) -> float: ...
def product_bytes_per_s(
    kernels: str, stored: str, n: int, m: int, k: int, cpus: list[int], size: int, n_passes: int
) -> float: ...
def attention_bytes_per_s(
    kernels: str,
    cache: str,
    n_queries: int,
    head_dim: int,
    cpus: list[int],
    size: int,
    n_passes: int,
) -> float: ...
def retention_bytes_per_s(
    kernels: str, n: int, head_dim: int, cpus: list[int], size: int, n_passes: int
) -> float: ...
def fill(session: Session, n: int) -> None: ...

# Products of training: arrays of NumPy; the results are written into the last ones.
def use_openmp(parallel: int, thread_num: int, num_threads: int) -> None: ...
def training_forward(
    kernels: str,
    n_threads: int,
    x: Floats,
    weights: list[Floats],
    scales: Floats,
    is_ternary: bool,
    codes: NDArray[np.int8],
    x_scales: Floats,
    ys: list[Floats],
) -> None: ...
def training_backward(
    kernels: str,
    n_threads: int,
    grads: list[Floats],
    codes: NDArray[np.int8],
    x_scales: Floats,
    weights: list[Floats],
    scales: Floats,
    is_ternary: bool,
    grad_x: Floats | None,
    grad_ws: list[Floats],
) -> None: ...

# Rows of training; the last arrays of each take the results.
def training_norm(
    kernels: str, n_threads: int, x: Floats, weight: Floats, eps: float, y: Floats, r: Floats
) -> None: ...
def training_norm_gradient(
    kernels: str,
    n_threads: int,
    grad: Floats,
    x: Floats,
    weight: Floats,
    r: Floats,
    grad_x: Floats,
    grad_weight: Floats,
) -> None: ...
def training_gate(
    kernels: str,
    n_threads: int,
    gate: Floats,
    up: Floats,
    weight: Floats | None,
    eps: float,
    y: Floats,
    r: Floats,
    head_r: Floats,
) -> None: ...
def training_gate_gradient(
    kernels: str,
    n_threads: int,
    grad: Floats,
    gate: Floats,
    up: Floats,
    weight: Floats | None,
    r: Floats,
    head_r: Floats,
    grad_gate: Floats,
    grad_up: Floats,
    grad_weight: Floats,
) -> None: ...

# Single kernels, for tests.
def bit_matmul(
    kernels: str, codes: NDArray[np.uint8], m: int, x: NDArray[np.int8], is_ternary: bool
) -> Floats: ...
def int8_matmul(kernels: str, values: NDArray[np.int8], x: NDArray[np.int16]) -> Floats: ...
def int4_matmul(
    kernels: str,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint16],
    m: int,
    x: NDArray[np.int16],
) -> Floats: ...
def dense_matmul(kernels: str, values: NDArray[Any], x: Floats) -> Floats: ...
def quantize_row(kernels: str, x: Floats) -> tuple[NDArray[np.int8], float, int]: ...
def quantize_wide_row(kernels: str, x: Floats) -> tuple[NDArray[np.int16], float, list[int]]: ...
def exponentials(kernels: str, x: Floats, largest: float, rate: float) -> Floats: ...
def rms_norm(kernels: str, x: Floats, weight: Floats, eps: float) -> Floats: ...
def activate(kernels: str, function: str, gate: Floats, up: Floats) -> Floats: ...
def rope(kernels: str, x: Floats, cosine: Floats, sine: Floats, is_interleaved: bool) -> Floats: ...
def retain(
    kernels: str, state: Floats, q: Floats, k: Floats, v: Floats, decays: Floats
) -> tuple[Floats, Floats]: ...
def store_int4(kernels: str, x: Floats) -> tuple[NDArray[np.uint8], float]: ...
def load_int4(kernels: str, stored: NDArray[np.uint8], scale: float, D: int) -> Floats: ...
def attend(
    kernels: str,
    q: Floats,
    keys: Floats,
    values: Floats,
    type: str,
    begin: int,
    end: int,
    partition: int,
    tiles: NDArray[np.int32] | None = None,
) -> Floats: ...
