"""Documents: the texts of source files, one after the other, each under a stable name.

A .txt, .md or .py file is one document (a .txt may also be one a line); each line of a .jsonl file
and each row of a .parquet file is one. A .txt or .jsonl may be compressed. Nothing holds
more of a file than one record or piece.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import importlib
import json
import re
import sys
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yocobit.config import ConfigError
from yocobit.data.chat import render
from yocobit.data.config import SourceConfig
from yocobit.data.sources import SourceFile, list_files

PIECE_LENGTH = 1 << 16  # characters; long enough for any piece to be rare, short enough to share
_CHUNK_BYTES = 1 << 16
_ROWS = 256  # of a .parquet file, at once
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"

# Where a long text may be cut: no token of a tokenizer trained here goes across.
_LINE_BEGINS = re.compile(r"(?<=\S\n)(?=\S)")
_WORD_ENDS = re.compile(r"(?<=\w)(?= \w)")


@dataclass(frozen=True)
class Piece:
    """A part of a document's text, and whether a model learns to write it."""

    text: str
    is_scored: bool = True


@dataclass(frozen=True)
class Document:
    """A text in pieces, and a name that does not depend on where the corpus lies."""

    name: str
    pieces: Iterable[Piece]  # each iteration begins anew

    def text(self) -> str:
        """Return the text as a whole."""
        return "".join(piece.text for piece in self.pieces)

    def digest(self) -> bytes:
        """Return 16 bytes that no other text has."""
        digest = hashlib.blake2b(digest_size=16)
        for piece in self.pieces:
            digest.update(piece.text.encode())
        return digest.digest()


@dataclass
class Documents:
    """The documents of some files, in their order; each iteration reads the files again."""

    files: Sequence[SourceFile]
    skipped: set[str] = field(default_factory=set)  # .py files that are not UTF-8
    unread: Counter[str] = field(default_factory=Counter)  # other files of directories, by suffix

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Documents:
        """Return those of files, directories and globs; ConfigError if there is none such."""
        sources, unread = [SourceConfig(path=str(path)) for path in paths], Counter[str]()
        files = [file for source in sources for file in list_files(source, (), unread)]
        return cls(files, unread=unread)

    def __iter__(self) -> Iterator[Document]:
        for file in self.files:
            if file.suffix == ".py":
                yield from self._python(file)
            elif file.suffix == ".parquet":
                yield from _rows(file)
            elif file.suffix.startswith(".jsonl"):
                yield from _records(file)
            elif file.suffix.startswith(".txt") and file.by_line:
                yield from _lines(file)
            elif (text := _TextFile(file)).has_text():
                yield Document(file.name, text)

    def _python(self, file: SourceFile) -> Iterator[Document]:
        with _reading(file.path):
            data = file.path.read_bytes()
        try:
            if data:
                yield _document(file.name, data.decode("utf-8"))
        except UnicodeDecodeError as error:
            if file.is_named:
                raise _not_utf8(str(file.path), error, 0) from None
            self.skipped.add(str(file.path))  # Python source may declare another encoding


def read_texts(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the text of each document of files, directories and globs; ConfigError if unfit."""
    return (document.text() for document in Documents.of(paths))


@dataclass(frozen=True)
class _TextFile:
    """The pieces of a file that is one document."""

    file: SourceFile

    def has_text(self) -> bool:
        """Whether it is not empty; only what is compressed is read for this."""
        is_compressed = self.file.suffix.endswith((".gz", ".zst"))
        return self.file.size > 0 and not (is_compressed and next(iter(self), None) is None)

    def __iter__(self) -> Iterator[Piece]:
        return (Piece(text) for text in _cut(self._chunks()))

    def _chunks(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        position = 0  # of the first byte that is not decoded yet
        with _opened(self.file) as stream:
            is_last = False
            while not is_last:
                chunk = stream.read(_CHUNK_BYTES)
                is_last = not chunk
                n_pending = len(decoder.getstate()[0])
                try:
                    yield decoder.decode(chunk, is_last)
                except UnicodeDecodeError as error:
                    raise _not_utf8(str(self.file.path), error, position - n_pending) from None
                position += len(chunk)


def _document(name: str, text: str) -> Document:
    return Document(name, [Piece(part) for part in _cut([text])])


def _cut(chunks: Iterable[str]) -> Iterator[str]:
    """Yield a text in pieces of at most PIECE_LENGTH characters."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        begin = 0
        while len(rest) - begin > PIECE_LENGTH:
            end = _cut_at(rest, begin)
            yield rest[begin:end]
            begin = end
        rest = rest[begin:]
    if rest:
        yield rest


def _cut_at(text: str, begin: int) -> int:
    end = begin + PIECE_LENGTH
    for places in (_LINE_BEGINS, _WORD_ENDS):
        if last := deque(places.finditer(text, begin + 1, end), maxlen=1):
            return last[0].start()
    return end


def _lines(file: SourceFile) -> Iterator[Document]:
    with _opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{file.path}:{number}", error, 0) from None
            if text.strip():
                yield _document(f"{file.name}:{number}", text)


def _records(file: SourceFile) -> Iterator[Document]:
    with _opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            source = f"{file.path}:{number}"
            try:
                record = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
                raise ConfigError(f"{source}: is not valid JSON ({error})") from None
            yield from _record(record, file.text_field, f"{file.name}:{number}", source)


def _rows(file: SourceFile) -> Iterator[Document]:
    pyarrow = _import("pyarrow", "parquet", file.path)
    parquet = _import("pyarrow.parquet", "parquet", file.path)
    number = 0
    try:
        with _reading(file.path), parquet.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            column = next((n for n in (file.text_field, "messages") if n in names), None)
            if column is None:
                raise ConfigError(
                    f"{file.path}: must have a column '{file.text_field}' or 'messages' but has "
                    f"{', '.join(names)}"
                )
            for batch in table.iter_batches(batch_size=_ROWS, columns=[column]):
                for record in batch.to_pylist():
                    number += 1
                    name, source = f"{file.name}:{number}", f"{file.path}:{number}"
                    yield from _record(record, file.text_field, name, source)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{file.path}: is not a whole .parquet file ({error})") from None


def _record(record: Any, text_field: str, name: str, source: str) -> Iterator[Document]:
    """Yield the document of a record with a text or with messages, unless its text is empty."""
    fields = record if isinstance(record, dict) else {}
    if text_field not in fields and "messages" in fields:
        parts = render(fields["messages"], source)
        yield Document(name, [Piece(_encodable(part, source), scored) for part, scored in parts])
    elif isinstance(text := fields.get(text_field), str):
        if text:
            yield _document(name, _encodable(text, source))
    else:
        raise ConfigError(
            f"{source}: must be an object with a string '{text_field}' or a list 'messages'"
        )


def _encodable(text: str, source: str) -> str:
    """Return a text that has UTF-8; JSON can also spell halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ConfigError(f"{source}: text has half a character, {half!r}") from None
    return text


@contextmanager
def _opened(file: SourceFile) -> Iterator[Any]:
    """Open what a file holds once it is decompressed; errors while it is read name the file."""
    with _reading(file.path), file.path.open("rb") as stream:
        if file.suffix.endswith(".gz"):
            with gzip.open(stream) as content:
                yield content
        elif file.suffix.endswith(".zst"):
            zstd = _import(_ZSTD, "zstd", file.path)
            try:
                with zstd.open(stream) as content:
                    yield content
            except zstd.ZstdError as error:
                raise ConfigError(f"{file.path}: is damaged ({error})") from None
        else:
            yield stream


def _import(module: str, extra: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"{path}: needs {module}; pip install 'yocobit[{extra}]'") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a line that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: is damaged ({error})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _not_utf8(source: str, error: UnicodeDecodeError, offset: int) -> ConfigError:
    byte = f"byte {error.object[error.start]:#04x} at {offset + error.start}"
    return ConfigError(f"{source}: is not UTF-8 ({byte})")
