"""Documents: the texts in source files, read in order, each with a stable name.

A document is a .txt, .md or .py file, a line of a .txt file read by line, a line of a .jsonl file,
a row of a .parquet file, or an item of the list in a .json file. .txt and .jsonl files may be
compressed. At most one record or piece of a file is in memory at a time; only a .json file is read
as a whole. A byte order mark at the start of a text is not part of it.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import importlib
import itertools
import json
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from yocobit.config import ConfigError
from yocobit.data.chat_records import FIELDS, KINDS, messages_of
from yocobit.data.config import SourceConfig
from yocobit.data.conversations import render
from yocobit.data.sources import SourceFile, list_files
from yocobit.errors import printable
from yocobit.extras import needs_extra
from yocobit.reading import NotUTF8Error, boundary, cause, check_encoding, open_regular

PIECE_LENGTH = 1 << 16  # characters; few documents are cut, and threads have equal loads
_CHUNK_BYTES = 1 << 16
_ROWS = 16  # of a .parquet file, at once
# A line, or a value of a .parquet file. Decoded text takes up to four bytes per character.
_MAX_RECORD_BYTES = 1 << 26
_MAX_TREE = 1 << 24  # bytes of JSON decoded to Python objects, which take ten times the memory
_MAX_JSON_BYTES = 1 << 30  # of a .json file, which is read as a whole
_MAX_EXPANSION = 1000  # of a compressed column of a .parquet file; that of text is about 10
_MAX_ITEMS = 1 << 20  # of lists that take no bytes: a row can have all of those of its group
_BOM = "\ufeff"
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"

_KINDS = " or ".join(f"'{name}'" for name in KINDS)

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
            if file.suffix == ".parquet":
                yield from _rows(file)
            elif file.size == 0:
                continue
            elif file.suffix.startswith(".jsonl"):
                yield from _records(file)
            elif file.suffix == ".json":
                yield from _items(file)
            elif file.suffix.startswith(".txt") and file.by_line:
                yield from _lines(file)
            elif not self._is_skipped(text := _TextFile(file)) and text.has_text():
                yield Document(file.name, text)

    def _is_skipped(self, text: _TextFile) -> bool:
        """Whether a file is Python source in another encoding, which it may declare."""
        if text.file.suffix != ".py" or text.file.is_named or text.is_utf8():
            return False
        self.skipped.add(str(text.file.path))
        return True


def read_texts(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the text of each document in files, directories and globs."""
    return (document.text() for document in DocumentReader.of(paths))


@dataclass(frozen=True)
class _TextFile:
    """The pieces of a file that is one document."""

    file: SourceFile

    def has_text(self) -> bool:
        """Whether the text is not empty; reads only small and compressed files."""
        is_compressed = self.file.suffix.endswith((".gz", ".zst"))
        if self.file.size > len(codecs.BOM_UTF8) and not is_compressed:
            return True
        return next(iter(self), None) is not None

    def is_utf8(self) -> bool:
        """Whether the whole file can be read; reads it."""
        try:
            for _ in self._chunks():
                pass
        except NotUTF8Error:
            return False
        return True

    def __iter__(self) -> Iterator[Piece]:
        return (Piece(text) for text in _cut(self._chunks()))

    def _chunks(self) -> Iterator[str]:
        path = self.file.path
        decoder = codecs.getincrementaldecoder("utf-8")()
        position = 0  # of the first byte that is not decoded yet
        with _opened(self.file) as stream:
            is_last = False
            while not is_last:
                chunk = stream.read(_CHUNK_BYTES)
                if position == 0:
                    check_encoding(chunk, path)
                is_last = not chunk
                n_pending = len(decoder.getstate()[0])
                try:
                    yield decoder.decode(chunk, is_last)
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, error, position - n_pending) from None
                position += len(chunk)


def _document(name: str, text: str) -> Document:
    return Document(name, [Piece(part) for part in _cut([text])])


def _cut(chunks: Iterable[str]) -> Iterator[str]:
    """Yield a text, without its byte order mark, in pieces of at most PIECE_LENGTH characters."""
    rest, is_start = "", True
    for chunk in chunks:
        rest += chunk.removeprefix(_BOM) if is_start else chunk
        is_start = is_start and not chunk
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
    for number, line in _numbered_lines(file):
        source = f"{file.path}:{number}"
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise _not_utf8(source, error, 0) from None
        if text.removeprefix(_BOM).strip():
            yield _document(f"{file.name}:{number}", text)


def _records(file: SourceFile) -> Iterator[Document]:
    decoder = _record_decoder(file.text_field)
    for number, line in _numbered_lines(file):
        line = line.strip()
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line:
            source = f"{file.path}:{number}"
            record = _parse_record(line, decoder, file.text_field, source)
            yield from _record(record, file.text_field, f"{file.name}:{number}", source)


def _items(file: SourceFile) -> Iterator[Document]:
    """Yield the records of a .json file: a list of objects."""
    with _opened(file) as stream:
        content = stream.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        rule = f"must have at most {_MAX_JSON_BYTES:,} bytes but has more; write a .jsonl file"
        raise ConfigError(f"{file.path}: {rule}")
    check_encoding(content[:_CHUNK_BYTES], file.path)
    with boundary(file.path, "must be a list of objects"):
        items = msgspec.json.decode(content.removeprefix(codecs.BOM_UTF8), type=list[msgspec.Raw])
    decoder = _record_decoder(file.text_field)
    for number, item in enumerate(items, start=1):
        source = f"{file.path}:{number}"
        record = _parse_record(bytes(item), decoder, file.text_field, source)
        yield from _record(record, file.text_field, f"{file.name}:{number}", source)


def _numbered_lines(file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, from number 1; ConfigError if one is too long."""
    with _opened(file) as stream:
        for number in itertools.count(1):
            if not (line := stream.readline(_MAX_RECORD_BYTES + 1)):
                return
            _check_size(len(line), f"{file.path}:{number}", _MAX_RECORD_BYTES)
            if number == 1:
                check_encoding(line, file.path)
            yield number, line


@lru_cache
def _record_decoder(text_field: str) -> msgspec.json.Decoder[Any]:
    """Return a decoder that finds text and conversation of a record and skips its other fields."""
    fields = [
        (f"field_{i}", msgspec.Raw, msgspec.field(name=name, default=msgspec.Raw()))
        for i, name in enumerate(_fields(text_field))
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Record", fields))


def _fields(text_field: str) -> list[str]:
    return list(dict.fromkeys((text_field, *FIELDS)))


def _parse_record(
    line: bytes, decoder: msgspec.json.Decoder[Any], text_field: str, source: str
) -> Any:
    with boundary(source, "is not valid JSON"):
        try:
            record, found = decoder.decode(line), {}
            for i, name in enumerate(_fields(text_field)):
                if value := bytes(getattr(record, f"field_{i}")):
                    is_text = value.startswith(b'"')
                    _check_size(len(value), source, _MAX_RECORD_BYTES if is_text else _MAX_TREE)
                    found[name] = msgspec.json.decode(value)
                    if name == text_field:
                        break
            return found
        except msgspec.DecodeError:
            _check_size(len(line), source, _MAX_TREE)
            return json.loads(line)  # accepts the NaN that Python writes


def _check_size(n_bytes: int, source: str, limit: int) -> None:
    if n_bytes > limit:
        raise ConfigError(f"{source}: must have at most {limit:,} bytes but has more; split it")


def _rows(file: SourceFile) -> Iterator[Document]:
    pyarrow = _import("pyarrow", "parquet", file.path)
    parquet = _import("pyarrow.parquet", "parquet", file.path)
    number = 0
    with (
        _reading(file.path, "is not a complete .parquet file"),
        open_regular(file.path),
        pyarrow.OSFile(os.fsencode(file.path)) as stream,  # str would have to be UTF-8
        # One page of a column at a time: a row group may be larger than the memory.
        parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_CHUNK_BYTES) as table,
    ):
        columns = _columns(table.schema_arrow.names, file)
        _check_expansion(table.metadata, columns, file.path)
        for batch in table.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False):
            for row in range(batch.num_rows):
                number += 1
                name, source = f"{file.name}:{number}", f"{file.path}:{number}"
                with boundary(source, "is damaged"):
                    record = {column: batch.column(column)[row].as_py() for column in columns}
                yield from _record(record, file.text_field, name, source)


def _columns(names: Sequence[str], file: SourceFile) -> list[str]:
    """Return the columns of text or conversations; ConfigError without them."""
    if file.text_field in names:
        return [file.text_field]
    kind = next((name for name in KINDS if name in names), None)
    if kind is None:
        columns = printable(", ".join(names), 200)
        rule = f"must have a column '{file.text_field}' or {_KINDS} but has {columns}"
        raise ConfigError(f"{file.path}: {rule}")
    if kind == "messages":
        return [kind]
    return [name for name in FIELDS if name in names and (name == kind or name not in KINDS)]


def _check_expansion(metadata: Any, columns: Sequence[str], path: Path) -> None:
    """Raise ConfigError for a small file whose decompressed columns would be very large."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        leaves = [(group.column(j), metadata.schema.column(j)) for j in range(group.num_columns)]
        read = [leaf for leaf in leaves if leaf[0].path_in_schema.split(".")[0] in columns]
        group_bytes = sum(column.total_compressed_size for column, _ in read)
        for column, schema in read:
            size, stored = column.total_uncompressed_size, column.total_compressed_size
            if size > max(_MAX_RECORD_BYTES, _MAX_EXPANSION * stored):
                raise ConfigError(
                    f"{path}: column '{column.path_in_schema}' must be at most {_MAX_EXPANSION} "
                    f"times as large as its {stored:,} compressed bytes but has {size:,}"
                )
            is_list, n_items = schema.max_repetition_level > 0, column.num_values
            if is_list and n_items > max(_MAX_ITEMS, _MAX_EXPANSION * group_bytes):
                raise ConfigError(
                    f"{path}: column '{column.path_in_schema}' must have at most {_MAX_EXPANSION} "
                    f"items for each of {group_bytes:,} compressed bytes but has {n_items:,}"
                )


def _record(record: Any, text_field: str, name: str, source: str) -> Iterator[Document]:
    """Yield the document of a record with a text or a conversation, unless its text is empty."""
    fields = record if isinstance(record, dict) else {}
    if text_field not in fields and any(kind in fields for kind in KINDS):
        parts = render(messages_of(fields, source), source)
        yield Document(name, [Piece(_encodable(part, source), in_loss) for part, in_loss in parts])
    elif isinstance(text := fields.get(text_field), str):
        _check_size(len(text), source, _MAX_RECORD_BYTES)
        if text.removeprefix(_BOM):
            yield _document(name, _encodable(text, source))
    else:
        raise ConfigError(
            f"{source}: must be an object with a string '{text_field}' or a conversation in "
            f"{_KINDS}"
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
    with _reading(file.path, "is damaged"), open_regular(file.path) as stream:
        if file.suffix.endswith(".gz"):
            with gzip.open(stream) as content:
                yield content
        elif file.suffix.endswith(".zst"):
            with _import(_ZSTD, "zstd", file.path).open(stream) as content:
                yield content
        else:
            yield stream


def _import(module: str, extra: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise needs_extra(extra, f"{path}: needs {module}") from None


@contextmanager
def _reading(path: Path, rule: str) -> Iterator[None]:
    """Raise errors of reading a file as ConfigError; `rule` describes invalid content."""
    try:
        with boundary(path, rule):
            yield
    except OSError as error:
        if error.errno is None:  # raised by gzip and pyarrow
            raise ConfigError(f"{path}: {rule} ({cause(error)})") from None
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _not_utf8(source: str | Path, error: UnicodeDecodeError, offset: int) -> ConfigError:
    byte = f"byte {error.object[error.start]:#04x} at {offset + error.start}"
    return NotUTF8Error(f"{source}: is not UTF-8 ({byte})")
