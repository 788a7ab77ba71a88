"""The served model: names, tokenizer, sampling defaults, limits.

Requests are validated against it; the runtime runs them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from yocobit.costs import session_bytes, summarize
from yocobit.engine import Engine, SamplingConfig
from yocobit.errors import ConfigError, UserError, shown
from yocobit.packing import PackedModel, read_model
from yocobit.packing.file_format import CHAT_TEMPLATE, GENERATION, TOKENIZER
from yocobit.reading import boundary, read_bytes
from yocobit.serving import limits
from yocobit.serving.api import protocol
from yocobit.serving.api.field_names import OPENAI_NAMES, FieldNames
from yocobit.serving.api.prompt_encoder import PromptEncoder
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Request
from yocobit.serving.runtime.structured_output import GrammarCompiler
from yocobit.serving.settings import ServerSettings
from yocobit.version import __version__

_NO_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class TextEngine(Engine):
    """An engine that only converts text: it opens the model's files, but not its weights."""

    def __init__(self, model: PackedModel) -> None:
        self.model = model


def text_model(settings: ServerSettings) -> ServedModel:
    """Return the served model of a process that prepares requests."""
    model = ServedModel(TextEngine(read_model(settings.model)), settings)
    model.warm_up()
    return model


class ServedModel:
    """One model under its names, with the server's limits."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings = settings.of_model(engine.config)
        self.name = settings.model.resolve().name
        self.names = tuple(dict.fromkeys((self.name, *settings.alias)))
        self.summary = summarize(engine.model)
        # Logits, and so cached prefixes, depend on these.
        self.identity = f"{engine.model.identity} {settings.cache} {__version__}"
        if settings.attention is not None:
            self.identity += f" {settings.attention}"
        # The same request and seed give the same output under the same fingerprint.
        self.fingerprint = f"fp_{_hash(self.identity, engine.model.path)[:12]}"
        self._grammars = _grammars(engine)  # or why there are none
        self.prompts = PromptEncoder(engine, settings)

    @property
    def grammars(self) -> GrammarCompiler:
        """Compiles checked grammars."""
        return self.grammars_for("response_format")

    def grammars_for(self, param: str) -> GrammarCompiler:
        """Return what compiles the grammar of a field; APIError 400 if the tokenizer has none."""
        if isinstance(self._grammars, str):
            raise APIError(
                400,
                f"{param}: structured output is not supported by this model's tokenizer "
                f"({self._grammars}); leave it out",
                param=param,
            )
        return self._grammars

    def warm_up(self) -> None:
        """Read all files next to the weights; UserError if one is invalid.

        A server must not start and then fail at every request.
        """
        with boundary(self.engine.model.path, "cannot be served"):
            if self.has_chat_template:
                self.engine.chat_template  # noqa: B018
            self.tokenizer_info  # noqa: B018
            self.prompts.longest_token  # noqa: B018
            self.engine.sampling()
            self.engine.stop_strings  # noqa: B018
            vocabulary = range(self.engine.config.vocab_size)
            for token in (*self.engine.end_tokens, *self.engine.encode("a")):
                if token not in vocabulary:
                    raise UserError(
                        f"{self.engine.model.path}: token {token} of its {GENERATION} or "
                        f"{TOKENIZER} must be below the vocab_size of {len(vocabulary)}"
                    )

    @cached_property
    def has_chat_template(self) -> bool:
        return (self.engine.model.path / CHAT_TEMPLATE).exists()

    @cached_property
    def tokenizer_info(self) -> dict[str, Any]:
        """Properties of the tokenizer in vLLM's form: lm-evaluation-harness requests them."""
        config, tokenizer = self.engine.generation_config, self.engine.tokenizer
        bos, eos = config.get("bos_token_id"), sorted(self.engine.end_tokens)
        return {
            "bos_token": None if bos is None else tokenizer.id_to_token(bos),
            "eos_token": tokenizer.id_to_token(eos[0]) if eos else None,
            "model_max_length": self.settings.context,
            "chat_template": self.engine.chat_template.source if self.has_chat_template else None,
        }

    def check_name(self, name: str | None) -> None:
        """APIError 404 if a request names another model."""
        # Ollama's clients append the tag of a version.
        if name is not None and name.removesuffix(":latest") not in self.names:
            raise APIError(
                404,
                f"The model {shown(name)} does not exist; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def sampling(self, body: protocol.Sampling, n_prompts: int = 1) -> tuple[SamplingConfig, ...]:
        """Return the sampling of each choice of each prompt: the request's, over the defaults."""
        names = ("temperature", "min_p", "presence_penalty", "frequency_penalty")
        changes: dict[str, Any] = {
            name: value
            for name in (*names, "repetition_penalty")
            if (value := getattr(body, name)) is not None
        }
        if body.repetition_penalty is None and body.repeat_penalty is not None:
            changes["repetition_penalty"] = body.repeat_penalty
        if body.repeat_last_n == 0:
            changes |= _NO_PENALTIES
        if body.top_k is not None:
            changes["top_k"] = min(max(0, body.top_k), self.engine.config.vocab_size)  # -1: all
        if body.top_p:
            changes["top_p"] = body.top_p
        elif body.top_p is not None:
            changes["top_k"] = 1  # the smallest nucleus has one token
        is_random = body.seed is None or body.seed == -1  # as in vLLM and llama.cpp
        seed = secrets.randbits(53) if is_random else (body.seed or 0) % (1 << 64)
        sampling = self.engine.sampling(**changes, seed=seed)
        window = -1 if body.repeat_last_n is None else body.repeat_last_n
        has_penalties = any(
            getattr(sampling, name) != value for name, value in _NO_PENALTIES.items()
        )
        if has_penalties and 0 < window < self.settings.context:
            raise APIError(
                400,
                f"{body.names['repeat_last_n']}: penalties cover the whole context but it is "
                f"{window}; leave it out, or the penalties",
                param=body.names["repeat_last_n"],
            )
        return tuple(
            dataclasses.replace(sampling, seed=seed + i) for i in range((body.n or 1) * n_prompts)
        )

    def logit_bias(self, body: protocol.Sampling) -> dict[int, float]:
        """Return the bias by token; APIError 400 for a key that is not in the vocabulary."""
        given = body.logit_bias or {}
        pairs = given.items() if isinstance(given, dict) else given
        bias = {}
        for key, value in pairs:
            name = str(key)
            if (
                not re.fullmatch(r"\d{1,9}", name, re.A)
                or int(name) >= self.engine.config.vocab_size
            ):
                raise APIError(
                    400,
                    f"logit_bias: {name[:20]!r} must be a token, at least 0 and below "
                    f"{self.engine.config.vocab_size}",
                    param="logit_bias",
                )
            bias[int(name)] = -math.inf if value is False else float(value)
        return bias

    def max_tokens(self, given: int | None, n_prompt: int, n_logprobs: int = 0) -> int:
        """Return the limit of generated tokens: -1 is the most that may be generated.

        That is the rest of the context, or fewer tokens if a response with `n_logprobs`
        log-probabilities per token would have too many. Without a limit, it is that of the model,
        within the most.
        """
        most = max(1, self.settings.context - n_prompt)
        if n_logprobs:
            most = min(most, max(1, limits.RESPONSE_LOGPROBS // n_logprobs))
        if given is None:
            given = min(most, self.engine.max_new_tokens or most)
        return most if given == -1 else given

    def truncate(
        self, body: protocol.Sampling, prompt: list[int], max_tokens: int | None
    ) -> list[int]:
        """Return the part of a prompt that the request keeps: its end, by default."""
        limit = body.truncate_prompt_tokens
        if limit is None:
            return prompt
        if limit == -1:
            n_generated = 1 if max_tokens in (None, -1) else max_tokens
            limit = self.settings.context - n_generated
        if limit < 1:
            raise APIError(
                400,
                f"truncate_prompt_tokens: at least one token must be left but {limit} would be",
                param="truncate_prompt_tokens",
            )
        return prompt[:limit] if body.truncation_side == "right" else prompt[-limit:]

    def end_conditions(
        self, body: protocol.Sampling, max_tokens: int, turn_ends: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Return the fields of a Request that say when its text ends.

        `turn_ends` are the stop strings of the model.
        """
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        tokens = frozenset(body.stop_token_ids or ())
        self.prompts.check_tokens(sorted(tokens), "stop_token_ids")
        min_tokens = body.min_tokens or 0
        if min_tokens > max_tokens:
            raise APIError(
                400,
                f"min_tokens must be at most {body.names['max_tokens']}, which is {max_tokens}, "
                f"but is {min_tokens}",
                param="min_tokens",
            )
        return {
            "stop": stop if body.ignore_eos else (*stop, *turn_ends),
            "stop_tokens": tokens,
            "kept": frozenset([*stop, *tokens] if body.include_stop_str_in_output else []),
            "min_tokens": min_tokens,
            "ignore_end": bool(body.ignore_eos),
        }

    def check(
        self, request: Request, prompt_field: str, names: FieldNames = OPENAI_NAMES
    ) -> Request:
        """Return the request; APIError 400, with the numbers, if the server can never run it.

        The fields of the request have these names.
        """
        n, context = len(request.prompt), self.settings.context
        limit = names["max_tokens"]
        if n + request.max_tokens > context:
            raise APIError(
                400,
                f"This model's maximum context length is {context} tokens, but the prompt has {n} "
                f"and {limit} is {request.max_tokens}: {n + request.max_tokens} together",
                param=names[prompt_field],
                code="context_length_exceeded",
            )
        n_choices = len(request.sampling)
        if n_choices > self.settings.max_sequences:
            raise APIError(
                400,
                f"n is {n_choices}, but this server runs at most {self.settings.max_sequences} "
                "sequences at a time",
                param="n",
            )
        config, cache = self.engine.config, self.settings.cache
        size = n_choices * session_bytes(config, cache, request.n_tokens)
        if size > self.settings.cache_bytes:
            raise APIError(
                400,
                f"the caches of {n_choices} x {request.n_tokens} tokens need {size:,} bytes, but "
                f"this server has {self.settings.cache_bytes:,}; request fewer tokens",
                param=limit,
                code="cache_exceeded",
            )
        return request

    def check_logprobs(self, requests: Sequence[Request], names: FieldNames = OPENAI_NAMES) -> None:
        """APIError 400 if a response could have too many log-probabilities."""
        n_entries = sum(
            len(each.sampling) * each.max_tokens * (each.n_logprobs + 1)
            for each in requests
            if each.n_logprobs is not None
        )
        if n_entries > limits.RESPONSE_LOGPROBS:
            raise APIError(
                400,
                f"the response could have {n_entries:,} log-probabilities, but at most "
                f"{limits.RESPONSE_LOGPROBS:,} are allowed; lower {names['max_tokens']}, n or the "
                "number of alternatives",
                param=names["logprobs"],
            )

    def token_text(self, token: int) -> tuple[str, list[int]]:
        """Return a token as text, and its bytes, which may be part of a character."""
        if isinstance(self._grammars, str):
            raw: bytes = self.engine.tokenizer.decode([token], skip_special_tokens=False).encode()
        else:
            raw = self._grammars.token_bytes(token)
        return raw.decode("utf-8", errors="replace"), list(raw)


def _grammars(engine: Engine) -> GrammarCompiler | str:
    """Return the grammars of an engine, or why its tokenizer does not support any."""
    _ = engine.tokenizer, engine.end_tokens  # their errors are those of the model
    try:
        with boundary(TOKENIZER, "is not supported"):
            return GrammarCompiler(engine)
    except ConfigError as error:
        return str(error)


def _hash(identity: str, model: Path) -> str:
    """Return a hash of the identity and of the files next to the weights that outputs depend on."""
    digest = hashlib.sha256(identity.encode())
    for name in (TOKENIZER, GENERATION, CHAT_TEMPLATE):
        path = model / name
        digest.update(read_bytes(path) if path.exists() else b"-")
    return digest.hexdigest()
