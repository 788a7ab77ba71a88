"""The benchmark grid: every combination of lengths, depths, batch sizes and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, cast, get_args

from yocobit import _native
from yocobit.engine.session import CacheType
from yocobit.errors import UserError, printable
from yocobit.hardware.host import default_threads

_MOST_TOKENS = 1 << 32  # in a depth, a prompt or a generation
_MOST_THREADS = 1024


@dataclasses.dataclass(frozen=True)
class Case:
    """One test: the prefill of a prompt, or the decode of one token after another."""

    kind: Literal["prefill", "decode"]
    n_tokens: int  # per session
    depth: int  # tokens in each session before the test
    batch: int  # sessions decoded together
    cache: CacheType

    @property
    def name(self) -> str:
        """The name of the test in the style of llama-bench, such as "pp512 @ d0"."""
        batch = f" b{self.batch}" if self.batch > 1 else ""
        return f"{'pp' if self.kind == 'prefill' else 'tg'}{self.n_tokens} @ d{self.depth}{batch}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The values to combine; validated on construction."""

    prompts: tuple[int, ...]  # tokens of a prefill; 0 skips it
    generations: tuple[int, ...]  # tokens to decode; 0 skips it
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    caches: tuple[CacheType, ...]  # KV cache types
    kernels: str | None  # None: the fastest family of this CPU
    repetitions: int
    with_limits: bool

    def __post_init__(self) -> None:
        for option, values, least, most in (
            ("--prompt", self.prompts, 0, _MOST_TOKENS),
            ("--gen", self.generations, 0, _MOST_TOKENS),
            ("--depth", self.depths, 0, _MOST_TOKENS),
            ("--batch", self.batches, 1, 1 << 16),
            ("--threads", self.threads, 1, _MOST_THREADS),
            ("--repetitions", (self.repetitions,), 1, 1 << 16),
        ):
            for value in values:
                if not least <= value <= most:
                    raise UserError(f"{option} must be between {least} and {most} but is {value}")
        for cache in self.caches:
            if cache not in get_args(CacheType):
                known = ", ".join(get_args(CacheType))
                raise UserError(f"--cache must be one of {known} but is {cache!r}")
        supported = _native.supported_kernels()
        if self.kernels is not None and self.kernels not in supported:
            raise UserError(
                f"--kernels must be one of {', '.join(supported)} but is {self.kernels!r}"
            )
        if not any(self.prompts) and not any(self.generations):
            raise UserError("--prompt and --gen must not both be 0; set one of them")

    @classmethod
    def parse(
        cls,
        *,
        prompts: str,
        generations: str,
        depths: str,
        batches: str,
        threads: str | None,
        caches: str,
        kernels: str | None,
        repetitions: int,
        with_limits: bool,
    ) -> Grid:
        """Parse lists such as "0,4096"; `threads` defaults to one per CPU."""
        return cls(
            prompts=_integers("--prompt", prompts),
            generations=_integers("--gen", generations),
            depths=_integers("--depth", depths),
            batches=_integers("--batch", batches),
            threads=_integers("--threads", str(default_threads()) if threads is None else threads),
            caches=cast("tuple[CacheType, ...]", _words(caches)),  # validated by __post_init__
            kernels=kernels,
            repetitions=repetitions,
            with_limits=with_limits,
        )

    def cases(self) -> Iterator[Case]:
        """Yield every case once, prefill first, without the thread counts."""
        for cache in self.caches:
            for depth in self.depths:
                for n in filter(None, self.prompts):
                    yield Case("prefill", n, depth, 1, cache)
                for batch in self.batches:
                    for n in filter(None, self.generations):
                        yield Case("decode", n, depth, batch, cache)


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(word) for word in _words(text)))
    except ValueError:
        raise UserError(
            f"{option} must be comma-separated integers but is {printable(text, 80)!r}"
        ) from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))
