"""Documents: the texts in source files, read in order, each with a stable name.

A document is a .txt, .md or .py file, a line of a .txt file read by line, a line of a .jsonl file,
or a row of a .parquet file. .txt and .jsonl files may be compressed. At most one record or piece of
a file is in memory.
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
from yocobit.data.config import SourceConfig
from yocobit.data.conversations import render
from yocobit.data.sources import SourceFile, list_files

PIECE_LENGTH = 1 << 16  # characters: few documents are cut, and threads have equal loads
_CHUNK_BYTES = 1 << 16
_ROWS = 256  # of a .parquet file, at once
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"

# Where a long text may be cut: no token of a tokenizer trained here spans such a position.
_LINE_STARTS = re.compile(r"(?<=\S\n)(?=\S)")
_WORD_ENDS = re.compile(r"(?<=\w)(?= \w)")


@dataclass(frozen=True)
class Piece:
    """A part of a document's text, and whether its tokens are in the loss."""

    text: str
    in_loss: bool = True


@dataclass(frozen=True)
class Document:
    """A text in pieces, and a name that does not depend on the location of the corpus."""

    name: str
    pieces: Iterable[Piece]  # can be iterated again

    def text(self) -> str:
        """Return the whole text."""
        return "".join(piece.text for piece in self.pieces)

    def digest(self) -> bytes:
        """Return a 16-byte hash of the text."""
        digest = hashlib.blake2b(digest_size=16)
        for piece in self.pieces:
            digest.update(piece.text.encode())
        return digest.digest()


@dataclass
class DocumentReader:
    """Iterates over the documents of files in order; each iteration reads the files again."""

    files: Sequence[SourceFile]
    skipped: set[str] = field(default_factory=set)  # .py files that are not UTF-8
    ignored: Counter[str] = field(default_factory=Counter)  # other files of directories, by suffix

    @classmethod
    def of(cls, paths: Iterable[Path]) -> DocumentReader:
        """Return a reader of files, directories and globs; ConfigError if one matches nothing."""
        sources, ignored = [SourceConfig(path=str(path)) for path in paths], Counter[str]()
        files = [file for source in sources for file in list_files(source, (), ignored)]
        return cls(files, ignored=ignored)

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
    """Yield the text of each document in files, directories and globs."""
    return (document.text() for document in DocumentReader.of(paths))


@dataclass(frozen=True)
class _TextFile:
    """The pieces of a file that is one document."""

    file: SourceFile

    def has_text(self) -> bool:
        """Whether the text is not empty; only compressed files are read for this."""
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
        start = 0
        while len(rest) - start > PIECE_LENGTH:
            end = _piece_end(rest, start)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _piece_end(text: str, start: int) -> int:
    end = start + PIECE_LENGTH
    for pattern in (_LINE_STARTS, _WORD_ENDS):
        if last := deque(pattern.finditer(text, start + 1, end), maxlen=1):
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
        raise ConfigError(f"{file.path}: is not a complete .parquet file ({error})") from None


def _record(record: Any, text_field: str, name: str, source: str) -> Iterator[Document]:
    """Yield the document of a record with a text or with messages, unless its text is empty."""
    fields = record if isinstance(record, dict) else {}
    if text_field not in fields and "messages" in fields:
        parts = render(fields["messages"], source)
        yield Document(name, [Piece(_encodable(part, source), in_loss) for part, in_loss in parts])
    elif isinstance(text := fields.get(text_field), str):
        if text:
            yield _document(name, _encodable(text, source))
    else:
        raise ConfigError(
            f"{source}: must be an object with a string '{text_field}' or a list 'messages'"
        )


def _encodable(text: str, source: str) -> str:
    """Return the text if UTF-8 can encode it; JSON may contain lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = text[error.start]
        raise ConfigError(f"{source}: text has a lone surrogate, {surrogate!r}") from None
    return text


@contextmanager
def _opened(file: SourceFile) -> Iterator[Any]:
    """Open a file, decompressed; errors while reading name the file."""
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
    """Raise errors of reading a file as ConfigError that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: is damaged ({error})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _not_utf8(source: str, error: UnicodeDecodeError, offset: int) -> ConfigError:
    byte = f"byte {error.object[error.start]:#04x} at {offset + error.start}"
    return ConfigError(f"{source}: is not UTF-8 ({byte})")
