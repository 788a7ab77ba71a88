"""Engine: a packed model, ready to run. Make one per model, and a session per text.

Letters: T positions   V vocabulary
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from yocobit import _native
from yocobit.config import ConfigError, ModelConfig
from yocobit.engine.generation import Generation
from yocobit.engine.sampling import SamplingConfig
from yocobit.engine.saved_session import SavedSession, SavedSessionError
from yocobit.engine.session import CacheType, Logits, Session, Tokens, as_out, as_tokens
from yocobit.errors import UserError
from yocobit.packing import PackedModel, PackedModelError, read_model
from yocobit.packing import verify as verify_model
from yocobit.packing.format import CHAT_TEMPLATE, GENERATION, TOKENIZER
from yocobit.pretrained import TINY

if TYPE_CHECKING:
    from yocobit.engine.chat_template import ChatTemplate

_SAMPLING_KEYS = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")


class Engine:
    """Runs a packed model from its memory map.

    engine = Engine.load("models/tiny")
    print(engine.generate("def main():"))
    """

    def __init__(self, model: PackedModel, threads: int, kernels: str | None) -> None:
        self.model = model
        self._native = _native.Engine(
            str(model.file),
            model.config.to_dict(),
            {name: (t.dtype, list(t.shape), t.begin, t.end) for name, t in model.tensors.items()},
            kernels or "",
            threads,
        )

    @classmethod
    def load(
        cls,
        path: str | Path = TINY,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        attention: str | None = None,
        verify: bool = False,
    ) -> Engine:
        """Open the packed model directory `path`; the packaged model unless given.

        `threads` is one per CPU unless given, `kernels` the fastest this CPU supports ("scalar" is
        the reference), `attention` the model's own ("full", "index:2048" or "window:2048": of how
        many positions, and of which, cross layers read keys and values), `verify` also checks every
        weight against its hash. PackedModelError or ConfigError, both ValueError, for a model that
        cannot be used.
        """
        if threads is None:
            threads = len(os.sched_getaffinity(0))
        model = read_model(Path(path))
        if verify and (problems := verify_model(Path(path))):
            raise PackedModelError("\n".join(problems))
        return cls(model.attending(attention), threads, kernels)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def kernels(self) -> str:
        """Name of the kernels at work, such as "avx2"."""
        return str(self._native.kernels)

    @property
    def threads(self) -> int:
        return int(self._native.n_threads)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of work space that the sessions of this engine share; theirs are not in it."""
        return int(self._native.buffer_bytes)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ConfigError if it has none that fits."""
        path = self.model.path / TOKENIZER
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"{self.model.path}: has no tokenizer.json; give tokens, not text"
            ) from None
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(f"{path}: is not a tokenizer.json ({error})") from None
        if tokenizer.get_vocab_size() > self.config.vocab_size:
            raise ConfigError(
                f"{path}: has {tokenizer.get_vocab_size()} tokens but the model's vocab_size is "
                f"{self.config.vocab_size}"
            )
        return tokenizer

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, as Hugging Face models have it; empty if there is none."""
        path = self.model.path / GENERATION
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ConfigError(f"{path}: is not valid JSON ({error})") from None
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}: must hold an object but holds {type(fields).__name__}")
        return fields

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """How conversations look as text; ConfigError if the model has no chat template."""
        from yocobit.engine.chat_template import ChatTemplate  # and with it Jinja

        return ChatTemplate.read(self.model.path / CHAT_TEMPLATE)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end the model's turn in a conversation; ConfigError if they are none."""
        found = self.generation_config.get("stop_strings") or []
        texts = [found] if isinstance(found, str) else found
        if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
            raise ConfigError(
                f"{self.model.path / GENERATION}: stop_strings must be texts but is {found!r}"
            )
        return tuple(texts)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a text."""
        end = self.generation_config.get("eos_token_id")
        return frozenset(end if isinstance(end, list) else [] if end is None else [end])

    def session(self, max_tokens: int, cache: CacheType = "f32") -> Session:
        """Return a new session with room for that many tokens; its memory is reserved now."""
        return Session(self._native, max_tokens, cache)

    def save(self, session: Session, path: str | Path) -> None:
        """Write a session of this engine to a file, whole or not at all; `restore` reads it back.

        SavedSessionError, a ValueError, if it is another's or the file cannot be written.
        """
        if session._engine is not self._native:
            raise SavedSessionError(f"{path}: not written: the session must be of this engine")
        SavedSession(
            model=self.model.metadata["header_sha256"],
            cache=session.cache,
            tokens=session.tokens,
            state=session.copy_state(),
            positions=session.copy_positions(0, session.position),
        ).write(Path(path))

    def restore(self, path: str | Path, max_tokens: int | None = None) -> Session:
        """Return a session that was saved, with room for twice its tokens unless given.

        SavedSessionError, a ValueError, if the file is not whole or of another model.
        """
        saved = SavedSession.read(Path(path), self.model.metadata["header_sha256"])
        room = 2 * len(saved.tokens) if max_tokens is None else max_tokens
        session = self.session(max(1, room), saved.cache)
        session.restore(saved.tokens, saved.state, [saved.positions])
        return session

    def logits(self, tokens: Tokens, cache: CacheType = "f32") -> Logits:
        """Return the logits (T, V) after each of tokens (T,)."""
        tokens = as_tokens(tokens)
        return self.session(max(1, len(tokens)), cache).feed_all(tokens)

    def step(
        self,
        sessions: Sequence[Session],
        tokens: Tokens,
        out: Logits | None = None,
        prompts: Sequence[tuple[Session, Tokens]] = (),
    ) -> Logits:
        """Take in one token of each of n different sessions; return their logits (n, V).

        They are in `out`, if given, until it is written again. `prompts` are more tokens of other
        sessions, taken in beside without logits. Reads every weight once for all of up to 128
        tokens, and gives each session what it would get alone, bit for bit.
        """
        logits = as_out(out, (len(sessions), self.config.vocab_size))
        self._native.step(
            [session._native for session in sessions],
            as_tokens(tokens),
            logits,
            [(session._native, as_tokens(part)) for session, part in prompts],
        )
        for session, _ in prompts:
            session._logits = None
        for session, row in zip(sessions, logits, strict=True):
            session._logits = row
        return logits

    def encode(self, prompt: str) -> list[int]:
        """Return the tokens of a text that begins a document; UserError if it has no UTF-8."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # Python makes halves of characters of other bytes
            raise UserError(f"text is not UTF-8 (it has {prompt[error.start]!r})") from None
        begin = self.generation_config.get("bos_token_id")
        # Unlike encode, this lets other threads work meanwhile.
        (encoding,) = self.tokenizer.encode_batch_fast([prompt], add_special_tokens=False)
        tokens: list[int] = encoding.ids
        return tokens if begin is None else [begin, *tokens]

    def sampling(self, **changes: Any) -> SamplingConfig:
        """Return the model's default sampling with some fields changed."""
        fields = {k: v for k, v in self.generation_config.items() if k in _SAMPLING_KEYS}
        if self.generation_config.get("do_sample") is False:
            fields["temperature"] = 0.0
        try:
            defaults = SamplingConfig(**fields)
        except ConfigError as error:
            raise ConfigError(f"{self.model.path / GENERATION}: {error}") from None
        return dataclasses.replace(defaults, **changes)

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        cache: CacheType = "f32",
        sampling: SamplingConfig | None = None,
        session: Session | None = None,
    ) -> Generation:
        """Return the continuation of a text, or of tokens, as an iterator over pieces of text.

        It ends before the first of the texts, or the one text, in `stop`.
        A `session`, if given, has taken in some of the first tokens of the prompt, and has room
        for the rest and max_tokens; `cache` is its own then. ValueError if it holds others, or all.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1 but is {max_tokens}")
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if any(not text for text in stop):
            raise ValueError("stop must hold texts of at least one character")
        tokens = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise ValueError("prompt must hold at least one token but is empty")
        if session is not None:
            _check_begin(session, tokens)
        return Generation(
            session=session or self.session(len(tokens) + max_tokens, cache),
            tokenizer=self.tokenizer,
            prompt=tokens,
            max_tokens=max_tokens,
            end_tokens=self.end_tokens,
            stop=stop,
            sampling=sampling or self.sampling(),
        )

    def generate(self, prompt: str | Sequence[int], **options: Any) -> str:
        """Return the continuation of a text; options as of `stream`."""
        return "".join(self.stream(prompt, **options))


def _check_begin(session: Session, prompt: list[int]) -> None:
    """ValueError unless what a session holds begins a prompt, with a token left to be read."""
    known = session.position
    if session.tokens.tolist() != prompt[:known]:
        raise ValueError(
            f"session: holds {known} tokens that the prompt does not begin with; give a prompt "
            "that goes on from them, or another session"
        )
    if known == len(prompt):
        raise ValueError(
            f"session: holds all {known} tokens of the prompt, but the last must be left to be "
            "read; feed it fewer"
        )
