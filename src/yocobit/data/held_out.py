"""The validation text of data.valid_every: documents that are selected by the hash of their name.

With few documents, none may be selected, or all of a source. Then the last part of the text of each
source is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from yocobit.data.documents import Document, DocumentReader, Piece
from yocobit.data.identity import CorpusFiles
from yocobit.data.sources import SourceFile
from yocobit.errors import ConfigError

# The held-out end has at least _MIN_LENGTH characters, unless these are more than 1 / _MAX_SHARE of
# the text.
_MIN_LENGTH, _MAX_SHARE = 4096, 10


@dataclass(frozen=True)
class HeldOut:
    """The validation text in the training files; `cuts` are in characters of each source's text."""

    every: int | None = None
    cuts: tuple[int, ...] | None = None  # where the held-out end starts; None: by name
    n_characters: int = 0  # of the held-out ends

    @classmethod
    def of(cls, files: CorpusFiles) -> HeldOut:
        """Choose the split; reads documents until both splits have one."""
        if (every := files.valid_every) is None:
            return cls()
        if _has_both(files.train, every):
            return cls(every)
        cuts, n_held_out = [], 0
        for source in files.train:
            total = sum(_length(document.pieces) for document in DocumentReader(source))
            if total < 2:
                raise ConfigError(f"{source[0].path}: no text for the train split")
            size = max(1, total // every, min(total // _MAX_SHARE, _MIN_LENGTH))
            cuts.append(total - size)
            n_held_out += size
        return cls(every, tuple(cuts), n_held_out)

    def splitter(self, source: int) -> Splitter:
        """Return the splitter of the documents of a training source, in their order."""
        return Splitter(self.every, None if self.cuts is None else self.cuts[source])

    def describe(self) -> list[str]:
        """Return a line about a held-out end of the text."""
        if self.cuts is None:
            return []
        return [
            f"data.valid_every = {self.every}: too few documents to hold out whole ones, so the "
            f"last {self.n_characters:,} characters of the training text are for validation"
        ]


class Splitter:
    """Splits the documents of a source, passed in order, into training and held-out ones."""

    def __init__(self, every: int | None, cut: int | None) -> None:
        self.every, self.cut = every, cut
        self.position = 0  # characters before the next document

    def __call__(self, document: Document) -> list[tuple[Document, bool]]:
        """Return a document, or its two parts at the cut, each with whether it is held out."""
        if self.cut is None:
            return [(document, _is_selected(document.name, self.every))]
        start, length = self.position, _length(document.pieces)
        self.position += length
        if self.position <= self.cut:
            return [(document, False)]
        if start >= self.cut:
            return [(document, True)]
        if not all(piece.in_loss for piece in document.pieces):
            return [(document, start > 0)]  # a conversation is not cut
        at = _line_start(document.pieces, self.cut - start)
        at = at if at < length else self.cut - start
        return [
            (Document(document.name, _Part(document.pieces, 0, at)), False),
            (Document(document.name, _Part(document.pieces, at, length)), True),
        ]


@dataclass(frozen=True)
class _Part:
    """Characters `start` to `end` of a text in pieces."""

    pieces: Iterable[Piece]
    start: int
    end: int

    def __iter__(self) -> Iterator[Piece]:
        position = 0
        for piece in self.pieces:
            text = piece.text[max(0, self.start - position) : max(0, self.end - position)]
            if text:
                yield Piece(text, piece.in_loss)
            position += len(piece.text)
            if position >= self.end:
                return


def _is_selected(name: str, every: int | None) -> bool:
    if every is None:
        return False
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % every == 0


def _has_both(train: Sequence[Sequence[SourceFile]], every: int) -> bool:
    """Whether each source has a training document, and at least one has a held-out document."""
    is_held_out = False
    for source in train:
        is_kept = False
        for document in DocumentReader(source):
            is_selected = _is_selected(document.name, every)
            is_held_out, is_kept = is_held_out or is_selected, is_kept or not is_selected
            if is_held_out and is_kept:
                break
        if not is_kept:
            return False
    return is_held_out


def _length(pieces: Iterable[Piece]) -> int:
    return sum(len(piece.text) for piece in pieces)


def _line_start(pieces: Iterable[Piece], offset: int) -> int:
    """Return the first start of a line or, without one in the same piece, a word after `offset`."""
    position = 0
    for piece in pieces:
        if position + len(piece.text) > offset:
            for separator, skipped in (("\n", 1), (" ", 0)):
                if (found := piece.text.find(separator, offset - position)) >= 0:
                    return position + found + skipped
            return offset
        position += len(piece.text)
    return offset
