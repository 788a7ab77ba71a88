"""Answers that must be JSON: what may follow is masked token by token, by llguidance.

An answer also ends in time: some tokens that complete it are always known and fit; a token drawn
behind which none are found that fit gives way to the first of them.

Letters: V vocabulary
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from yocobit.engine import Engine
from yocobit.serving.errors import APIError
from yocobit.serving.generation import Logits

MAX_SCHEMA_BYTES = 1 << 18
_MAX_PROBLEM = 300  # characters that a client is told of what llguidance says of its schema
_MAX_SCHEMAS = 16  # kept compiled; some take megabytes
# One blank at most between tokens of JSON: a model may not fill an answer with blanks.
_OPTIONS: Any = {"whitespace_pattern": r"[ \n]?"}
# llguidance's own key in a schema, which could have other separators than JSON has.
_OWN_KEY = "x-guidance"
# Tokens of the longest answer that is looked for when a schema comes, and of the longest try by
# chance. A server's answers may be longer.
_LONGEST, _LONGEST_BY_CHANCE = 4096, 512
# Tokens that vain searches of one answer may try: at first, and more with each token drawn.
_EFFORT, _EFFORT_PER_TOKEN = 4096, 32
# Ends of known tokens that are tried behind a token drawn.
_N_ENDS = 24

# What ends an answer soonest, by its first token: ends of lists, objects and strings, then the
# shortest values, those without nesting first.
_ENDS, _NEXT = ("}", "]"), (",", ":")
_NUMBERS = tuple("0123456789")
_WORDS, _NESTED = ("null", "true", "false"), ('""', "[]", "{}", "[", "{")
_QUOTE = '"'
# Strings whose letters are not free look like numbers: in the first order they end at once, in the
# second, numbers are the shorter values. The third is for what no fixed order completes.
_ORDERS = (
    (*_ENDS, _QUOTE, *_NEXT, *_NUMBERS, *_WORDS, *_NESTED),
    (*_ENDS, *_NEXT, *_NUMBERS, *_WORDS, '""', _QUOTE, *_NESTED),
    (*_ENDS, _QUOTE, *_NEXT),
)
_BY_CHANCE = 2  # attempts from this one on are
_N_ATTEMPTS, _N_LATER_ATTEMPTS = 16, 3  # when a schema comes, and behind a token drawn
_N_CUTS = 256  # of an answer that are tried to shorten it


@dataclasses.dataclass(frozen=True)
class _Grammar:
    """A schema that can be followed."""

    matcher: LLMatcher  # at its begin
    shortest: list[int] | None  # tokens of a short answer; None if none was found


class Grammars:
    """Makes constraints for the tokens of one engine."""

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
        self._orders = [_known(tokens, order) for order in _ORDERS]
        self._quote, self._letter, self._comma = (tokens.get(t) for t in (b'"', b"q", b","))
        self._grammar = lru_cache(_MAX_SCHEMAS)(self._compile)

    def follow(
        self, schema: dict[str, Any] | bool, param: str, max_tokens: int
    ) -> Callable[[], JSONConstraint]:
        """Return what makes constraints by a JSON schema, for answers of at most `max_tokens`.

        APIError 400 naming `param` if the schema is none, or needs more tokens.
        """
        if isinstance(schema, dict):
            schema = {key: value for key, value in schema.items() if key != _OWN_KEY}
        grammar = self._grammar(_encode({} if schema is True else schema, param))
        if isinstance(grammar, str):
            raise APIError(
                400, f"{param}: is not a schema that can be followed ({grammar})", param=param
            )
        if (shortest := grammar.shortest) is None:
            raise APIError(
                400,
                f"{param}: no answer of at most {_LONGEST:,} tokens that follows it was found",
                param=param,
            )
        if len(shortest) > max_tokens:
            raise APIError(
                400,
                f"{param}: the shortest answer found has {len(shortest)} tokens, but max_tokens is "
                f"{max_tokens}; allow more",
                param="max_tokens",
            )
        return lambda: JSONConstraint(self, grammar.matcher.deep_copy(), shortest)

    def allowed(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """Return which tokens (V,) may follow."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._n_tokens].astype(bool)

    def completes(self, matcher: LLMatcher, tokens: list[int]) -> bool:
        """Return whether tokens complete an answer."""
        if self.end_tokens:
            end = min(self.end_tokens)
            return bool(matcher.validate_tokens([*tokens, end]) == len(tokens) + 1)
        matcher = matcher.deep_copy()
        return bool(matcher.consume_tokens(tokens)) and bool(matcher.is_accepting())

    def completion(
        self, matcher: LLMatcher, known: list[int], limit: int, effort: int, attempt: int
    ) -> list[int] | None:
        """Return tokens that complete an answer, at most `limit`; None if none were found.

        `known` completed it a token ago: where an end of it does again, that is taken, though it
        may be longer than `limit`. At most `effort` tokens are tried. The matcher is moved.
        """
        chance = random.Random(attempt) if attempt >= _BY_CHANCE else None
        order = self._orders[min(attempt, _BY_CHANCE)]
        tokens: list[int] = []
        while len(tokens) <= min(limit, effort):
            if matcher.is_accepting():
                return tokens
            for begin in range(min(len(known), _N_ENDS)):
                # Most begin with what may not follow; that is known sooner than all of it.
                begins = matcher.validate_tokens(known[begin : begin + 1])
                if begins and self.completes(matcher, end := known[begin:]):
                    return [*tokens, *end]
            step = matcher.compute_ff_tokens() or self._next_token(matcher, order, chance)
            if not step or matcher.try_consume_tokens(step) < len(step):
                return None
            tokens += step
        return None

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for."""
        return bytes(self._tokenizer.decode_bytes([token]))

    def _compile(self, schema: str) -> _Grammar | str:
        """Return the grammar of a schema, or what is wrong."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
        except ValueError as error:
            return str(error)[:_MAX_PROBLEM]
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            return str(matcher.get_error())[:_MAX_PROBLEM]
        return _Grammar(matcher, self._shortest(matcher))

    def _shortest(self, matcher: LLMatcher) -> list[int] | None:
        """Return the shortest of the answers found; None if none was."""
        best: list[int] | None = None
        for attempt in range(_N_ATTEMPTS):
            if attempt == _BY_CHANCE and best is not None:
                break
            longest = _LONGEST if attempt < _BY_CHANCE else _LONGEST_BY_CHANCE
            limit = longest if best is None else len(best) - 1
            found = self.completion(matcher.deep_copy(), [], limit, limit, attempt)
            best = best if found is None else found
        if best is None:
            return None
        best = self._shortened(matcher, best)
        # The same text may take fewer tokens.
        tokens = self._tokenizer.tokenize_bytes(self._tokenizer.decode_bytes(best))
        return tokens if len(tokens) < len(best) and self.completes(matcher, tokens) else best

    def _shortened(self, matcher: LLMatcher, tokens: list[int]) -> list[int]:
        """Return an answer without members of its objects that need not be there."""
        begin = 0
        for _ in range(_N_CUTS):
            commas = [i for i in range(begin, len(tokens)) if tokens[i] == self._comma]
            if not commas:
                break
            begin = commas[0] + 1
            for end in commas[1:3]:
                if self.completes(matcher, cut := tokens[: commas[0]] + tokens[end:]):
                    tokens, begin = cut, commas[0]
                    break
        return tokens

    def _next_token(
        self, matcher: LLMatcher, order: Sequence[int], chance: random.Random | None
    ) -> list[int]:
        """Return the token that should lead to an end, if any may follow."""
        allowed = self.allowed(matcher)
        quote, letter = self._quote, self._letter  # which begins no value: it stands in a string
        if quote is not None and letter is not None and allowed[quote] and allowed[letter]:
            return [quote]
        if chance is None or chance.random() < 0.5:
            for token in order:
                if allowed[token]:
                    return [token]
        if not allowed.any():
            return []
        if chance is not None and len(found := self._bytes[allowed[self._bytes]]):
            return [int(chance.choice(found))]
        return [int(np.where(allowed, self._n_bytes, -1).argmax())]  # strings have a least length


class JSONConstraint:
    """One answer that follows a schema. Each token is settled, then accepted."""

    def __init__(self, grammars: Grammars, matcher: LLMatcher, rest: list[int]) -> None:
        self._grammars = grammars
        self._matcher = matcher
        self._rest = list(rest)  # tokens that complete the answer, and fit
        self._effort = _EFFORT

    def apply(self, logits: Logits) -> Logits:
        """Return logits (V,) in which tokens that must not follow are -infinity."""
        allowed = self._grammars.allowed(self._matcher)
        if self._matcher.is_error() and self._rest:  # a limit of llguidance; what is known follows
            allowed[:] = False
            allowed[self._rest[:1]] = True
        return np.where(allowed, logits, np.float32(-np.inf))

    def settle(self, token: int, left: int) -> int:
        """Return the token that follows: the one drawn, unless no completion would fit behind it.

        `left` tokens may follow, this one included.
        """
        if self._matcher.is_error():
            return self._rest.pop(0) if self._rest else token
        if token in self._grammars.end_tokens and self._matcher.is_accepting():
            return token
        self._effort = min(self._effort + _EFFORT_PER_TOKEN, _EFFORT)
        if self._rest[:1] == [token]:
            del self._rest[0]
        elif (rest := self._rest_behind(token, left - 1)) is not None:
            self._rest = rest
        elif self._rest:
            return self._rest.pop(0)
        else:
            return min(self._grammars.end_tokens, default=token)
        return token

    def accept(self, token: int) -> bool:
        """Take in the token that follows; return whether the answer is complete."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():  # then it counts as stopped, too
            return not self._rest
        if not self._grammars.end_tokens and self._matcher.is_accepting():
            return True  # no token could say so
        return bool(self._matcher.is_stopped())

    def _rest_behind(self, token: int, limit: int) -> list[int] | None:
        """Return at most `limit` tokens that complete the answer behind that token."""
        for attempt in range(_N_LATER_ATTEMPTS):
            matcher = self._matcher.deep_copy()
            if not matcher.consume_token(token):
                return None
            found = self._grammars.completion(matcher, self._rest, limit, self._effort, attempt)
            if found is not None:
                return found if len(found) <= limit else None
            self._effort -= min(limit, self._effort)
        return None


...


def _encode(schema: dict[str, Any] | bool, param: str) -> str:
    """Return a schema as JSON; APIError 400 if it is too large."""
    try:
        text = msgspec.json.encode(schema)
    except RecursionError:
        raise APIError(400, f"{param}: the schema is nested too deep", param=param) from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise APIError(
            400,
            f"{param}: a schema may have {MAX_SCHEMA_BYTES:,} bytes, but this has {len(text):,}",
            param=param,
        )
    return text.decode()


def _known(tokens: dict[bytes, int], texts: Sequence[str]) -> list[int]:
    """Return the tokens of texts, by their first letters if they are several."""
    found = [tokens.get(text.encode(), tokens.get(text[:1].encode())) for text in texts]
    return list(dict.fromkeys(token for token in found if token is not None))
