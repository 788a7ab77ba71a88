"""Tokenisation of the documents of a corpus to shards of tokens, in one pass and little memory.

The directory gets tokenizer.json, the shards of each training source (train-0-00000.bin, ...) and
those of the validation text (valid-00000.bin, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress
from operator import not_
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.config import ConfigError
from yocobit.data.config import DataConfig
from yocobit.data.digest_set import DigestSet
from yocobit.data.documents import DocumentReader, Piece
from yocobit.data.held_out import HeldOut, Splitter
from yocobit.data.identity import SAMPLE_LENGTH, CorpusFiles
from yocobit.data.index import TOKENIZER
from yocobit.data.loss_mask import LossMask
from yocobit.data.shards import ShardWriter, remove_shards
from yocobit.data.sources import SourceFile
from yocobit.data.tokenizer import end_token, fingerprint, load_tokenizer, train_tokenizer
from yocobit.disk import replacing
from yocobit.text import TextEncoder, n_ids
from yocobit.text.windows import SHORT, Span

_BATCH_LENGTH = 1 << 21  # characters of one call of the tokenizer, whose threads share them


def tokenize(
    config: DataConfig,
    files: CorpusFiles,
    held_out: HeldOut,
    vocab_size: int,
    directory: Path,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Write tokenizer and shards into `directory`; return their entries for the index.

    `progress` receives the bytes of text that were read, and of all files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_shards(directory)
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(Path(config.tokenizer))
    else:
        tokenizer = train_tokenizer(_sample(files, held_out), vocab_size)
    path = directory / TOKENIZER
    with replacing(path) as partial:
        partial.write_text(tokenizer.to_str(), encoding="utf-8")
    try:
        encoder = TextEncoder(tokenizer, config.tokenizer or path, [end_token(tokenizer)])
        entries = _Tokenization(
            files, held_out, encoder, config.deduplicate, directory, progress
        ).run()
    except OSError:  # such as a full disk
        remove_shards(directory)
        raise
    _check_not_empty(files, entries)
    return {
        **entries,
        "tokenizer_sha256": fingerprint(tokenizer),
        "tokenizer_bytes": path.stat().st_size,
    }


def _sample(corpus: CorpusFiles, held_out: HeldOut) -> Iterator[str]:
    """Yield text to train a tokenizer on: the start of every file, by its size and weight."""
    for i, (files, weight) in enumerate(zip(corpus.train, corpus.weights, strict=True)):
        split = held_out.splitter(i)
        share = SAMPLE_LENGTH * weight / sum(corpus.weights)
        size = sum(file.size for file in files)
        allowed = n_read = 0.0  # characters
        for file in files:
            allowed += share * file.size / size if size else 0.0
            for document in DocumentReader([file]):
                if n_read >= allowed and held_out.cuts is None:
                    break
                parts = [part for part, is_held_out in split(document) if not is_held_out]
                for piece in chain.from_iterable(part.pieces for part in parts):
                    if n_read >= allowed:
                        break
                    n_read += len(piece.text)
                    yield piece.text


def _check_not_empty(files: CorpusFiles, entries: dict[str, Any]) -> None:
    for i, shards in enumerate(entries["train"]):
        if shards.documents == 0:
            split = f"train[{i}]" if len(entries["train"]) > 1 else "the train split"
            raise ConfigError(f"{_names(files.train[i])}: no text for {split}")
    if entries["valid"].documents == 0:
        remedy = "; add documents, or name data.valid" if files.valid_every else ""
        raise ConfigError(
            f"{_names(files.valid or files.all)}: no text for the valid split{remedy}"
        )


def _names(files: Sequence[SourceFile]) -> str:
    more = f" and {len(files) - 1:,} more files" if len(files) > 1 else ""
    return f"{files[0].path}{more}"


class _Tokenization:
    """One pass over the documents in order, in batches that the tokenizer's threads share."""

    def __init__(
        self,
        files: CorpusFiles,
        held_out: HeldOut,
        encoder: TextEncoder,
        deduplicate: bool,
        directory: Path,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.files, self.held_out, self.encoder = files, held_out, encoder
        self.digests = DigestSet() if deduplicate else None
        self.end = end_token(encoder.tokenizer)
        dtype = "uint16" if n_ids(encoder.tokenizer) <= 1 << 16 else "uint32"
        self.valid = ShardWriter(directory, "valid", dtype)
        self.train = [ShardWriter(directory, f"train-{i}", dtype) for i in range(len(files.train))]
        self.skipped: set[str] = set()
        self.n_duplicates = 0
        self.batch: list[tuple[list[Piece], ShardWriter]] = []  # short documents, in order
        self.batch_length = 0  # characters
        self.progress = progress
        self.n_bytes = 0  # of text, in UTF-8
        self.size_bytes = sum(file.size for file in files.all)  # compressed files hold more text

    def run(self) -> dict[str, Any]:
        """Write all shards; return their entries and the numbers of omitted files and documents."""
        try:
            # The validation text first: deduplication keeps the first of two equal documents.
            self._add(self.files.valid, self.valid, HeldOut().splitter(0))
            train = []
            for i, (files, writer) in enumerate(zip(self.files.train, self.train, strict=True)):
                self._add(files, writer, self.held_out.splitter(i))
                self._flush()
                train.append(writer.close())  # limits the number of open files
            valid = self.valid.close()
        finally:
            for writer in (self.valid, *self.train):
                writer.abandon()
        return {
            "train": train,
            "valid": valid,
            "n_skipped": len(self.skipped),
            "n_duplicates": self.n_duplicates,
        }

    def _add(self, files: Sequence[SourceFile], writer: ShardWriter, split: Splitter) -> None:
        for document in DocumentReader(files, self.skipped):
            parts = split(document)
            if self.digests is not None and not self.digests.add(document.digest()):
                self.n_duplicates += 1
                continue
            for part, is_held_out in parts:
                target = self.valid if is_held_out else writer
                target.counts["documents"] += 1
                self._add_document(self._counted(part.pieces), target)

    def _counted(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            yield piece
            self.n_bytes += len(piece.text.encode())
            if self.progress is not None:
                self.progress(self.n_bytes, max(self.n_bytes, self.size_bytes))

    def _add_document(self, pieces: Iterable[Piece], writer: ShardWriter) -> None:
        """Write the tokens of a document: those of the whole text, encoded at once."""
        pieces, first, length = iter(pieces), list[Piece](), 0
        for piece in pieces:
            first.append(piece)
            length += len(piece.text)
            if length > SHORT:
                self._flush()
                self._write_long(chain(first, pieces), writer)
                return
        if not first:
            return
        self.batch.append((first, writer))
        self.batch_length += length
        if self.batch_length >= _BATCH_LENGTH:
            self._flush()

    def _flush(self) -> None:
        """Tokenise the batch and write its tokens."""
        texts = ["".join(piece.text for piece in pieces) for pieces, _ in self.batch]
        is_masked = [not all(piece.in_loss for piece in pieces) for pieces, _ in self.batch]
        plain, masked = ([*compress(texts, s)] for s in (map(not_, is_masked), is_masked))
        encoded = iter(self.encoder.encode_batch(plain))
        spans = iter(self.encoder.encode_span_batch(masked))
        for (pieces, writer), masks in zip(self.batch, is_masked, strict=True):
            mask = LossMask()
            for piece in pieces:
                mask.add(piece)
            if masks:
                self._write(next(spans), mask, writer)
            else:
                writer.write(np.array(next(encoded), np.uint32), True)
            self._end(mask, writer)
        self.batch, self.batch_length = [], 0

    def _write_long(self, pieces: Iterable[Piece], writer: ShardWriter) -> None:
        mask = LossMask()
        for span in self.encoder.encode_spans(map(mask.add, pieces)):
            self._write(span, mask, writer)
        self._end(mask, writer)

    def _write(self, span: Span, mask: LossMask, writer: ShardWriter) -> None:
        tokens = np.array(span.ids, np.uint32)
        in_loss = mask.of(span)
        for part in np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(in_loss)) + 1):
            if len(part):
                writer.write(tokens[part], bool(in_loss[part[0]]))

    def _end(self, mask: LossMask, writer: ShardWriter) -> None:
        writer.write(np.array([self.end], np.uint32), mask.in_loss)
        writer.counts["bytes"] += mask.n_bytes
