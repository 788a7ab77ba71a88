"""Byte-level BPE with the `tokenizers` library: encodes any text losslessly.

END separates documents and is token 0 of every tokenizer trained here. Other tokenizers may name it
differently.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from yocobit import text
from yocobit.config import ConfigError
from yocobit.reading import boundary, read_json
from yocobit.text.control_tokens import added_token, rename_vocabulary

END = "<|endoftext|>"

_SIGNAL_CHECK_S = 0.1
_LONG_WORD = re.compile(r"[^\W\d_]{64}(?=[^\W\d_])")

TOKENIZER_VERSION = 2  # incremented when the tokenizer of the same texts changes

# The split of GPT-4 with one change for code: indentation belongs to the preceding line break.
_SPLIT = (
    r"(?:\r?\n)+[ \t]*"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|[ \t]+(?=\r?\n)|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with END as token 0; the same texts give the same tokenizer.

    END inside a text is encoded as ordinary tokens: only the end of a document is the EOS token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(END, special=True)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    _train(tokenizer, _without_long_words(texts), trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_long_words(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts, cut after every 64 letters of a word.

    Each merge reads every word that has it in full, so the time grows with the length of a word
    times the number of merges: a genome in one line would take a day.
    """
    for piece in texts:
        start = 0
        for found in _LONG_WORD.finditer(piece):
            yield piece[start : found.end()]
            start = found.end()
        yield piece[start:]


def _train(tokenizer: Tokenizer, texts: Iterable[str], trainer: trainers.BpeTrainer) -> None:
    """Train in a thread, so that the main thread handles Ctrl-C before training has finished."""
    is_stopped, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            tokenizer.train_from_iterator(
                takewhile(lambda _: not is_stopped.is_set(), texts), trainer
            )
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()  # which already may receive the signal
        while thread.is_alive():
            thread.join(_SIGNAL_CHECK_S)  # wakes up, as another thread may have received the signal
    finally:
        is_stopped.set()
    if failures:
        raise failures[0]


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json for training; END inside a text is encoded as ordinary tokens.

    If it has no END, its EOS token is renamed to END: the eos_token of the adjacent
    tokenizer_config.json or, for packed models, the smallest eos_token_id of the adjacent
    generation_config.json. END becomes a special token, as it is in transformers. ConfigError if
    the file is missing or has no EOS token.
    """
    tokenizer = read_tokenizer(path)
    size, largest = tokenizer.get_vocab_size(), text.n_ids(tokenizer) - 1
    if largest >= 2 * size:
        raise ConfigError(
            f"{path}: ids must be below {2 * size}, twice the number of tokens, but the largest is "
            f"{largest}"
        )
    end = _find_end(tokenizer, path)
    added = tokenizer.get_added_tokens_decoder().get(end)
    if tokenizer.id_to_token(end) != END or added is None or not added.special:
        with boundary(path, f"cannot have its EOS token renamed to {END}"):
            tokenizer = _with_end(tokenizer, end)
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json as it is, with or without END; ConfigError if it is missing."""
    try:
        return text.read_tokenizer(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None


def _find_end(tokenizer: Tokenizer, path: Path) -> int:
    """Return the id of END or, without it, of the EOS token that an adjacent file names."""
    end = tokenizer.token_to_id(END)
    if end is None:
        eos = _eos_token(path.with_name("tokenizer_config.json"))
        eos = eos or _least_eos(tokenizer, path.with_name("generation_config.json"))
        end = None if eos is None else tokenizer.token_to_id(eos)
    if end is None:
        raise ConfigError(
            f"{path}: has no token {END}, which separates documents, and no tokenizer_config."
            "json next to it names one of its tokens as eos_token; add one of the two"
        )
    return int(end)


def _eos_token(path: Path) -> str | None:
    """Return the eos_token of a tokenizer_config.json, None without one."""
    try:
        eos = read_json(path).get("eos_token")
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise ConfigError(
            f"{path}: cannot be read ({str(error).removeprefix(f'{path}: ')})"
        ) from None
    eos = eos.get("content") if isinstance(eos, dict) else eos
    return eos if isinstance(eos, str) else None


def _least_eos(tokenizer: Tokenizer, path: Path) -> str | None:
    """Return the name of the smallest eos_token_id of a file; None if it has none."""
    fields = text.read_generation_config(path)
    ids = text.GenerationConfig.of(fields, path, text.n_ids(tokenizer)).end_tokens
    return tokenizer.id_to_token(min(ids)) if ids else None


def _with_end(tokenizer: Tokenizer, end: int) -> Tokenizer:
    """Return a tokenizer whose token `end` is named END and special."""
    fields = json.loads(tokenizer.to_str())
    added = {each["id"]: each for each in fields["added_tokens"]}
    is_special = end in added and added[end]["special"]
    added[end] = {**added[end], "content": END} if is_special else added_token(end, END)
    fields["added_tokens"] = [added[token] for token in sorted(added)]
    eos = str(tokenizer.id_to_token(end))
    if eos != END:
        rename_vocabulary(fields["model"], {eos: END})
        fields["post_processor"] = None  # may name the token; documents are encoded without it
    return Tokenizer.from_str(json.dumps(fields))


def end_token(tokenizer: Tokenizer) -> int:
    """Return the id of END."""
    token = tokenizer.token_to_id(END)
    if token is None:
        raise ConfigError(f"tokenizer: has no token {END}, which separates documents")
    return int(token)


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's definition."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
