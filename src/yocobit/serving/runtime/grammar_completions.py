"""Completions of structured outputs: the tokens after which an incomplete output is complete.

Letters: V vocabulary
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

# Token limit of the greedy searches for a completion of JSON. Outputs may be longer.
MAX_COMPLETION = 4096
# Suffixes of the known completion that are tried after a sampled token.
_N_SUFFIXES = 24

# Tokens in the order in which they complete an output soonest: closing brackets and quotes, then
# the shortest values, those without nesting first.
_CLOSING, _SEPARATORS = ("}", "]"), (",", ":")
_NUMBERS = tuple("0123456789")
_WORDS, _NESTED = ("null", "true", "false"), ('""', "[]", "{}", "[", "{")
_QUOTE = '"'
# What ends the parts of times and addresses: not tried again within the next tokens.
_SIGNS_ONCE, _N_RECENT = ("Z", "D", "@", "."), 4
# Strings with a restricted alphabet look like numbers: the first order closes them at once, the
# second prefers numbers as the shorter values. Random attempts use the third, for schemas that no
# fixed order completes.
_JSON_ORDERS = (
    (*_CLOSING, _QUOTE, *_SEPARATORS, *_SIGNS_ONCE, *_NUMBERS, *_WORDS, *_NESTED),
    (*_CLOSING, *_SEPARATORS, *_SIGNS_ONCE, *_NUMBERS, *_WORDS, '""', _QUOTE, *_NESTED),
    (*_CLOSING, _QUOTE, *_SEPARATORS),
)
# The same for other texts: characters that end a part, separators, then the characters of a part.
# A line break may end a text or be repeated forever: the first order prefers it, the second avoids
# it.
_QUOTES, _CLOSES = tuple("\"'"), tuple(")]}>")
_SIGNS, _WHITE = tuple(".,:;-_@/+*=&%$#!?|~^"), (" ", "\t")
_LETTERS, _OPENING = tuple("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"), tuple("([{<")
_TEXT_ORDERS = (
    ("\n", *_QUOTES, *_CLOSES, *_SIGNS, *_NUMBERS, *_LETTERS, *_OPENING, *_WHITE),
    (*_SIGNS, *_CLOSES, *_QUOTES, *_NUMBERS, *_LETTERS, *_OPENING, *_WHITE, "\n"),
    (*_CLOSES, *_QUOTES, *_SIGNS),
)
_FIRST_RANDOM_ATTEMPT = 2
_N_CUTS = 256  # tried to shorten the completion of a schema


@dataclasses.dataclass(frozen=True)
class _Search:
    """The effort of the searches for the shortest output, when a grammar is compiled."""

    orders: Sequence[Sequence[str]]  # of greedy searches; the last one is that of random searches
    n_attempts: int
    max_greedy: int  # tokens
    max_random: int


_JSON = _Search(_JSON_ORDERS, 16, MAX_COMPLETION, 512)
_TEXT = _Search(_TEXT_ORDERS, 6, 512, 128)


class GrammarCompletions:
    """Finds short completions over one vocabulary, by greedy and random searches.

    `is_json` tells whether outputs are JSON, whose values and brackets are known.
    """

    def __init__(self, tokenizer: LLTokenizer, n_tokens: int, end_tokens: frozenset[int]) -> None:
        self.end_tokens = end_tokens
        self.n_tokens = n_tokens
        self._tokenizer = tokenizer
        texts = [bytes(tokenizer.decode_bytes([token])) for token in range(n_tokens)]
        self._n_bytes = np.array([len(text) for text in texts])  # (V,)
        self._bytes = np.flatnonzero(self._n_bytes == 1)
        tokens = {text: token for token, text in enumerate(texts)}
        self._orders = {
            search: [_token_order(tokens, order) for order in search.orders]
            for search in (_JSON, _TEXT)
        }
        self._once = frozenset(_token_order(tokens, _SIGNS_ONCE))
        self._string_order = _token_order(tokens, (*_SIGNS_ONCE, ":", "a", *_NUMBERS))
        self._quote, self._letter, self._comma = (tokens.get(t) for t in (b'"', b"q", b","))

    def allowed(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """Return the mask (V,) of the tokens that may follow."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self.n_tokens].astype(bool)

    def completes(self, matcher: LLMatcher, tokens: list[int]) -> bool:
        """Return whether tokens complete the output."""
        if self.end_tokens:
            end = min(self.end_tokens)
            return bool(matcher.validate_tokens([*tokens, end]) == len(tokens) + 1)
        matcher = matcher.deep_copy()
        return bool(matcher.consume_tokens(tokens)) and bool(matcher.is_accepting())

    def find(
        self,
        matcher: LLMatcher,
        known: list[int],
        limit: int,
        budget: int,
        attempt: int,
        is_json: bool,
    ) -> list[int] | None:
        """Return at most `limit` tokens that complete the output; None if none were found.

        `known` completed it one token ago: a suffix of it that completes it again is returned,
        although it may be longer than `limit`. At most `budget` masks are computed. Advances the
        matcher.
        """
        rng = random.Random(attempt) if attempt >= _FIRST_RANDOM_ATTEMPT else None
        order = self._orders[_JSON if is_json else _TEXT][min(attempt, _FIRST_RANDOM_ATTEMPT)]
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
            step = matcher.compute_ff_tokens() or self._next_token(
                matcher, order, rng, tokens[-_N_RECENT:] if is_json else None
            )
            if not step or matcher.try_consume_tokens(step) < len(step):
                return None
            tokens += step
        return None

    def shortest(self, matcher: LLMatcher, is_json: bool) -> list[int] | None:
        """Return the shortest output found; None if none was."""
        search = _JSON if is_json else _TEXT
        best: list[int] | None = None
        for attempt in range(search.n_attempts):
            if attempt == _FIRST_RANDOM_ATTEMPT and best is not None:
                break
            limit = search.max_greedy if attempt < _FIRST_RANDOM_ATTEMPT else search.max_random
            limit = limit if best is None else len(best) - 1
            found = self.find(matcher.deep_copy(), [], limit, limit, attempt, is_json)
            best = best if found is None else found
        if best is None:
            return None
        best = self._shortened(matcher, best) if is_json else best
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
        self,
        matcher: LLMatcher,
        order: Sequence[int],
        rng: random.Random | None,
        recent: list[int] | None,
    ) -> list[int]:
        """Return the allowed token that should complete the output soonest, if there is one.

        `recent` are the last tokens of JSON; None for other texts.
        """
        allowed = self.allowed(matcher)
        quote, letter = self._quote, self._letter  # a letter that starts no value: in a string
        if recent is not None and quote is not None and letter is not None and allowed[letter]:
            if allowed[quote]:
                return [quote]
            order = [*self._string_order, *order]
        tried = self._once.intersection(recent or ())
        if rng is None or rng.random() < 0.5:
            for token in order:
                if allowed[token] and token not in tried:
                    return [token]
        if not allowed.any():
            return []
        if rng is not None and len(found := self._bytes[allowed[self._bytes]]):
            return [int(rng.choice(found))]
        return [int(np.where(allowed, self._n_bytes, -1).argmax())]  # for minLength


def _token_order(tokens: dict[bytes, int], texts: Sequence[str]) -> list[int]:
    """Return the token of each text, or of its first character if it is not one token."""
    found = [tokens.get(text.encode(), tokens.get(text[:1].encode())) for text in texts]
    return list(dict.fromkeys(token for token in found if token is not None))
