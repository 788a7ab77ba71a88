"""Byte-level BPE over the `tokenizers` library: every text has tokens, and they give it back.

END separates documents and is token 0 of every tokenizer trained here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from yocobit.config import ConfigError

END = "<|endoftext|>"

TOKENIZER_VERSION = 1  # to raise when the same texts would give another tokenizer

# GPT-4's split with one change for code: a line break takes the indentation that follows it.
_SPLIT = (
    r"(?:\r?\n)+[ \t]*"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|[ \t]+(?=\r?\n)|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with END as token 0; the same texts give the same tokenizer.

    A text that spells END gets ordinary tokens: only the end of a document is the end token.
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
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json; it must know END. A text that spells END gets ordinary tokens."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{path}: is not a tokenizer.json ({error})") from None
    end_token(tokenizer, str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_token(tokenizer: Tokenizer, source: str = "tokenizer") -> int:
    """Return the id of END."""
    token = tokenizer.token_to_id(END)
    if token is None:
        raise ConfigError(f"{source}: has no token {END}, which separates documents")
    return int(token)


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's definition."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
