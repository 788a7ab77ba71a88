"""Reading tokenizer.json files: every option that loses text or is random is off.

`truncation`, `padding`, BPE's `dropout` and Unigram's sampling are ignored: a text always has the
same tokens, all of them. A tokenizer that loses text is rejected:

* A character that the normalizer changes to another (lowercase, NFC, no accents) is not lost.
* A character that becomes the unknown token, or tokens of its bytes, is not lost.
* A printable character without any token is lost, and so are bytes of a character, and the blanks
  between two words.
* A step of the normalizer or pre-tokenizer that removes what it matches loses text.
* Blanks at the ends of a text are lost unless unknown characters become the unknown token.

Published byte-level tokenizers lack tokens for bytes that no text of their training had. If only
control characters and code points without an assigned character need them, the tokenizer is used
as it is; an import warns of these characters.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram

from yocobit.errors import ConfigError, shown
from yocobit.reading import boundary, read_text

_REPLACEMENT = "\ufffd"  # decoded from invalid UTF-8
_LETTERS = "éßñøžαΩжЯאשعمकिไท한글あア日本語漢字🙂🚀"
_BLANKS = ("a  b", "a\n\nb", "a\r\nb")
_ENDS = ("a\n", "a  ", "\na", "  a", "\n\n", "   ")
_WORDS = ("a b", "a\nb", "2024", "3.14159", "don't", "naïve", "foo_bar(x)", "http://x.y/?q=1")
# Every lead byte of assigned characters, and every continuation byte of UTF-8; normalizers may
# remove these characters.
_TWO_BYTES = (*range(0xAF, 0x800, 64), *range(0x400, 0x440))
_THREE_BYTES = (*range(0xA00, 0xD000, 0x1000), 0xD5D0, 0xFA00)
_FOUR_BYTES = (0x1F600, 0xE0067)
_ALL_BYTES = [chr(code) for code in (*_TWO_BYTES, *_THREE_BYTES, *_FOUR_BYTES)]
# Code points whose lead byte no assigned character has, by one of them.
_WITHOUT_CHARACTERS = {
    "\uea00": "U+E000 to U+EFFF (private use)",
    "\U00040000": "U+40000 to U+7FFFF (unassigned)",
    "\U00080000": "U+80000 to U+BFFFF (unassigned)",
    "\U00100000": "U+100000 to U+10FFFF (private use)",
}
_CONTROL = [chr(code) for code in (*range(0x20), 0x7F)]
_PROBED_TOKENS = 1000  # the shortest ones, in most vocabularies
_MAX_REPLACEMENT = 64  # characters, that one becomes
_NESTED = ("normalizers", "pretokenizers", "decoders")  # the steps of a sequence
_ADDED_TO = "a"  # a text for added_tokens
_STDERR = threading.Lock()


def read_tokenizer(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """Read a tokenizer.json; its ids must be below `vocab_size`, if given.

    ConfigError if it is damaged; OSError as from open(). Call check_lossless before encoding text.
    """
    return parse_tokenizer(read_text(path), path, vocab_size)


def parse_tokenizer(content: str, subject: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, checked as by read_tokenizer."""
    with boundary(subject, "is not a tokenizer.json"), without_panic_messages():
        tokenizer: Tokenizer = Tokenizer.from_str(content)
        _neutralise(tokenizer)
        _check_replacements(tokenizer)
    if vocab_size is not None:
        _check_ids(tokenizer, subject, vocab_size)
    with boundary(subject, "cannot decode its tokens"), without_panic_messages():
        tokenizer.decode_batch([[], *([token] for token in range(_PROBED_TOKENS))])
    return tokenizer


def check_lossless(tokenizer: Tokenizer, subject: str | Path) -> list[str]:
    """ConfigError, with an example, if a tokenizer loses text or cannot encode it.

    Returns the control characters and the unassigned and private code points that it loses, as one
    line, or an empty list.
    """
    with boundary(subject, "cannot encode text"), without_panic_messages():
        example = _lost(tokenizer)
        rare = _lost_rare(tokenizer)
        removed = _removed(tokenizer)
    if example is not None:
        text, decoded = (shown(each) for each in example)
        raise ConfigError(
            f"{subject}: loses text: {text} becomes {decoded}; use a tokenizer with a token for "
            "every byte, or with an unknown token other than its EOS token"
        )
    if removed is not None:
        raise ConfigError(
            f"{subject}: loses text: a step removes {removed}; use a tokenizer without this step"
        )
    lost = f"{subject} drops characters that texts rarely have: {', '.join(rare)}"
    return [lost] if rare else []


class AddedTokens(NamedTuple):
    """The special tokens that a tokenizer adds to each text, as `tokenizer(text)` of transformers.

    They are those of the post-processor; `add_bos_token` in a tokenizer_config.json has no effect
    on a tokenizer.json.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


def added_tokens(tokenizer: Tokenizer, subject: str | Path) -> AddedTokens:
    """Return the tokens that a tokenizer adds to each text; ConfigError if it cannot encode it."""
    with boundary(subject, "cannot encode text"), without_panic_messages():
        n_text = len(tokenizer.encode(_ADDED_TO, add_special_tokens=False))
        encoding = tokenizer.encode(_ADDED_TO)
    n_before = [*encoding.special_tokens_mask, 0].index(0)
    return AddedTokens(tuple(encoding.ids[:n_before]), tuple(encoding.ids[n_before + n_text :]))


def n_ids(tokenizer: Tokenizer) -> int:
    """Return the least vocab_size of a model with a tokenizer: its largest id + 1."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _neutralise(tokenizer: Tokenizer) -> None:
    """Turn off what makes encoding lossy or random."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = tokenizer.model
    if isinstance(model, BPE):
        model.dropout = None
    elif isinstance(model, Unigram):
        model.alpha = model.nbest_size = None


def _check_replacements(tokenizer: Tokenizer) -> None:
    """ValueError if one character can become too many for a text to fit into memory."""
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder):
        if (size := _growth(_steps(json.loads(part.__getstate__())) if part else [])) > (
            _MAX_REPLACEMENT
        ):
            raise ValueError(f"it replaces text by {size} characters, more than {_MAX_REPLACEMENT}")


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or decoder in order, sequences flattened."""
    if isinstance(part, list):
        return [step for each in part for step in _steps(each)]
    nested = next((part[key] for key in _NESTED if key in part), None)
    return [part] if nested is None else _steps(nested)


def _growth(steps: list[dict[str, Any]]) -> int:
    """Return the most characters that one can become by steps that replace text by a content.

    A later step can replace the content of an earlier one unless its pattern has other characters.
    """
    made: list[tuple[set[str] | None, int]] = []  # per step: characters, None if any; how many
    for step in steps:
        if (content := step.get("content", step.get("prepend"))) is None:
            made = [(None, n) for _, n in made]  # such as a change of case
            continue
        pattern = step.get("pattern")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        before = max(
            (n for characters, n in made if not text or not characters or characters & {*text}),
            default=1,
        )
        made.append(({*content}, before * max(1, len(content))))
    return max((n for _, n in made), default=1)


def _check_ids(tokenizer: Tokenizer, subject: str | Path, vocab_size: int) -> None:
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise ConfigError(
            f"{subject}: has {size} tokens but the model's vocab_size is {vocab_size}"
        )
    if (largest := n_ids(tokenizer) - 1) >= vocab_size:
        name = shown(tokenizer.id_to_token(largest))
        raise ConfigError(
            f"{subject}: ids must be below the model's vocab_size {vocab_size} but {name} has "
            f"{largest}"
        )


def _lost(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """Return a text that loses something and its decoded form; None if all probes are kept."""
    is_exact = _is_exact(tokenizer)
    letters = [chr(code) for code in range(0x21, 0x7F)] + list(_LETTERS)
    texts = [*_WORDS, *_BLANKS, *letters, *((*_ENDS, *_ALL_BYTES) if is_exact else ())]
    for text, decoded in _round_trips(tokenizer, texts):
        left = decoded.strip()
        is_blank_lost = len(text.split()) == 2 and left == "".join(text.split())
        ends = ((text[0], decoded[:1]), (text[-1], decoded[-1:]))
        is_end_lost = is_exact and any(a.isspace() and not b.isspace() for a, b in ends)
        is_damaged = _REPLACEMENT in left and is_exact
        if is_blank_lost or is_end_lost or is_damaged or (text.strip() and not left):
            return text, decoded
    return None


def _removed(tokenizer: Tokenizer) -> str | None:
    """Return what a step removes from all texts; None if there is no such step.

    Probes decide on " " and "\\n", which a decoder may restore.
    """
    is_exact = _is_exact(tokenizer)
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    for step in _steps([json.loads(part.__getstate__()) for part in parts if part]):
        match step:
            case {"type": "Strip"} if is_exact:
                return "blanks at the ends of a text"
            case {"type": "Split", "behavior": "Removed", "invert": False, "pattern": pattern}:
                if not is_exact and "Regex" in pattern:
                    continue
            case {"type": "Replace", "content": "", "pattern": pattern}:
                pass
            case {"type": "CharDelimiterSplit", "delimiter": delimiter}:
                pattern = {"String": delimiter}
            case _:
                continue
        if (text := pattern.get("String")) is None:
            return f"matches of {shown(pattern['Regex'])}"
        is_visible = any(each.isprintable() or each.isspace() for each in text)
        if is_visible and text not in (" ", "\n"):
            return shown(text)
    return None


def _lost_rare(tokenizer: Tokenizer) -> list[str]:
    """Return the control characters and code points without a character that are lost."""
    if not _is_exact(tokenizer):
        return []
    controls = [
        f"U+{ord(text):04X}" for text, decoded in _round_trips(tokenizer, _CONTROL) if not decoded
    ]
    return controls + [
        _WITHOUT_CHARACTERS[text]
        for text, decoded in _round_trips(tokenizer, [*_WITHOUT_CHARACTERS])
        if not decoded or _REPLACEMENT in decoded
    ]


def _is_exact(tokenizer: Tokenizer) -> bool:
    """Whether each character has tokens of its own: of its bytes, or as there is no other."""
    parts, model = (tokenizer.normalizer, tokenizer.pre_tokenizer), tokenizer.model
    is_byte_level = any(part and b"ByteLevel" in part.__getstate__() for part in parts)
    is_complete = isinstance(model, BPE) and (model.byte_fallback or model.unk_token is None)
    return is_byte_level or is_complete


def _round_trips(tokenizer: Tokenizer, texts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield texts and what their tokens decode to."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        yield text, tokenizer.decode(encoding.ids, skip_special_tokens=False)


def _held() -> BinaryIO:
    """Return a new file without a name, in memory where that is possible."""
    with suppress(AttributeError, OSError):  # of other systems, or not permitted
        return open(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()


@contextmanager
def without_panic_messages() -> Iterator[None]:
    """Drop the message and backtrace that a panic of the library writes to stderr.

    Other output to stderr is written at the end of the block.
    """
    with _STDERR:
        try:
            stderr = os.dup(2)
        except OSError:  # closed: nothing to drop
            yield
            return
        with _held() as held:
            os.dup2(held.fileno(), 2)
            is_done = False
            try:
                yield
                is_done = True
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
            if is_done and held.seek(0, os.SEEK_END):
                held.seek(0)
                with suppress(OSError):  # stderr may be on a full disk
                    os.write(2, held.read())
