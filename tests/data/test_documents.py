"""Sources and documents: listing, reading, and errors about invalid files."""

import gzip
import json
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from packed_models import text, tokenizer

from yocobit.config import ConfigError
from yocobit.data.config import SourceConfig
from yocobit.data.documents import PIECE_LENGTH, DocumentReader
from yocobit.data.sources import cacheable, describe_ignored, hash_files, list_files

ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


def documents(path: Path | str, exclude=(), **fields) -> list[tuple[str, str]]:
    files = list_files(SourceConfig(path=str(path), **fields), exclude)
    return [(d.name, d.text()) for d in DocumentReader(files)]


def write_records(path: Path, records: list[dict]) -> None:
    """Write .jsonl, .jsonl.gz, .jsonl.zst or .parquet."""
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=2)
        return
    data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        zstd = pytest.importorskip(ZSTD)
        # Two frames, as in a file that was appended to; one record spans both.
        data = zstd.compress(data[:20]) + zstd.compress(data[20:])
    path.write_bytes(data)


# ---- sources ----


def test_documents_are_files_sorted_by_name_and_lines_of_jsonl(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("a")
    (tmp_path / "b.md").write_text("b")
    (tmp_path / "c.jsonl").write_text('{"text": "c1"}\n\n{"text": "c2", "more": 1}\n{"text": ""}\n')
    (tmp_path / "ignored.bin").write_text("no")
    (tmp_path / "empty.txt").write_text("")

    found = documents(tmp_path)

    assert found == [("b.md", "b"), ("c.jsonl:1", "c1"), ("c.jsonl:3", "c2"), ("sub/a.py", "a")]


@pytest.mark.parametrize("pattern", ["skip", "skip/*", "*/x.py", "skip/x.py"])
def test_exclude_matches_a_name_or_any_part_of_it(tmp_path, pattern):
    (tmp_path / "skip").mkdir()
    (tmp_path / "skip" / "x.py").write_text("x")
    (tmp_path / "kept.py").write_text("k")

    assert documents(tmp_path, exclude=(pattern,)) == [("kept.py", "k")]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt"]),
        ("**/*.txt", ["a.txt", "x/b.txt", "x/y/c.txt"]),
        ("x/**/*", ["b.txt", "y/c.txt"]),
        ("[x-z]/*.txt", ["x/b.txt"]),
    ],
)
def test_glob_matches_files_and_names_them_relative_to_its_fixed_part(tmp_path, pattern, names):
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("a.txt", "x/b.txt", "x/y/c.txt", "x/other.bin"):
        (tmp_path / name).write_text(name)

    assert [name for name, _ in documents(tmp_path / pattern)] == names


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent", "absent: no such file or directory"),
        ("*.md", r"\*\.md: no file with this pattern ends in \.txt"),
        ("x.pdf", r"x\.pdf: must end in one of \.txt, \.txt\.gz, \.txt\.zst, \.jsonl"),
    ],
)
def test_source_without_files_is_refused(tmp_path, path, message):
    (tmp_path / "x.pdf").write_text("")

    with pytest.raises(ConfigError, match=message):
        documents(tmp_path / path)


def test_standard_library_without_a_file_left_is_refused():
    with pytest.raises(ConfigError, match=r"python-stdlib: data\.exclude must not match every"):
        documents("python-stdlib", exclude=("*",))


def test_excluded_files_among_thousands_are_not_listed(tmp_path):
    for i in range(2000):
        (tmp_path / f"{i:05d}.txt").write_text("x")

    files = list_files(SourceConfig(path=str(tmp_path)), ("0000*", "skipped"))

    assert len(files) == 1990


def test_hash_of_a_file_with_cached_size_and_time_is_not_computed_again(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (file,) = list_files(SourceConfig(path=str(tmp_path)), ())
    cached = {str(file.path): (file.size, file.mtime_ns, "cached")}
    modified = {str(file.path): (file.size, file.mtime_ns + 1, "cached")}

    assert hash_files([file], cached) == cached
    assert hash_files([file], modified) == hash_files([file], {})
    assert hash_files([file], {})[str(file.path)][2] != "cached"


def test_hash_of_a_file_just_written_is_not_cacheable(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    files = list_files(SourceConfig(path=str(tmp_path)), ())

    assert cacheable(hash_files(files, {})) == {}


@pytest.mark.parametrize("where", ["data", "data/*"])
def test_files_of_other_kinds_are_counted_by_suffix(tmp_path, where):
    (tmp_path / "data" / "drafts").mkdir(parents=True)
    for name in ("a.txt", "b.csv", "c.CSV", "d.png", "Makefile", ".hidden", "drafts/e.csv"):
        (tmp_path / "data" / name).write_text("x")
    ignored = Counter()

    files = list_files(SourceConfig(path=f"{tmp_path}/{where}"), ("drafts",), ignored)

    assert [file.name for file in files] == ["a.txt"]
    assert ignored == {".csv": 2, ".png": 1, "without a suffix": 1}
    assert describe_ignored(ignored).endswith(": 2 .csv, 1 .png, 1 without a suffix")


def test_directory_without_text_is_refused_with_the_suffixes_it_has(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_text("a,b")

    with pytest.raises(ConfigError, match=r"empty: no file in this directory ends in \.txt, "):
        documents(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"tables: no file in this .*ignored 1 files.*: 1 \.csv"):
        documents(tmp_path / "tables")


def test_suffixes_ignore_case(tmp_path):
    (tmp_path / "A.TXT").write_text("a")
    (tmp_path / "B.Jsonl").write_text('{"text": "b"}')

    assert documents(tmp_path) == [("A.TXT", "a"), ("B.Jsonl:1", "b")]


# ---- kinds of files ----


def compressed(data: bytes, suffix: str) -> bytes:
    return gzip.compress(data) if suffix == ".gz" else pytest.importorskip(ZSTD).compress(data)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text_is_one_document_or_one_per_line(tmp_path, suffix):
    whole = "one line\n\n" * 20000
    (tmp_path / f"a.txt{suffix}").write_bytes(compressed(whole.encode(), suffix))
    (tmp_path / f"empty.txt{suffix}").write_bytes(compressed(b"", suffix))

    found = documents(tmp_path)
    lines = documents(tmp_path, by_line=True)

    assert found == [(f"a.txt{suffix}", whole)]
    assert lines[:2] == [(f"a.txt{suffix}:1", "one line"), (f"a.txt{suffix}:3", "one line")]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compressed_text_is_refused(tmp_path, suffix):
    data = compressed(text().encode(), suffix)
    (tmp_path / f"a.txt{suffix}").write_bytes(data[: len(data) // 2])

    with pytest.raises(ConfigError, match=rf"a\.txt{suffix}: is damaged"):
        documents(tmp_path)


def test_byte_order_mark_of_a_jsonl_is_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')

    assert documents(tmp_path) == [("a.jsonl:1", "a"), ("a.jsonl:2", "b")]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_records_are_read_from_every_container_by_text_field(tmp_path, name):
    write_records(tmp_path / name, [{"body": f"é {i}", "text": "no"} for i in range(5)])

    found = documents(tmp_path / name, text_field="body")

    assert found == [(f"{name}:{i + 1}", f"é {i}") for i in range(5)]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_records_with_messages_are_conversations(tmp_path, name):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write_records(tmp_path / name, [{"messages": messages}])

    ((_, found),) = documents(tmp_path / name)

    assert found == "<|user|>\nq\n<|end|>\n<|assistant|>\na\n<|end|>\n"


def test_text_by_line_has_a_document_per_line_that_is_not_blank(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"one\r\n\n  \n two \nthree")

    found = documents(tmp_path / "x.txt", by_line=True)

    assert found == [("x.txt:1", "one"), ("x.txt:4", " two "), ("x.txt:5", "three")]


def test_by_line_without_a_text_file_is_refused(tmp_path):
    (tmp_path / "x.md").write_text("one\ntwo")

    with pytest.raises(ConfigError, match=r"by_line needs \.txt files but there are none"):
        documents(tmp_path, by_line=True)


@pytest.mark.parametrize("pattern", [".", "*.py"])
def test_python_file_in_another_encoding_is_skipped_and_counted_unless_named(tmp_path, pattern):
    (tmp_path / "latin.py").write_bytes(b"# \xe9")

    found = DocumentReader.of([tmp_path / pattern])

    assert list(found) == []
    assert found.skipped == {str(tmp_path / "latin.py")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"ab\xff", r"x\.txt: is not UTF-8 \(byte 0xff at 2\)"),
        ("x.py", b"# \xe9", r"x\.py: is not UTF-8 \(byte 0xe9 at 2\)"),
        ("x.txt", b"ab" + b"\xe2\x82", r"x\.txt: is not UTF-8 \(byte 0xe2 at 2\)"),
        ("x.txt", b"a" * 200_000 + b"\xff", r"x\.txt: is not UTF-8 \(byte 0xff at 200000\)"),
        ("x.txt", b"a" * 65_535 + b"\xe2\x28", r"is not UTF-8 \(byte 0xe2 at 65535\)"),
        ("x.jsonl", b'{"text": "a"}\n{', r"x\.jsonl:2: is not valid JSON"),
        ("x.jsonl", b'{"text": "\xff"}', r"x\.jsonl:1: is not valid JSON"),
        ("x.jsonl", rb'{"text": "a\ud800"}', r"x\.jsonl:1: text has a lone surrogate, '\\ud800'"),
        ("x.jsonl", b"[]", r"x\.jsonl:1: must be an object with a string 'text'"),
        ("x.jsonl", b'{"text": 1}', r"x\.jsonl:1: must be an object with a string 'text'"),
        ("x.jsonl", b'{"messages": 1}', r"x\.jsonl:1: messages must be a list but is 1"),
        ("x.jsonl.gz", b"no", r"x\.jsonl\.gz: is damaged"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-9], r"x\.jsonl\.gz: is damaged"),
        ("x.jsonl.zst", b"no no no no", r"x\.jsonl\.zst: is damaged"),
        ("x.parquet", b"no", r"x\.parquet: is not a complete \.parquet file"),
    ],
)
def test_unreadable_document_is_refused(tmp_path, name, content, message):
    pytest.importorskip(ZSTD)
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigError, match=message):
        documents(tmp_path / name)


def test_truncated_zstd_file_is_refused(tmp_path):
    write_records(tmp_path / "x.jsonl.zst", [{"text": f"line {i}"} for i in range(5000)])
    whole = (tmp_path / "x.jsonl.zst").read_bytes()
    (tmp_path / "x.jsonl.zst").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ConfigError, match=r"x\.jsonl\.zst: is damaged"):
        documents(tmp_path / "x.jsonl.zst")


def test_parquet_without_the_column_is_refused_with_its_columns(tmp_path):
    write_records(tmp_path / "x.parquet", [{"body": "a", "id": 1}])

    with pytest.raises(
        ConfigError, match=r"must have a column 'text' or 'messages' .* but has body"
    ):
        documents(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("x.jsonl.zst", ZSTD, "zstd"), ("x.parquet", "pyarrow", "parquet")],
)
def test_missing_package_is_refused_with_its_extra(tmp_path, monkeypatch, name, module, extra):
    write_records(tmp_path / name, [{"text": "a"}])
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigError, match=rf"needs {module}: .* install .*\[{extra}\]"):
        documents(tmp_path / name)


# ---- long texts ----


@pytest.mark.parametrize("separator", ["\n", " "])
def test_long_text_in_pieces_has_the_same_tokens(tmp_path, separator):
    long = separator.join((text().replace("\n", separator),) * 20)
    (tmp_path / "x.txt").write_text(long)
    (document,) = DocumentReader(list_files(SourceConfig(path=str(tmp_path)), ()))

    pieces = [piece.text for piece in document.pieces]

    assert "".join(pieces) == long
    assert len(pieces) >= 3 and max(map(len, pieces)) <= PIECE_LENGTH
    tokens = [token for piece in pieces for token in tokenizer().encode(piece).ids]
    assert tokens == tokenizer().encode(long).ids


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_reading_a_large_file_takes_little_memory(tmp_path, name):
    size = 1 << 23
    if name == "x.txt":
        (tmp_path / name).write_text("é and some more words\n" * (size // 23))
    else:
        write_records(tmp_path / name, [{"text": "some words " * 100}] * (size // 1100))
    (file,) = list_files(SourceConfig(path=str(tmp_path)), ())

    tracemalloc.start()
    n_read = sum(len(p.text.encode()) for d in DocumentReader([file]) for p in d.pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert n_read > 0.99 * size
    assert peak < size / 8
