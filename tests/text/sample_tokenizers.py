"""Small tokenizers of every kind, each with added tokens: special ones and an ordinary one."""

from __future__ import annotations

from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

TEXT = (
    "In the beginning God created the heaven and the earth, and the earth was without form. "
    "It's 12,345.67 degrees; they don't know! Größe, naïve, 漢字 and 日本語 ... user: hello\n"
    "assistant: yes.\n\n\tdef f(x):\n        return x + 1  # ok\n" * 3
)
BEGIN, END, TURN, TOOL = "<s>", "</s>", "<|turn|>", "<tool>"
SPECIAL = (BEGIN, END, TURN)
KINDS = ("byte_level", "sentencepiece", "unigram", "wordpiece")


@cache
def definition(kind: str) -> str:
    """Return the tokenizer.json of a kind."""
    tokenizer = {
        "byte_level": _byte_level,
        "sentencepiece": _sentencepiece,
        "unigram": _unigram,
        "wordpiece": _wordpiece,
    }[kind]()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(TOOL, special=False, normalized=False)])
    return str(tokenizer.to_str())


def sample_tokenizer(kind: str) -> Tokenizer:
    """Return a tokenizer of a kind."""
    return Tokenizer.from_str(definition(kind))


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=[BEGIN, END]
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """As Llama 2: a blank before each text, bytes for unknown characters, no segmentation."""
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=200, show_progress=False, special_tokens=["<unk>", BEGIN, END], limit_alphabet=60
    )
    words = TEXT.replace(" ", "|▁").split("|")
    learned.train_from_iterator(words, trainer)
    import json

    fields = json.loads(learned.to_str())["model"]
    vocab = {"<unk>": 0, BEGIN: 1, END: 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    for name in fields["vocab"]:
        vocab.setdefault(name, len(vocab))
    merges = [tuple(pair) for pair in fields["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _unigram() -> Tokenizer:
    """As T5: an unknown token, and the special tokens are pieces of the model."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        show_progress=False,
        special_tokens=["<unk>", BEGIN, END],
        unk_token="<unk>",
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def _wordpiece() -> Tokenizer:
    """As BERT: lowercase words without accents."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, show_progress=False, special_tokens=["[UNK]", BEGIN, END]
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer
