"""Structured output: JSON by a schema, enforced by llguidance's token masks.

The output is also complete within max_tokens: a completion that fits is known at every step. If no
completion that fits is found after a sampled token, the first token of the known completion
replaces it.

Letters: V vocabulary
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from yocobit.engine import Engine
from yocobit.engine.session import Logits
from yocobit.hardware.host import allocated_bytes
from yocobit.serving import limits
from yocobit.serving.errors import APIError

_MAX_MESSAGE = 300  # characters of llguidance's message in an error
_MAX_CHECKED = 16  # schemas whose shortest outputs are kept
# Of one mask, in the scheduler's thread: about 5 ms.
_MAX_STATES = 10_000  # of the lexer, which outputs of a schema share: it grows as they do
_STEP_LIMITS = LLParserLimits(
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=_MAX_STATES,
    verbose_errors=False,
)
_GROWTH_BYTES = _MAX_STATES << 11  # the most that these states take, about 2 KB each
_MAX_CACHED_BYTES = 1 << 27  # of compiled schemas that are kept for later requests
# At most one blank between tokens of JSON: otherwise a model may fill its output with blanks.
_OPTIONS: Any = {"whitespace_pattern": r"[ \n]?"}
# llguidance's extension of schemas, which could set separators that JSON does not have.
_EXTENSION_KEY = "x-guidance"
# Token limits of the searches for a completion when a schema is compiled: greedy, and random.
# Outputs may be longer.
_MAX_COMPLETION, _MAX_RANDOM_COMPLETION = 4096, 512
# Budget of the failed searches of one output, in masks: initial, and per generated token.
_BUDGET, _BUDGET_PER_TOKEN = 64, 16
# Suffixes of the known completion that are tried after a sampled token.
_N_SUFFIXES = 24

# Tokens in the order in which they complete an output soonest: closing brackets and quotes, then
# the shortest values, those without nesting first.
_CLOSING, _SEPARATORS = ("}", "]"), (",", ":")
_NUMBERS = tuple("0123456789")
_WORDS, _NESTED = ("null", "true", "false"), ('""', "[]", "{}", "[", "{")
_QUOTE = '"'
# Strings with a restricted alphabet look like numbers: the first order closes them at once, the
# second prefers numbers as the shorter values. Random attempts use the third, for schemas that no
# fixed order completes.
_ORDERS = (
    (*_CLOSING, _QUOTE, *_SEPARATORS, *_NUMBERS, *_WORDS, *_NESTED),
    (*_CLOSING, *_SEPARATORS, *_NUMBERS, *_WORDS, '""', _QUOTE, *_NESTED),
    (*_CLOSING, _QUOTE, *_SEPARATORS),
)
_FIRST_RANDOM_ATTEMPT = 2
_N_ATTEMPTS, _N_DECODE_ATTEMPTS = 16, 3  # when a schema is compiled, and after a sampled token
_N_CUTS = 256  # tried to shorten the completion of a schema


@dataclasses.dataclass(frozen=True)
class Schema:
    """A schema that was compiled within the limits: the server's process compiles it again."""

    text: str
    shortest: list[int] | None  # tokens of a short output; None if none was found
    size_bytes: int  # when it is compiled


class CompiledSchema:
    """A schema that outputs of several requests follow."""

    def __init__(self, matcher: LLMatcher, size_bytes: int) -> None:
        self.matcher = matcher  # in its initial state
        self.size_bytes = size_bytes  # with the growth
        self.is_exhausted = False  # a limit was exceeded, for its lexer perhaps: compile it again


class Grammars:
    """Compiles schemas for guided decoding over one engine's vocabulary."""

    def __init__(self, engine: Engine) -> None:
        self.end_tokens = engine.end_tokens
        self._n_tokens = engine.config.vocab_size
        self._tokenizer = LLTokenizer(
            engine.tokenizer.to_str(),
            n_vocab=self._n_tokens,
            eos_token=sorted(engine.end_tokens) or None,
        )
        texts = [self.token_bytes(token) for token in range(self._n_tokens)]
        self._n_bytes = np.array([len(text) for text in texts])  # (V,)
        self._bytes = np.flatnonzero(self._n_bytes == 1)
        tokens = {text: token for token, text in enumerate(texts)}
        self._orders = [_token_order(tokens, order) for order in _ORDERS]
        self._quote, self._letter, self._comma = (tokens.get(t) for t in (b'"', b"q", b","))
        self._checked = lru_cache(_MAX_CHECKED)(self._check)
        self._cache: OrderedDict[str, CompiledSchema] = OrderedDict()  # the most recent is last
        self._compiled_bytes = 0  # of the cache, and of requests
        self._freed: list[int] = []  # bytes to subtract from these
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
        return lambda: GuidedJSON(self, compiled, schema.shortest or [])

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
                f"{param}: found no output of at most {_MAX_COMPLETION:,} tokens for the schema",
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

    def allowed(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """Return the mask (V,) of the tokens that may follow."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._n_tokens].astype(bool)

    def completes(self, matcher: LLMatcher, tokens: list[int]) -> bool:
        """Return whether tokens complete the output."""
        if self.end_tokens:
            end = min(self.end_tokens)
            return bool(matcher.validate_tokens([*tokens, end]) == len(tokens) + 1)
        matcher = matcher.deep_copy()
        return bool(matcher.consume_tokens(tokens)) and bool(matcher.is_accepting())

    def completion(
        self, matcher: LLMatcher, known: list[int], limit: int, budget: int, attempt: int
    ) -> list[int] | None:
        """Return at most `limit` tokens that complete the output; None if none were found.

        `known` completed it one token ago: a suffix of it that completes it again is returned,
        although it may be longer than `limit`. At most `budget` masks are computed. Advances the
        matcher.
        """
        rng = random.Random(attempt) if attempt >= _FIRST_RANDOM_ATTEMPT else None
        order = self._orders[min(attempt, _FIRST_RANDOM_ATTEMPT)]
        tokens: list[int] = []
        for _ in range(budget + 1):
            if len(tokens) > limit:
                return None
            if matcher.is_accepting():
                return tokens
            for start in range(min(len(known), _N_SUFFIXES)):
                # Most suffixes fail at their first token, which is cheaper to validate alone.
                is_allowed = matcher.validate_tokens(known[start : start + 1])
                if is_allowed and self.completes(matcher, suffix := known[start:]):
                    return [*tokens, *suffix]
            step = matcher.compute_ff_tokens() or self._next_token(matcher, order, rng)
            if not step or matcher.try_consume_tokens(step) < len(step):
                return None
            tokens += step
        return None

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
        return Schema(text, self._shortest(matcher), size)

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
        while self._freed:  # by any thread
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

    def _shortest(self, matcher: LLMatcher) -> list[int] | None:
        """Return the shortest output found; None if none was."""
        best: list[int] | None = None
        for attempt in range(_N_ATTEMPTS):
            if attempt == _FIRST_RANDOM_ATTEMPT and best is not None:
                break
            is_random = attempt >= _FIRST_RANDOM_ATTEMPT
            limit = _MAX_RANDOM_COMPLETION if is_random else _MAX_COMPLETION
            limit = limit if best is None else len(best) - 1
            found = self.completion(matcher.deep_copy(), [], limit, limit, attempt)
            best = best if found is None else found
        if best is None:
            return None
        best = self._shortened(matcher, best)
        # The tokenizer may need fewer tokens for the same text.
        tokens = self._tokenizer.tokenize_bytes(self._tokenizer.decode_bytes(best))
        return tokens if len(tokens) < len(best) and self.completes(matcher, tokens) else best

    def _shortened(self, matcher: LLMatcher, tokens: list[int]) -> list[int]:
        """Return an output without the optional members of its objects."""
        start = 0
        for _ in range(_N_CUTS):
            commas = [i for i in range(start, len(tokens)) if tokens[i] == self._comma]
            if not commas:
                break
            start = commas[0] + 1
            for end in commas[1:3]:
                if self.completes(matcher, cut := tokens[: commas[0]] + tokens[end:]):
                    tokens, start = cut, commas[0]
                    break
        return tokens

    def _next_token(
        self, matcher: LLMatcher, order: Sequence[int], rng: random.Random | None
    ) -> list[int]:
        """Return the allowed token that should complete the output soonest, if there is one."""
        allowed = self.allowed(matcher)
        quote, letter = self._quote, self._letter  # a letter that starts no value: in a string
        if quote is not None and letter is not None and allowed[quote] and allowed[letter]:
            return [quote]
        if rng is None or rng.random() < 0.5:
            for token in order:
                if allowed[token]:
                    return [token]
        if not allowed.any():
            return []
        if rng is not None and len(found := self._bytes[allowed[self._bytes]]):
            return [int(rng.choice(found))]
        return [int(np.where(allowed, self._n_bytes, -1).argmax())]  # for minLength


class GuidedJSON:
    """Guided decoding of one sequence by a schema: implements engine.decode.GuidedDecoding."""

    def __init__(self, grammars: Grammars, compiled: CompiledSchema, rest: list[int]) -> None:
        self._grammars = grammars
        self._compiled = compiled
        self._matcher = compiled.matcher.deep_copy()
        self._rest = list(rest)  # the known completion, which fits
        self._budget = _BUDGET

    def mask(self, logits: Logits) -> Logits:
        """Return logits (V,) with -infinity for every token that the schema does not allow."""
        allowed = self._grammars.allowed(self._matcher)
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
        if token in self._grammars.end_tokens and self._matcher.is_accepting():
            return token
        self._budget = min(self._budget + _BUDGET_PER_TOKEN, _BUDGET)
        if self._rest[:1] == [token]:
            del self._rest[0]
        elif (rest := self._completion_after(token, n_left - 1)) is not None:
            self._rest = rest
        elif self._rest:
            return self._rest.pop(0)
        else:
            return min(self._grammars.end_tokens, default=token)
        return token

    def accept(self, token: int) -> bool:
        """Append a token; return whether the output is complete."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():  # then the matcher counts as stopped, too
            return not self._rest
        if not self._grammars.end_tokens and self._matcher.is_accepting():
            return True  # the vocabulary has no end token
        return bool(self._matcher.is_stopped())

    def _completion_after(self, token: int, limit: int) -> list[int] | None:
        """Return at most `limit` tokens that complete the output after that token."""
        for attempt in range(_N_DECODE_ATTEMPTS):
            matcher = self._matcher.deep_copy()
            if not matcher.consume_token(token):
                return None
            found = self._grammars.completion(matcher, self._rest, limit, self._budget, attempt)
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


def _token_order(tokens: dict[bytes, int], texts: Sequence[str]) -> list[int]:
    """Return the token of each text, or of its first character if it is not one token."""
    found = [tokens.get(text.encode(), tokens.get(text[:1].encode())) for text in texts]
    return list(dict.fromkeys(token for token in found if token is not None))
