"""The native engine; use it through yocobit.Engine."""

from collections.abc import Sequence
from typing import Annotated, Any, overload

import numpy
import numpy.typing
from numpy.typing import NDArray


def supported_kernels() -> list[str]:
    """
    Return the names of the kernel families that this CPU supports, slowest first.

    The first, "scalar", is the reference; all return the same bits.
    """

def emulated_kernels() -> list[str]:
    """
    Return the names of the emulated kernel families; there are some in test builds only.
    """

def weight_formats() -> list[dict[str, Any]]:
    """
    Return the records of the weight formats: `name`, `dtype` of the codes, `bits` of a code,
    `values` that codes stand for before the scale, `block_columns` (1: contiguous rows),
    `unit_bytes`, `scale` ("none", "tensor", "row", "group"), `group_columns`,
    `scale_dtype` and `activations`.
    """

def mixers() -> list[dict[str, Any]]:
    """
    Return the records of the token mixers: `name`, `decoder` ("self", "cross"),
    `parameters` (matrices), `has_sub_norm`, `kv_cache` ("none", "per_token", "ring",
    "shared"), `has_state` and `reads_memory`.
    """

def feed_forwards() -> list[dict[str, Any]]:
    """
    Return the records of the FFN kinds: `name`, `has_gate`, `has_sub_norm`, `has_experts`
    and `max_batch_tokens`.
    """

def cache_types() -> list[dict[str, Any]]:
    """
    Return the records of the KV cache types: `name`, `bits` of a value, `row_values` (rows
    are padded to multiples of them) and `scale_bytes` of each row.
    """

TOKEN_BLOCK: int = 32

KV_SPLIT: int = 512

BLOCK_POSITIONS: int = 32

FIRST_BLOCKS: int = 1

LAST_BLOCKS: int = 2

CANDIDATES_PER_BLOCK: int = 4

ROWS_PER_GROUP: int = 8

BLOCK_BYTES: int = 32

ACTIVATION_GROUP: int = 32

LANES: int = 8

PARTIAL_EXTRA: int = 8

MAX_HEAD_DIM: int = 1024

INT16_MAX: int = 16383

SMALLEST_ABSMAX: float = 1e-12

GRADIENT_BLOCK: int = 256

GRADIENT_INT16_MAX: int = 32767

SMALLEST_GRADIENT: float = 1e-30

class FileChangedError(RuntimeError):
    pass

class Engine:
    """
    A packed model with its threads and buffers; use it through yocobit.Engine.

    Calls from several threads are serialised and release the GIL. Those with many tokens run
    Python's signal handlers between batches; a child process after fork() starts threads of
    its own.
    Letters: T tokens, V vocabulary, N sessions.
    """

    def __init__(self, path: str, config: dict[str, Any], tensors: dict[str, tuple[str, list[int], int, int]], formats: dict[str, str], kernels: str, n_threads: int) -> None:
        """
        Map the safetensors file `path`.

        `config` is ModelConfig.to_dict(), `tensors` gives dtype, shape, first byte and end of
        each tensor, `formats` the weight format of each matrix (weight_formats()), `kernels`
        a name of supported_kernels(), the fastest if empty. ValueError, naming the tensor,
        where one does not match the configuration or is not inside the file; RuntimeError if
        the file cannot be mapped or the system refuses threads.
        """

    def feed(self, session: Session, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], logits: str, out: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')] | None) -> None:
        """
        Consume int32 tokens (T,) and write float32 logits into `out`.

        `logits` is "none", "last" (V values) or "all" (T V values). ValueError, with
        nothing changed, for a token outside the vocabulary, a full session, or an `out` of
        another size; FileChangedError, likewise, for the first tokens of a session if the
        model file was changed in place. After KeyboardInterrupt the session holds the batches
        before it.
        """

    def find_problems(self) -> list[str]:
        """
        Return a line for each tensor that holds invalid values: one pass over the file.
        """

    def check_file(self) -> None:
        """
        FileChangedError if the model file was overwritten or truncated since it was mapped.
        """

    def hidden_states(self, session: Session, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')]) -> None:
        """
        Consume int32 tokens (T,) and write the hidden state of each after the final norm into
        float32 `out` (T, C). Errors as of `feed`.
        """

    def step(self, sessions: Sequence[Session], tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')] | None, prompts: Sequence[tuple[Session, Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]]]) -> None:
        """
        Decode one of `tokens` (N,) in each of N sessions, with logits in `out` (N, V).

        `prompts` are pairs of another session and tokens to prefill without logits. All
        sessions must differ; results equal those of `feed`. Errors as of `feed`.
        """

    def copy_state(self, session: Session, out: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
        """
        Copy recurrent states and sliding windows into uint8 `out` (Session.state_bytes,).
        """

    def copy_positions(self, session: Session, begin: int, end: int, out: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
        """
        Copy positions [begin, end) of the growing KV caches into uint8 `out`, which has
        Session.bytes_per_position bytes for each.
        """

    def restore(self, session: Session, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], state: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], kept: int, pieces: Sequence[Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]]) -> None:
        """
        Restore a session to its state after tokens (T,).

        `state` is the output of copy_state, `pieces` those of copy_positions in order from
        position `kept`; the first `kept` positions stay. ValueError, with nothing changed, if
        tokens or sizes do not match.
        """

    @property
    def kernels(self) -> str:
        """Name of the kernel family."""

    @property
    def n_threads(self) -> int:
        """Number of threads, the caller's included."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def d_model(self) -> int:
        """C."""

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers that all sessions share."""

class Session:
    """
    KV caches and recurrent states of one sequence; use it through
    yocobit.engine.Session.

    Letters: H heads, G KV heads, D head size.
    """

    def __init__(self, engine: Engine, max_tokens: int, cache_type: str) -> None:
        """
        Reserve memory for that many tokens in caches of a type of cache_types().

        MemoryError if memory is insufficient; ValueError for another type.
        """

    def retention_state(self, layer: int) -> numpy.typing.NDArray[numpy.float32] | None:
        """
        Return a copy of the state (H, D, D), key by value, of a retention layer; None for
        other layers.
        """

    def keys_values(self, layer: int, begin: int, end: int) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]] | None:
        """
        Return copies of cached keys and values, each (G, end - begin, D); None for a layer
        without a cache.

        Cross layers return the shared ones. IndexError for positions that are not cached.
        """

    def memory(self) -> dict[str, int]:
        """
        Return the bytes reserved, by the fields of yocobit.engine.SessionMemory.
        """

    def is_finite(self) -> bool:
        """Whether no recurrent state, cached value or scale is NaN or infinite."""

    def copy_tokens(self, out: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')]) -> None:
        """Copy the tokens consumed so far into int32 `out` (position,)."""

    def state_bytes(self, position: int) -> int:
        """Return the size of Engine.copy_state after that many tokens."""

    @property
    def bytes_per_position(self) -> int:
        """Bytes of Engine.copy_positions for each position."""

    @property
    def position(self) -> int:
        """Tokens consumed so far."""

    @property
    def max_tokens(self) -> int:
        """Tokens that the session can hold."""

class Sampler:
    """
    Samples the tokens of one sequence: penalties, logit bias, temperature, top-k,
    top-p and min-p, in this order, and NumPy's PCG64 random numbers.
    """

    def __init__(self, *, state: int, increment: int, temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float = 1.0, presence_penalty: float = 0.0, frequency_penalty: float = 0.0, prompt: Sequence[int] = [], logit_bias: Sequence[tuple[int, float]] = []) -> None:
        """
        Start after `prompt`, whose tokens count for the repetition penalty only.

        `state` and `increment` (128 bits each) are numpy.random.PCG64(seed).state["state"].
        `logit_bias` holds pairs of a token and the value added to its logit. Ranges are not
        checked here but in yocobit.engine.SamplingConfig; ValueError for negative tokens.
        """

    def sample(self, logits: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int:
        """
        Sample the next token from float32 logits (V,), which are not modified.

        IndexError if the prompt or the bias has a token outside the vocabulary.
        """

    @property
    def n_generated(self) -> int:
        """Tokens sampled so far."""

def sample_batch(samplers: Sequence[Sampler], logits: Sequence[Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]]) -> list[int]:
    """
    Sample one token with each sampler from its row of float32 logits (V,).

    The rows are the arrays of a list, or those of an array (n, V). Results equal those of
    `Sampler.sample`. ValueError if there are not as many rows. Releases the GIL.
    """

def sample_at(logits: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """
    Return the token where the cumulative probability, after the filters, exceeds `uniform`,
    in [0, 1).
    """

def low_bit_gemm(kernels: str, codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None, None), order='C', device='cpu', writable=False)], m: int, x: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], is_ternary: bool, row_scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> NDArray[numpy.float32]:
    """
    Return y (N, M) = x (N, K) int8 times ternary or sign weights.

    `codes` (groups, blocks, 8, 32) hold M rows; `row_scales` (M,) are 1 unless given.
    """

def int8_gemm(kernels: str, values: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], x: Annotated[NDArray[numpy.int16], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> NDArray[numpy.float32]:
    """
    Return y (N, M) = x (N, K) int16 times int8 values (M, K); all scales are 1.
    """

def int4_gemm(kernels: str, codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.uint16], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], m: int, x: Annotated[NDArray[numpy.int16], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> NDArray[numpy.float32]:
    """
    Return y (N, M) = x (N, K) int16 times int4 weights.

    `codes` (groups, blocks, 8, 32) hold M rows, `scales` (groups, blocks, 8) float16 bits.
    """

def group_scaled_gemm(kernels: str, codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.uint16], dict(shape=(None, None, None), order='C', device='cpu', writable=False)] | None, row_scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, m: int, bits: int, first: int, step: int, x: Annotated[NDArray[numpy.int8], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], x_scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], group_begin: int, group_end: int) -> NDArray[numpy.float32]:
    """
    Return y (N, M) = grouped x times group-scaled weights (first + step * code) * scale.

    `codes` (groups, blocks, 8, 32) hold M rows in the order [8 units][8 rows][4 bytes],
    `scales` (groups, n, 8) float16 bits, or `row_scales` (M,); `x` (N, parts, K) int8 with
    `x_scales` (N, K / 32). Only rows of the groups are computed, others are 0.
    """

@overload
def dense_gemm(kernels: str, values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> NDArray[numpy.float32]:
    """
    Return y (N, M) = x (N, K) times float32 values (M, K), or float16 as their bits.
    """

@overload
def dense_gemm(kernels: str, values: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)], x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> NDArray[numpy.float32]: ...

def quantize_int8_row(kernels: str, x: numpy.typing.NDArray[numpy.float32]) -> tuple[numpy.typing.NDArray[numpy.int8], float, int]:
    """Return the codes of x (K,), their scale and their sum."""

def quantize_int16_row(kernels: str, x: numpy.typing.NDArray[numpy.float32]) -> tuple[numpy.typing.NDArray[numpy.int16], float, list[int]]:
    """
    Return the codes of x (K,), their scale and the sum of every 64 of them.
    """

def quantize_grouped_row(kernels: str, x: numpy.typing.NDArray[numpy.float32], n_parts: int) -> tuple[numpy.typing.NDArray[numpy.int8], list[float], list[int]]:
    """
    Return the parts (n_parts, K padded to 256) of x (K,), a scale for every 32 values, and
    minus the sum of every 32 integers.
    """

def rms_norm(kernels: str, x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], eps: float) -> NDArray[numpy.float32]:
    """Return RMSNorm of x (K,) times weight (K,)."""

def exponentials(kernels: str, x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], largest: float, rate: float) -> NDArray[numpy.float32]:
    """Return e^((x - largest) rate) of x (K,), K a multiple of 8."""

def activate(kernels: str, function: str, gate: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], up: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> NDArray[numpy.float32]:
    """
    Return the activation of an FFN kind: "swiglu", "geglu", "relu2" or "sign".
    """

def rope(kernels: str, x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], cosine: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], sine: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], is_interleaved: bool) -> NDArray[numpy.float32]:
    """
    Return the head x (D,) rotated by angles (D / 2,), in pairs (2i, 2i + 1) or (i, i + D/2).
    """

def retain(kernels: str, state: numpy.typing.NDArray[numpy.float32], q: numpy.typing.NDArray[numpy.float32], k: numpy.typing.NDArray[numpy.float32], v: numpy.typing.NDArray[numpy.float32], decays: numpy.typing.NDArray[numpy.float32]) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
    """
    Return the state (D, D) after n positions q, k, v (n, D), decays (n,), and outputs (n, D).
    """

def store_int4(kernels: str, x: numpy.typing.NDArray[numpy.float32]) -> tuple[numpy.typing.NDArray[numpy.uint8], float]:
    """Return the int4 row of a KV cache for x (D,), and its scale."""

def load_int4(kernels: str, stored: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], scale: float, D: int) -> NDArray[numpy.float32]:
    """Return the values (D,) of an int4 row."""

def attend(kernels: str, q: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], keys: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], type: str, begin: int, end: int, kv_split: int, tiles: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> NDArray[numpy.float32]:
    """
    Return attention (n, D) of queries q (n, D) to positions [begin, end) of a KV head.

    `keys` and `values` (S, D) are cached as a type of cache_types() and combined from KV
    splits of `kv_split` positions. With `tiles`, positions count within these tiles of 32.
    """

def use_openmp(parallel: int, thread_num: int, num_threads: int) -> None:
    """
    Run training kernels on the OpenMP threads of PyTorch: the addresses of GOMP_parallel,
    omp_get_thread_num and omp_get_num_threads.
    """

def training_forward(kernels: str, n_threads: int, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], weights: Sequence[Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]], scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], is_ternary: bool, codes: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu')], x_scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], ys: Sequence[Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]]) -> None:
    """
    Multiply x (N, K) by quantised weights (M, K) into ys (N, M) each.

    `scales` (weights, 2) are the scale and the mean of each weight. Writes the int8 codes
    (N, stride) and the scales (N,) of x, which training_backward reads.
    """

def training_backward(kernels: str, n_threads: int, grads: Sequence[Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]], codes: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], x_scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], weights: Sequence[Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]], scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], is_ternary: bool, grad_x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')] | None, grad_ws: Sequence[Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]]) -> None:
    """
    Write the gradients of x (N, K), unless None, and of all weights (M, K) or of none.

    `grads` (N, M) are those of ys; the other arguments are those of training_forward.
    """

def training_norm(kernels: str, n_threads: int, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], eps: float, y: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], r: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """
    Write RMSNorm of rows x (N, K) into y, and 1 / rms of each row into r (N,).
    """

def training_norm_gradient(kernels: str, n_threads: int, grad: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], r: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], grad_x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], grad_weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Write the gradients of x (N, K) and weight (K,) of training_norm."""

def training_gate(kernels: str, n_threads: int, gate: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], up: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, eps: float, y: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], r: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], head_r: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
    """
    Write norm(silu(gate) * up) into y (N, K), with 1 / rms of rows in r (N,).

    `up` is (H, N, D). With head_r (N, H), not empty, it is first normalised per head. Without
    weight (K,) the rows are not normalised.
    """

def training_gate_gradient(kernels: str, n_threads: int, grad: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], gate: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], up: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, r: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], head_r: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], grad_gate: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], grad_up: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], grad_weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """
    Write the gradients of gate and up (N, K), and of weight (K,), of training_gate.
    """

def multiply_add_instructions() -> list[str]:
    """
    Return the names of the int8 multiply-add instructions that this CPU has.
    """

def multiply_adds_per_s(instruction: str, cpus: Sequence[int], n_passes: int) -> float:
    """
    Measure multiply-adds per second of one thread on each CPU, the best of n passes.
    """

def read_bytes_per_s(cpus: Sequence[int], size: int, n_passes: int) -> float:
    """
    Measure bytes read per second by one thread on each CPU, each from its own `size` bytes
    (a multiple of 4096), the best of n passes.
    """

def gemm_bytes_per_s(kernels: str, stored: str, n: int, m: int, k: int, cpus: Sequence[int], size: int, n_passes: int) -> float:
    """
    Measure weight bytes per second of GEMMs (n, k) x (m, k) in a weight format, the median of
    n passes, each thread over its own `size` bytes of weights.
    """

def attention_bytes_per_s(kernels: str, cache: str, n_queries: int, head_dim: int, cpus: Sequence[int], size: int, n_passes: int) -> float:
    """
    Measure KV cache bytes per second of attention with n_queries heads per KV head, likewise.
    """

def retention_bytes_per_s(kernels: str, n: int, head_dim: int, cpus: Sequence[int], size: int, n_passes: int) -> float:
    """
    Measure state bytes per second of retention over n positions, read and written, likewise.
    """

def fill(session: Session, n: int) -> None:
    """
    Fill the KV caches of a new session with n positions of noise.

    Later steps take as long as after n tokens. ValueError if it is not new or too small.
    """
