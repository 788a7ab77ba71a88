"""Text files as editors, exports and attackers write them: one line, or the text; little memory."""

import codecs
import gzip
import json
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import corpora
import pytest

from yocobit.config import ConfigError
from yocobit.data import documents as documents_module
from yocobit.data.config import SourceConfig
from yocobit.data.corpus import prepare
from yocobit.data.documents import DocumentReader
from yocobit.data.sources import list_files

BOM = codecs.BOM_UTF8
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


def texts(path: Path, **fields) -> list[str]:
    files = list_files(SourceConfig(path=str(path), **fields), ())
    return [document.text() for document in DocumentReader(files)]


def compressed(data: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    return pytest.importorskip(ZSTD).compress(data) if name.endswith(".zst") else data


def refused(path: Path, **fields) -> str:
    """Return the error of reading a file, which must be one short line that names it."""
    with pytest.raises(ConfigError) as raised:
        texts(path, **fields)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert "\n" not in message and len(message) < len(str(path)) + 400
    return message.removeprefix(str(path))


# ---- byte order marks and encodings ----


@pytest.mark.parametrize("by_line", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.md", "a.py", "a.jsonl"])
def test_byte_order_mark_is_not_text(tmp_path, name, by_line):
    data = b'{"text": "a\xc3\xa9"}' if name == "a.jsonl" else "aé".encode()
    (tmp_path / name).write_bytes(compressed(BOM + data, name))

    if by_line and not name.startswith("a.txt"):
        (tmp_path / "b.txt").write_text("b")
        assert texts(tmp_path, by_line=True) == ["aé", "b"]
    else:
        assert texts(tmp_path, by_line=by_line) == ["aé"]


@pytest.mark.parametrize("by_line", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.md", "a.py", "a.jsonl"])
def test_file_of_nothing_but_a_byte_order_mark_is_empty(tmp_path, name, by_line):
    (tmp_path / name).write_bytes(compressed(BOM, name))
    (tmp_path / "z.txt").write_text("z")

    assert texts(tmp_path, by_line=by_line) == ["z"]


def test_byte_order_mark_in_a_record_is_not_text(tmp_path):
    records = [{"text": "\ufeffa"}, {"text": "\ufeff"}, {"text": "b\ufeff"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    assert texts(tmp_path / "a.jsonl") == ["a", "b\ufeff"]


def test_texts_with_and_without_a_byte_order_mark_are_duplicates(tmp_path):
    config = replace(corpora.plain(tmp_path), deduplicate=True)
    text = (tmp_path / "train.txt").read_bytes()
    for name in ("a.txt", "b.md", "c.py"):
        (tmp_path / name).write_bytes(BOM + text)
    names = ("train.txt", "a.txt", "b.md", "c.py")

    corpus = prepare(
        replace(config, train=tuple(str(tmp_path / name) for name in names)), 270, tmp_path / "d"
    )

    assert (corpus.train[0].n_documents, corpus.n_duplicates) == (1, 3)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md", "a.py", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_unicode_encoding_is_named(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(compressed('{"text": "a"}'.encode(encoding), name))

    assert f": must be UTF-8 but is {encoding.upper()[:6]}; conv" in refused(tmp_path / name)


def test_python_source_in_utf16_is_skipped_in_a_directory(tmp_path):
    (tmp_path / "a.py").write_bytes("a = 1".encode("utf-16"))
    (tmp_path / "b.py").write_bytes(b"b = 2")
    reader = DocumentReader.of([tmp_path])

    assert [document.text() for document in reader] == ["b = 2"]
    assert reader.skipped == {str(tmp_path / "a.py")}


def test_long_python_source_that_is_not_utf8_at_its_end_is_skipped_as_a_whole(tmp_path):
    (tmp_path / "a.py").write_bytes(b"a = 1\n" * 50_000 + b"\xff")
    reader = DocumentReader.of([tmp_path])

    assert list(reader) == [] and reader.skipped == {str(tmp_path / "a.py")}


def test_nul_characters_are_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a line\0b")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a\\u0000b"}')

    assert texts(tmp_path) == ["a line\0b", "a\0b"]


# ---- records ----


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "a", "x": NaN, "y": -Infinity}',
        b'{"text": "a", "x": 1e999}',
        b'{"text": "a", "x": ' + b"9" * 5000 + b"}",
        b'{"text": "a", "x": "\\ud83d"}',
        b'{"x": {"text": "no"}, "text": "no", "text": "a"}',
        b' \t{"text":"a"} \r',
        b'{"text": "a", "messages": null}',
    ],
)
def test_odd_fields_of_a_record_do_not_matter(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")

    assert texts(tmp_path / "a.jsonl") == ["a"]


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 1_000_000,
        b'{"text": ' + b'{"a":' * 1_000_000,
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "text": "a"}',
        b'{"text": null}',
        b'{"text": ["a"]}',
        b'{"text": ' + b"9" * 5000 + b"}",
        b'{"text": 1e999}',
        b'{"text": "\\ud800"}',
        b'{"text": "\\x"}',
        b'{"text": "a"} {"text": "b"}',
        b'{"text": "a"' + b"x" * 1_000_000,
        b"\0",
        b'{"messages": null}',
        b'{"messages": [null]}',
        b'{"messages": [{"role": "user", "content": null}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}',
        b'{"messages": [{"role": ["user"], "content": "a"}]}',
        b'{"messages": [{"role": "' + b"x" * 100_000 + b'", "content": "a"}]}',
        b'{"messages": [{"role": "tool", "content": "a"}]}',
        b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}',
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": "' + b"x" * 100_000 + b'"}',
    ],
)
def test_odd_record_is_refused_in_one_short_line(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(line)

    assert refused(tmp_path / "a.jsonl").startswith(":1: ")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt", "a.txt.zst"])
def test_line_that_is_too_long_is_refused_by_number(tmp_path, monkeypatch, name):
    monkeypatch.setattr(documents_module, "_MAX_RECORD_BYTES", 100)
    data = b'{"text": "a"}\n{"text": "%s"}\n' % (b"x" * 200)
    (tmp_path / name).write_bytes(compressed(data, name))

    fields = {"by_line": True} if ".txt" in name else {}
    assert refused(tmp_path / name, **fields).startswith(":2: must have at most 100 bytes")


@pytest.mark.parametrize(
    "record",
    [
        b'{"text": "a", "x": [' + b"{}," * (1 << 23) + b"{}]}",
        b'{"text": "a", "x": [' + b"[]," * (1 << 23) + b"NaN]}",
        b'{"messages": [' + b"{}," * (1 << 23) + b"{}]}",
        b'{"text": [' + b"{}," * (1 << 23) + b"{}]}",
        b'{"text": "' + b"a" * (1 << 28) + b'"}',
    ],
)
def test_small_compressed_record_does_not_take_much_memory(tmp_path, record):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(record, 1))
    del record

    tracemalloc.start()
    try:
        texts(path)
    except ConfigError as error:
        assert ":1: must have at most" in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1 << 29


def test_decompression_bomb_is_streamed(tmp_path):
    with gzip.open(tmp_path / "a.txt.gz", "wb", 1) as file:
        for _ in range(32):
            file.write(b"a" * (1 << 20))
    files = list_files(SourceConfig(path=str(tmp_path)), ())

    tracemalloc.start()
    (document,) = DocumentReader(files)
    n_read = sum(len(piece.text) for piece in document.pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert n_read == 1 << 25
    assert peak < 1 << 21


# ---- .parquet ----


def write_parquet(path: Path, column, name: str = "text", **options) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({name: column}), path, **options)


def test_parquet_text_may_be_large_dictionary_encoded_or_absent(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "a.parquet", pyarrow.array(["a"], pyarrow.large_string()))
    write_parquet(tmp_path / "b.parquet", pyarrow.array(["b"] * 3).dictionary_encode())
    write_parquet(tmp_path / "c.parquet", pyarrow.array([], pyarrow.string()))
    write_parquet(tmp_path / "d.parquet", pyarrow.array(["\ufeffd", "\ufeff", ""]))

    assert texts(tmp_path) == ["a", "b", "b", "b", "d"]


@pytest.mark.parametrize("kind", ["not UTF-8", "binary", "null", "integer", "nested"])
def test_parquet_column_that_is_not_text_is_refused_by_row(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    offsets = pyarrow.array([0, 1, 3], pyarrow.int32()).buffers()[1]
    invalid = [None, offsets, pyarrow.py_buffer(b"a\xff\xfe")]
    column = {
        "not UTF-8": pyarrow.Array.from_buffers(pyarrow.string(), 2, invalid),
        "binary": pyarrow.array([b"a", b"b"]),
        "null": pyarrow.array(["a", None]),
        "integer": pyarrow.array([1, 2]),
        "nested": pyarrow.array([["a"], ["b"]]),
    }[kind]
    write_parquet(tmp_path / "a.parquet", column)

    assert refused(tmp_path / "a.parquet").startswith((":1: ", ":2: "))


def test_parquet_row_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "_MAX_RECORD_BYTES", 100)
    write_parquet(tmp_path / "a.parquet", ["a", "x" * 101])

    assert refused(tmp_path / "a.parquet").startswith(":2: must have at most 100 bytes")


def test_small_parquet_of_a_large_column_is_refused(tmp_path):
    pytest.importorskip(ZSTD)
    write_parquet(tmp_path / "a.parquet", ["x" * ((1 << 26) + 10)], compression="zstd")

    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    assert ": column 'text' must be at most 1000 times" in refused(tmp_path / "a.parquet")


def test_small_parquet_of_a_long_list_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    n = 1 << 22
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    row = pyarrow.ListArray.from_arrays(
        pyarrow.array([0, n], pyarrow.int32()), pyarrow.nulls(n, turn)
    )
    write_parquet(tmp_path / "a.parquet", row, "messages")

    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    assert ": column 'messages.list.element.role' must have at most 1000 items for each of " in (
        refused(tmp_path / "a.parquet")
    )


def test_parquet_of_many_conversations_that_compress_well_is_read(tmp_path):
    pytest.importorskip("pyarrow")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 4
    write_parquet(tmp_path / "a.parquet", [turns] * 2000, "messages", compression="zstd")

    assert len(texts(tmp_path)) == 2000


def test_parquet_with_many_columns_is_refused_in_a_short_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({f"column {i}\n": [1] for i in range(1000)})
    parquet.write_table(table, tmp_path / "a.parquet")

    message = refused(tmp_path / "a.parquet")

    assert "must have a column 'text' or 'messages' or 'conversations' or 'instr" in message
    assert " but has column 0\\n" in message


def test_damaged_parquet_is_read_or_refused(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    write_parquet(path, [f"text {i} " * 9 for i in range(99)], row_group_size=30)
    whole = path.read_bytes()

    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            texts(path)
        except ConfigError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
