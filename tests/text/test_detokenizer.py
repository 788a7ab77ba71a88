"""Detokenizer: streamed text equals the decoded whole minus the prompt; stop strings."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tokenizers import KINDS, TEXT, sample_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from yocobit.text import Detokenizer
from yocobit.text.stop_strings import StopMatcher, partial_match

TOKENIZERS = {kind: sample_tokenizer(kind) for kind in KINDS}


def streamed(tokenizer, prompt, tokens, stop=()) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(tokenizer, stop, prompt)
    pieces = []
    for token in tokens:
        pieces.append(detokenizer.add(token))
        if detokenizer.matched_stop is not None:
            break
    return [*pieces, detokenizer.finish()], detokenizer


def expected(tokenizer, prompt, tokens) -> str:
    """The definition: decode(prompt + tokens) without what it has in common with decode(prompt)."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + tokens)
    pairs = enumerate(zip(before, whole, strict=False))
    return whole[next((i for i, (a, b) in pairs if a != b), min(len(before), len(whole))) :]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_decoded_whole_minus_the_prompt(kind, data):
    tokenizer = TOKENIZERS[kind]
    token = st.integers(0, tokenizer.get_vocab_size() + 3)  # some ids have no token
    byte = st.integers(3, 258)
    tokens = st.lists(st.one_of(token, token, byte), max_size=90)
    prompt, generated = data.draw(tokens), data.draw(tokens)

    pieces, _ = streamed(tokenizer, prompt, generated)

    assert "".join(pieces) == expected(tokenizer, prompt, generated)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_prompt", [0, 1, 7, 60])
def test_text_is_streamed_as_it_is_generated(kind, n_prompt):
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(TEXT, add_special_tokens=False).ids

    pieces, _ = streamed(tokenizer, tokens[:n_prompt], tokens[n_prompt:])

    assert "".join(pieces) == expected(tokenizer, tokens[:n_prompt], tokens[n_prompt:])
    assert max(map(len, pieces)) < 30
    if kind != "sentencepiece":  # holds back runs of byte tokens
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_space_between_prompt_and_continuation_is_kept():
    tokenizer = TOKENIZERS["sentencepiece"]
    prompt = tokenizer.encode("In the").ids
    tokens = tokenizer.encode("In the earth").ids[len(prompt) :]

    assert "".join(streamed(tokenizer, prompt, tokens)[0]) == " earth"


@pytest.mark.parametrize(
    ("prompt", "tokens", "text"),
    [
        (["a", "<0xE6>"], ["<0x97>", "<0xA5>", "b"], "日b"),  # the character is the continuation's
        (["a", "<0xC3>", "<0xA9>"], ["b"], "b"),
        (["a", "<0xC3>", "<0xA9>"], ["<0xF1>", "b"], "\ufffd\ufffd\ufffdb"),  # decodes to 3 + "b"
        (["a"], ["<0xC3>"], "\ufffd"),
        (["a"], ["<0x66>", "<0x6B>", "<0xF1>", "a"], "\ufffd\ufffd\ufffda"),
        ([], ["<0xE7>"] * 3, "\ufffd" * 3),
    ],
)
def test_a_run_of_byte_tokens_has_its_text_when_it_ends(prompt, tokens, text):
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = [[tokenizer.token_to_id(name) for name in names] for names in (prompt, tokens)]

    pieces, _ = streamed(tokenizer, *ids)

    assert "".join(pieces) == text == expected(tokenizer, *ids)


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram", "wordpiece"])
def test_cost_of_a_token_does_not_grow_with_the_text(kind):
    decoded = decoded_tokens(kind)

    assert max(decoded) < 60 and sum(decoded) < 50 * len(TOKENIZERS[kind].encode(TEXT * 4).ids)


def test_byte_level_tokens_are_not_decoded_again():
    assert not decoded_tokens("byte_level")


def decoded_tokens(kind: str) -> list[int]:
    """Stream a text; return the tokens of each call of the tokenizer's decode."""
    tokenizer, tokens = Counted(kind), TOKENIZERS[kind].encode(TEXT * 4).ids
    detokenizer = Detokenizer(tokenizer, prompt=tokens * 5)
    for token in tokens:
        detokenizer.add(token)
    return tokenizer.decoded


class Counted:
    """A tokenizer that counts."""

    def __init__(self, kind: str) -> None:
        self._tokenizer = TOKENIZERS[kind]
        self.decoded: list[int] = []  # tokens of each call
        self.n_added_read = 0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def decode(self, tokens, **options):
        self.decoded.append(len(tokens))
        return self._tokenizer.decode(tokens, **options)

    def get_added_tokens_decoder(self):
        self.n_added_read += 1
        return self._tokenizer.get_added_tokens_decoder()


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_tokens_of_an_earlier_text_are_not_decoded_again(kind):
    tokenizer = Counted(kind)
    ids = tokenizer.encode("It knows the earth. In the heaven, it knows.").ids
    tokens = [token for token in ids if TOKENIZERS[kind].decode([token])]
    first = [Detokenizer(tokenizer, prompt=tokens).add(token) for token in tokens]
    tokenizer.decoded.clear()

    detokenizer = Detokenizer(tokenizer, prompt=tokens)
    n_of_prompt = len(tokenizer.decoded)
    second = [detokenizer.add(token) for token in tokens]

    assert "".join(second) == "".join(first)
    assert len(tokenizer.decoded) == n_of_prompt == 1


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_are_read_once(kind):
    tokenizer = Counted(kind)

    for _ in range(3):
        Detokenizer(tokenizer)

    assert tokenizer.n_added_read == 1


def test_detokenizers_keep_no_tokenizer_in_memory():
    tokenizer = sample_tokenizer("wordpiece")
    streamed(tokenizer, [5, 6], [5, 6, 7])
    reference = weakref.ref(tokenizer)

    del tokenizer
    gc.collect()

    assert reference() is None


SPACE, BYTES_, FUSE = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([SPACE, BYTES_, FUSE]),  # Gemma
        decoders.Sequence([SPACE, BYTES_, FUSE, decoders.Strip(" ", 3, 0)]),
        decoders.Sequence([BYTES_, FUSE, SPACE]),
        decoders.Sequence([SPACE, BYTES_, FUSE, decoders.Replace("e", "E")]),
        decoders.Sequence([SPACE, FUSE]),
        decoders.Sequence([decoders.Metaspace()]),
        decoders.Metaspace(prepend_scheme="never"),
        decoders.WordPiece(cleanup=False),
        decoders.WordPiece(prefix="t"),
    ],
    ids=str,
)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_text_of_other_decoders_is_the_decoded_whole_minus_the_prompt(decoder, data):
    tokenizer = sample_tokenizer("sentencepiece")
    tokenizer.decoder = decoder
    token = st.integers(0, tokenizer.get_vocab_size() + 3)
    tokens = st.lists(st.one_of(token, token, st.integers(3, 258)), max_size=40)
    prompt, generated = data.draw(tokens), data.draw(tokens)

    for _ in range(2):  # the second from the texts of the first
        assert "".join(streamed(tokenizer, prompt, generated)[0]) == expected(
            tokenizer, prompt, generated
        )


BYTE_LEVEL = sample_tokenizer("byte_level")
BYTE_LEVEL.add_tokens(
    [" sp ", "é", "é漢", "\ufffd", "🙂"]
)  # names that are not, or only partly, bytes'
BYTES = [BYTE_LEVEL.token_to_id(name) for name in sorted(pre_tokenizers.ByteLevel.alphabet())]
ADDED = range(BYTE_LEVEL.get_vocab_size() - 9, BYTE_LEVEL.get_vocab_size())


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_any_bytes_are_streamed_as_the_library_decodes_them(data):
    tokens = st.lists(st.sampled_from([*BYTES, *ADDED]), max_size=12)
    prompt, generated = data.draw(tokens), data.draw(tokens)

    pieces, _ = streamed(BYTE_LEVEL, prompt, generated)

    assert "".join(pieces) == expected(BYTE_LEVEL, prompt, generated)


@pytest.mark.parametrize("tokens", [["<0xE6>"], ["▁"], ["<0x0A>", "a"], ["<0xE6>", "▁"]])
def test_odd_texts_stay_linear(tokens):
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = [tokenizer.token_to_id(name) for name in tokens] * 2000

    pieces, _ = streamed(tokenizer, [], ids)

    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_decoder_that_joins_tokens_in_other_ways_does_not_raise():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")])

    assert isinstance("".join(streamed(tokenizer, [0], [1, 0, 1])[0]), str)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_stop_strings_end_the_text_where_the_first_starts(pieces, stop):
    matcher, text = StopMatcher(stop), ""
    for piece in pieces:
        start = len(text)
        text += piece
        found = matcher.find(piece)
        starts = [(text.find(each), each) for each in stop if each in text]
        if starts:
            at, each = min(starts)
            assert found == (at - start, each)
            return
        assert found is None
        assert matcher.n_matched == partial_match(text, [f"{each}." for each in stop])


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_are_never_shown(kind):
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(TEXT, add_special_tokens=False).ids
    whole = tokenizer.decode(tokens)

    for stop in ("created the", "zz", "earth was", "12"):
        pieces, detokenizer = streamed(tokenizer, [], tokens, [stop, "not there"])

        assert "".join(pieces) == whole.split(stop)[0]
        assert detokenizer.matched_stop == (stop if stop in whole else None)


def test_a_stop_string_of_byte_tokens_ends_the_text_at_once():
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = [tokenizer.token_to_id(name) for name in ("a", "<0x0A>", "<0x0A>", "<0x0A>", "a")]

    pieces, detokenizer = streamed(tokenizer, [], ids, ["\n\n"])

    assert "".join(pieces) == "a"
    assert (len(detokenizer.tokens), detokenizer.matched_stop) == (3, "\n\n")


def test_many_long_stop_strings_cost_no_more_than_their_length():
    stop = ["a" * n + "b" for n in range(1, 200)]
    matcher = StopMatcher(stop)

    assert matcher.find("a" * 100_000) is None  # each with each suffix: 2e9 comparisons
    assert matcher.n_matched == 199


def test_an_invalid_end_of_the_prompt_is_not_repeated():
    names = ["í", "°", "a"]  # bytes ED B0, of no character, and "a"
    first, second, last = (BYTE_LEVEL.token_to_id(name) for name in names)

    assert "".join(streamed(BYTE_LEVEL, [first, second], [last])[0]) == "a"
