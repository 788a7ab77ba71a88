"""Structured output: JSON by a schema, enforced by llguidance's token masks.

The output is also complete within max_tokens: a completion that fits is known at every step. If no
completion that fits is found after a sampled token, the first token of the known completion
replaces it.

Letters: V vocabulary
"""

from __future__ import annotations

import dataclasses
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from yocobit.engine import Engine
from yocobit.engine.session import Logits
from yocobit.hardware.host import allocated_bytes
from yocobit.serving import limits
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.schema_completions import MAX_COMPLETION, SchemaCompletions

_MAX_MESSAGE = 300  # characters of llguidance's message in an error
_MAX_CHECKED = 16  # schemas whose shortest outputs are cached
_MAX_STATES = 10_000  # of the lexer, which all outputs of a schema share and extend
# Of one mask, in the scheduler's thread: about 5 ms.
_STEP_LIMITS = LLParserLimits(
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=_MAX_STATES,
    verbose_errors=False,
)
_GROWTH_BYTES = _MAX_STATES << 11  # of all these states, about 2 KB each
_MAX_CACHED_BYTES = 1 << 27  # of compiled schemas that are cached for later requests
# At most one blank between tokens of JSON: otherwise a model may fill its output with blanks.
_OPTIONS: Any = {"whitespace_pattern": r"[ \n]?"}
# llguidance's extension of schemas, which could set separators that JSON does not have.
_EXTENSION_KEY = "x-guidance"
# Budget of the failed searches of one output, in masks: initial, and per generated token.
_BUDGET, _BUDGET_PER_TOKEN = 64, 16
_N_ATTEMPTS = 3  # after a sampled token


@dataclasses.dataclass(frozen=True)
class Schema:
    """A schema that was compiled within the limits: the server's process compiles it again."""

    text: str
    shortest: list[int] | None  # tokens of a short output; None if none was found
    size_bytes: int  # compiled, before any output


class CompiledSchema:
    """A compiled schema, which the outputs of several requests share."""

    def __init__(self, matcher: LLMatcher, size_bytes: int) -> None:
        self.matcher = matcher  # in its initial state
        self.size_bytes = size_bytes  # growth included
        # Whether a limit was exceeded, which may be that of the lexer: it is compiled again.
        self.is_exhausted = False


class Grammars:
    """Compiles schemas for guided decoding over one engine's vocabulary."""

    def __init__(self, engine: Engine) -> None:
        n_tokens = engine.config.vocab_size
        self._tokenizer = LLTokenizer(
            engine.tokenizer.to_str(),
            n_vocab=n_tokens,
            eos_token=sorted(engine.end_tokens) or None,
        )
        self.completions = SchemaCompletions(self._tokenizer, n_tokens, engine.end_tokens)
        self._checked = lru_cache(_MAX_CHECKED)(self._check)
        self._cache: OrderedDict[str, CompiledSchema] = OrderedDict()  # the most recent is last
        self._compiled_bytes = 0  # of cached schemas and those in use
        self._freed: list[int] = []  # bytes to subtract from them, appended by any thread
        self._lock = threading.Lock()

    def compile(
        self, schema: dict[str, Any] | bool, param: str, max_tokens: int
    ) -> Callable[[], GuidedJSON]:
        """Return a factory of guided decoding by a JSON schema; raises the errors of `check`."""
        return self.factory(self.check(schema, param, max_tokens))

    def factory(self, schema: Schema) -> Callable[[], GuidedJSON]:
        """Return a factory of guided decoding by a checked schema.

        APIError 503 if the schemas of all requests take too much memory.
        """
        with self._lock:  # one compilation at a time
            compiled = self._compiled(schema)
        return lambda: GuidedJSON(self.completions, compiled, schema.shortest or [])

    def check(self, schema: dict[str, Any] | bool, param: str, max_tokens: int) -> Schema:
        """Return a schema that some output of at most `max_tokens` follows.

        APIError 400 naming `param` if the schema is invalid, too costly, or needs more tokens.
        """
        if isinstance(schema, dict):
            schema = {key: value for key, value in schema.items() if key != _EXTENSION_KEY}
        checked = self._checked(_encode({} if schema is True else schema, param))
        if isinstance(checked, str):
            raise APIError(
                400, f"{param}: the schema is invalid or not supported ({checked})", param=param
            )
        if (shortest := checked.shortest) is None:
            raise APIError(
                400,
                f"{param}: found no output of at most {MAX_COMPLETION:,} tokens for the schema",
                param=param,
            )
        if len(shortest) > max_tokens:
            raise APIError(
                400,
                f"{param}: the shortest output found for the schema has {len(shortest)} tokens, "
                f"but max_tokens is {max_tokens}; allow more",
                param="max_tokens",
            )
        return checked

    def token_bytes(self, token: int) -> bytes:
        """Return a token's bytes."""
        return bytes(self._tokenizer.decode_bytes([token]))

    def _check(self, text: str) -> Schema | str:
        """Return the checked schema, or the error."""
        started_s, start_bytes = time.thread_time(), allocated_bytes()
        try:
            matcher = self._compile(text)
        except ValueError as error:
            return str(error)[:_MAX_MESSAGE]
        if matcher.is_error():
            return str(matcher.get_error())[:_MAX_MESSAGE]
        cpu_s, size = time.thread_time() - started_s, max(0, allocated_bytes() - start_bytes)
        if cpu_s > limits.SCHEMA_CPU_S:
            return f"it takes {cpu_s:.1f} s to compile, at most {limits.SCHEMA_CPU_S:g} s may be"
        if size > limits.SCHEMA_COMPILED_BYTES:
            return (
                f"it takes {size:,} bytes when it is compiled, at most "
                f"{limits.SCHEMA_COMPILED_BYTES:,} may be"
            )
        return Schema(text, self.completions.shortest(matcher), size)

    def _compile(self, text: str) -> LLMatcher:
        """Return the matcher of a schema in its initial state; ValueError if it is not JSON."""
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS)
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=_STEP_LIMITS)

    def _compiled(self, schema: Schema) -> CompiledSchema:
        """Return a checked schema, compiled, from a cache."""
        found = self._cache.pop(schema.text, None)
        if found is None or found.is_exhausted:
            found = None  # frees it
            size = schema.size_bytes + _GROWTH_BYTES
            self._make_room(size)
            found = CompiledSchema(self._compile(schema.text), size)
            self._compiled_bytes += size
            weakref.finalize(found, self._freed.append, size)
        self._cache[schema.text] = found
        return found

    def _make_room(self, size: int) -> None:
        """Evict compiled schemas until one of that size fits."""
        while self._cache and self._cached_bytes + size > _MAX_CACHED_BYTES:
            self._cache.popitem(last=False)
        while self._freed:
            self._compiled_bytes -= self._freed.pop()
        if self._compiled_bytes + size > limits.SCHEMAS_BYTES:
            raise APIError(
                503,
                f"the schemas of all requests take {self._compiled_bytes:,} bytes of at most "
                f"{limits.SCHEMAS_BYTES:,}; try again",
                code="too_many_schemas",
                retry_after=1,
            )

    @property
    def _cached_bytes(self) -> int:
        return sum(each.size_bytes for each in self._cache.values())


class GuidedJSON:
    """Guided decoding of one sequence by a schema: implements engine.decode.GuidedDecoding."""

    def __init__(
        self, completions: SchemaCompletions, compiled: CompiledSchema, rest: list[int]
    ) -> None:
        self._completions = completions
        self._compiled = compiled
        self._matcher = compiled.matcher.deep_copy()
        self._rest = list(rest)  # the known completion, which fits
        self._budget = _BUDGET

    def mask(self, logits: Logits) -> Logits:
        """Return logits (V,) with -infinity for every token that the schema does not allow."""
        allowed = self._completions.allowed(self._matcher)
        if self._matcher.is_error():
            self._compiled.is_exhausted = True
            if self._rest:
                # A limit of llguidance was exceeded: follow the known completion.
                allowed[:] = False
                allowed[self._rest[:1]] = True
        return np.where(allowed, logits, np.float32(-np.inf))

    def force_completion(self, token: int, n_left: int) -> int:
        """Return the token to append: the sampled one, unless no completion would fit after it.

        `n_left` tokens are left, including this one.
        """
        if self._matcher.is_error():
            return self._rest.pop(0) if self._rest else token
        if token in self._completions.end_tokens and self._matcher.is_accepting():
            return token
        self._budget = min(self._budget + _BUDGET_PER_TOKEN, _BUDGET)
        if self._rest[:1] == [token]:
            del self._rest[0]
        elif (rest := self._completion_after(token, n_left - 1)) is not None:
            self._rest = rest
        elif self._rest:
            return self._rest.pop(0)
        else:
            return min(self._completions.end_tokens, default=token)
        return token

    def accept(self, token: int) -> bool:
        """Append a token; return whether the output is complete."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():  # then the matcher counts as stopped, too
            return not self._rest
        if not self._completions.end_tokens and self._matcher.is_accepting():
            return True  # the vocabulary has no end token
        return bool(self._matcher.is_stopped())

    def _completion_after(self, token: int, limit: int) -> list[int] | None:
        """Return at most `limit` tokens that complete the output after that token."""
        for attempt in range(_N_ATTEMPTS):
            matcher = self._matcher.deep_copy()
            if not matcher.consume_token(token):
                return None
            found = self._completions.find(matcher, self._rest, limit, self._budget, attempt)
            if found is not None:
                return found if len(found) <= limit else None
            self._budget -= min(limit, self._budget)
        return None


def _encode(schema: dict[str, Any] | bool, param: str) -> str:
    """Return a schema as JSON; APIError 400 if it is too large."""
    try:
        text = msgspec.json.encode(schema)
    except RecursionError:
        raise APIError(
            400, f"{param}: the schema is nested too deep; flatten it", param=param
        ) from None
    if len(text) > limits.SCHEMA_BYTES:
        raise APIError(
            400,
            f"{param}: a schema may have {limits.SCHEMA_BYTES:,} bytes, but this has {len(text):,}",
            param=param,
        )
    return text.decode()
