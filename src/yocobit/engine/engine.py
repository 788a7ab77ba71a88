"""Engine: runs a packed model. Create one engine per model and one session per sequence.

Letters: T positions   V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokenizers import Tokenizer

from yocobit.config import ConfigError, ModelConfig
from yocobit.engine.generation import Generation
from yocobit.engine.sampling import SamplingConfig
from yocobit.engine.saved_session import SavedSession, SavedSessionError
from yocobit.engine.session import (
    DEFAULT_CACHE,
    MAX_TOKENS,
    CacheType,
    Logits,
    Session,
    Tokens,
    as_out,
    as_tokens,
)
from yocobit.hardware.host import default_threads
from yocobit.packing import PackedModel, PackedModelError, read_model
from yocobit.packing import verify as verify_model
from yocobit.packing.file_format import CHAT_TEMPLATE, GENERATION, TOKENIZER
from yocobit.pretrained import TINY
from yocobit.reading import read_text
from yocobit.settings import whole_number
from yocobit.text import GenerationConfig, TextEncoder, parse_tokenizer, read_generation_config

if TYPE_CHECKING:
    from yocobit.text.chat_template import ChatTemplate, Prompt
    from yocobit.text.encoder import Render


class Engine:
    """Runs a packed model straight from its memory map.

    ```python
    engine = Engine.load("models/tiny")
    print(engine.generate("def main():"))
    ```
    """

    _checked: tuple[dict[str, Any], GenerationConfig] = {}, GenerationConfig()

    def __init__(self, model: PackedModel, threads: int, kernels: str | None) -> None:
        self.model = model
        _ = self.sampling()  # reads and checks generation_config.json
        self._native = model.open(threads, kernels)
        self._is_checked = False

    @classmethod
    def load(
        cls,
        path: str | Path = TINY,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        attention: str | None = None,
        exact: bool = False,
        verify: bool = False,
    ) -> Engine:
        """Open the packed model directory `path`, by default the packaged model.

        `threads` defaults to one per CPU, `kernels` to the fastest kernel family that this CPU
        supports ("scalar" is the reference), `attention` to the model's own ("full", or
        "index:2048": each cross layer attends to the top-k blocks with that many positions).
        `exact` rounds activations to int16 instead of int8 in models with weights-only quantisation
        and changes nothing in others. `verify` also checks every weight against its hash.
        PackedModelError or ConfigError, both ValueError, for an invalid model or argument.

        The weights are checked once, before the first session is made (check_weights).
        """
        if threads is None:
            threads = default_threads()
        model = read_model(Path(path))
        if verify and (problems := verify_model(model)):
            raise PackedModelError("; ".join(problems))
        model = model.attending(attention).with_activations(exact)
        return cls(model, threads, kernels)

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def kernels(self) -> str:
        """Name of the kernel family in use, such as "avx2"."""
        return str(self._native.kernels)

    @property
    def threads(self) -> int:
        """Number of threads."""
        return int(self._native.n_threads)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of activation buffers, which all sessions of this engine share."""
        return int(self._native.buffer_bytes)

    @cached_property
    def _directory(self) -> Path:
        """The model's directory, also after the working directory has changed."""
        return self.model.path.absolute()

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """The content of generation_config.json in Hugging Face's form; empty if missing."""
        return read_generation_config(self._directory / GENERATION)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ConfigError if it is missing or does not match the model."""
        try:
            content = read_text(self._directory / TOKENIZER)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.model.path}: has no tokenizer.json; give tokens, not text"
            ) from None
        return parse_tokenizer(content, self.model.path / TOKENIZER, self.config.vocab_size)

    @cached_property
    def encoder(self) -> TextEncoder:
        """Encodes texts and conversations; ConfigError if the tokenizer loses text."""
        bos = () if self.bos_token is None else (self.bos_token,)
        control_tokens = self.end_tokens.union(bos)
        return TextEncoder(self.tokenizer, self.model.path / TOKENIZER, control_tokens)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The chat template; ConfigError if the model has none."""
        from yocobit.text.chat_template import ChatTemplate  # imports Jinja

        path, name = self._directory / CHAT_TEMPLATE, self.model.path / CHAT_TEMPLATE
        return ChatTemplate.read(path, name, self._token_names() if path.exists() else None)

    @property
    def _generation(self) -> GenerationConfig:
        fields, checked = self._checked
        if fields != self.generation_config:
            source, vocab_size = self.model.path / GENERATION, self.config.vocab_size
            fields = dict(self.generation_config)
            checked = GenerationConfig.of(fields, source, vocab_size)
            self._checked = fields, checked
        return checked

    @property
    def bos_token(self) -> int | None:
        """The token before each text, if the model has one."""
        return self._generation.bos_token_id

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end the model's turn."""
        return self._generation.stops

    @property
    def max_new_tokens(self) -> int | None:
        """The default limit of the tokens of an answer, if generation_config.json has one."""
        return self._generation.max_new_tokens

    @property
    def end_tokens(self) -> frozenset[int]:
        """End-of-sequence tokens."""
        return self._generation.end_tokens

    def check_weights(self) -> None:
        """Check once that every weight has a value; PackedModelError names tensor and position.

        Reads the whole file, at memory speed. A code without a value, NaN or infinity is refused:
        kernel families would compute different logits from it.
        """
        if self._is_checked:
            return
        if problems := self._native.find_problems():
            raise PackedModelError(f"{self.model.file}: {problems[0]}; pack the checkpoint again")
        self._is_checked = True

    def check_file(self) -> None:
        """Check that the model file is as it was when it was loaded: one system call.

        FileChangedError, a RuntimeError, if it was overwritten or truncated in place. The first
        tokens of a session check it, too, and so does `stream`. A file that was replaced by
        renaming another one stays as it was.
        """
        self._native.check_file()

    def session(self, max_tokens: int, cache: CacheType = DEFAULT_CACHE) -> Session:
        """Return a new session with a capacity of `max_tokens`; reserves its memory.

        `cache` is the type of its KV caches: "f32", "f16", "int8" or "int4". The first session of
        an engine checks the weights: PackedModelError if they are invalid.
        """
        self.check_weights()
        return Session(self._native, max_tokens, cache)

    def save(self, session: Session, path: str | Path) -> None:
        """Write a session of this engine to a file atomically; `restore` reads it.

        SavedSessionError, a ValueError, if the session belongs to another engine or the file
        cannot be written.
        """
        if session._engine is not self._native:
            raise SavedSessionError(f"{path}: not written: the session must be of this engine")
        SavedSession(
            model=self.model.identity,
            cache=session.cache,
            tokens=session.tokens,
            state=session.copy_state(),
            positions=session.copy_positions(0, session.position),
        ).write(Path(path))

    def restore(self, path: str | Path, max_tokens: int | None = None) -> Session:
        """Return a saved session; its capacity is `max_tokens`, by default twice its tokens.

        SavedSessionError, a ValueError, if the file is damaged or belongs to another model.
        """
        saved = SavedSession.read(Path(path), self.model.identity)
        n = len(saved.tokens)
        sizes = self.session(1, saved.cache).saved_bytes(n)  # before memory is reserved
        if sizes != (len(saved.state), len(saved.positions)):
            raise SavedSessionError(
                f"{path}: state and positions after {n} tokens must have {sizes} bytes but have "
                f"{len(saved.state), len(saved.positions)}; feed its text to a new session"
            )
        session = self.session(max(1, 2 * n) if max_tokens is None else max_tokens, saved.cache)
        try:
            session.restore(saved.tokens, saved.state, [saved.positions])
        except ValueError as error:
            raise SavedSessionError(f"{path}: {error}") from None
        if not session.is_finite():
            raise SavedSessionError(
                f"{path}: caches and states must be finite but are not; feed its text to a new "
                "session"
            )
        return session

    def logits(self, tokens: Tokens, cache: CacheType = DEFAULT_CACHE) -> Logits:
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
        """Decode one token of each of n sessions; return their logits (n, V), in `out` if given.

        `prompts` are chunks of other sessions' prompts, prefilled in the same step without logits.
        A step reads every weight once per 128 tokens (256 with experts). The logits of a session
        have the same bits as in a step of its own.
        """
        logits = as_out(out, (len(sessions), self.config.vocab_size))
        parts = [(session._native, as_tokens(part)) for session, part in prompts]
        positions = [session.position for session, _ in prompts]
        natives = [session._native for session in sessions]
        try:
            self._native.step(natives, as_tokens(tokens), logits, parts)
        except ValueError:
            raise  # nothing changed
        except BaseException:
            for session in sessions:
                session._logits = None
            raise
        finally:
            for (session, _), before in zip(prompts, positions, strict=True):
                if session.position != before:
                    session._logits = None
        for session, row in zip(sessions, logits, strict=True):
            session._logits = row
        return logits

    def encode(self, prompt: str) -> list[int]:
        """Return the tokens of a text, after the BOS token; UserError if it is not valid UTF-8.

        Special tokens that the text spells are plain text. In a prompt that a chat template
        rendered, those that the template writes are special tokens; the BOS token is added unless
        the template writes it.
        """
        template = getattr(prompt, "template", None)
        if template is None:
            tokens = self.encoder.encode(prompt)
        else:
            prompt = cast("Prompt", prompt)
            tokens = self.encoder.encode_chat(
                template.render, prompt.messages, prompt.variables, prompt
            )
        return self._after_bos(tokens, template)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        render: Render | None = None,
        **variables: Any,
    ) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's reply starts.

        `variables`, such as `tools`, are those of the template. `render` replaces the method of the
        template, for example by one with a time limit.
        """
        template = self.chat_template
        tokens = self.encoder.encode_chat(render or template.render, messages, variables)
        return self._after_bos(tokens, template)

    def _after_bos(self, tokens: list[int], template: ChatTemplate | None) -> list[int]:
        """Return tokens after the BOS token, if there is one."""
        bos = self.bos_token
        if bos is None or (template and (template.writes_bos or tokens[:1] == [bos])):
            return tokens
        return [bos, *tokens]

    def _token_names(self) -> dict[str, str]:
        """Return the names of special tokens that templates read."""
        end = self.generation_config.get("eos_token_id")
        first = next(iter(end), None) if isinstance(end, list) else end
        tokens = {"bos_token": self.bos_token, "eos_token": first}
        names = {n: self.tokenizer.id_to_token(t) for n, t in tokens.items() if t is not None}
        return {name: text for name, text in names.items() if text is not None}

    @property
    def own_sampling(self) -> dict[str, float | int]:
        """The sampling parameters that the model's generation_config.json sets."""
        return self._generation.sampling

    def sampling(self, **changes: Any) -> SamplingConfig:
        """Return the model's default sampling parameters with some fields changed.

        Without one of its own, the temperature is 1, as in OpenAI's API, transformers and vLLM.
        """
        return SamplingConfig(**{"temperature": 1.0, **self.own_sampling, **changes})

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        cache: CacheType = DEFAULT_CACHE,
        sampling: SamplingConfig | None = None,
        session: Session | None = None,
    ) -> Generation:
        """Return the continuation of a text, or of tokens, as an iterator over pieces of text.

        The text ends before the first stop string in `stop`. A `session`, if given, must hold a
        proper prefix of the prompt and have capacity for the rest and max_tokens; `cache` is then
        ignored. ValueError if it holds other tokens, or the whole prompt.
        """
        max_tokens = whole_number("max_tokens", max_tokens, 1, MAX_TOKENS)
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if any(not text for text in stop):
            raise ValueError("stop must hold strings of at least one character")
        self.check_file()
        tokens = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise ValueError("prompt must hold at least one token but is empty")
        if session is not None:
            _check_prefix(session, tokens)
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
        """Return the continuation of a text; the options are those of `stream`."""
        return "".join(self.stream(prompt, **options))


def _check_prefix(session: Session, prompt: list[int]) -> None:
    """ValueError unless a session holds a proper prefix of a prompt."""
    cached = session.position
    if session.tokens.tolist() != prompt[:cached]:
        raise ValueError(
            f"session: holds {cached} tokens that are not a prefix of the prompt; give a prompt "
            "that continues them, or another session"
        )
    if cached == len(prompt):
        raise ValueError(
            f"session: holds all {cached} tokens of the prompt, but the last must be left to "
            "prefill; feed it fewer"
        )
