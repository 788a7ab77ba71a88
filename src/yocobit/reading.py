"""Reading files that users provide: one boundary that turns every failure into one line.

Every reader of a file kind goes through `boundary`, all JSON through `read_json` or `parse_json`,
all TOML through `read_toml` or `parse_toml`. The reader checks each field; whatever a parser or a
library raises meanwhile becomes a ConfigError that names the file.
"""

from __future__ import annotations

import codecs
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from yocobit.errors import ConfigError, UserError, is_out_of_memory, printable
from yocobit.system import open_flags

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1 << 28  # of a JSON or text file; the largest published tokenizer.json has 2^25

_MAX_TOML_BYTES = 1 << 20
_MAX_DOT_PAIRS = 50_000_000  # tomllib keeps every prefix of a dotted key

_T = TypeVar("_T")


@contextmanager
def boundary(subject: str | Path, rule: str, kind: type[UserError] = ConfigError) -> Iterator[None]:
    """Raise `kind` with one line, "SUBJECT: RULE (CAUSE)", for any failure in the block.

    `rule` is what the file violates, such as "is not a tokenizer.json". The errors of this package
    and of the operating system pass unchanged, and so does a lack of memory.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except BaseException as error:
        if is_out_of_memory(error) or not _is_failure(error):
            raise
        raise kind(f"{subject}: {rule} ({cause(error)})") from None


def cause(error: BaseException) -> str:
    """Return what an exception says, as part of a line."""
    return printable(str(error) or type(error).__name__, 200)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read; ConfigError if it is another kind of file.

    A FIFO or a device would block the reader or never end. OSError as from open().
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    try:
        descriptor = os.open(path, os.O_RDONLY | open_flags("O_NONBLOCK", "O_CLOEXEC"))
    except ValueError:  # a NUL in the name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise ConfigError(f"{path}: must be a regular file but is a FIFO, socket or device")


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file; ConfigError if it is another kind of file or too large.

    OSError as from open().
    """
    with open_regular(path) as stream:
        # A buffer of the file's size, not of the limit's.
        data = stream.read(min(os.fstat(stream.fileno()).st_size, max_bytes) + 1)
    if len(data) > max_bytes:
        raise ConfigError(f"{path}: must have at most {max_bytes:,} bytes but has more")
    return data


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Read UTF-8 text without its byte order mark; ConfigError if it is not UTF-8."""
    return decode(read_bytes(path, max_bytes), path)


def decode(data: bytes, subject: str | Path) -> str:
    """Decode UTF-8 without its byte order mark; ConfigError if it is not UTF-8."""
    check_encoding(data, subject)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotUTF8Error(f"{subject}: is not UTF-8 (byte {error.start})") from None


class NotUTF8Error(ConfigError):
    """A text in another encoding."""


def check_encoding(data: bytes, subject: str | Path) -> None:
    """Raise NotUTF8Error if the first bytes of a text are those of UTF-16 or UTF-32."""
    zeros = "".join("0" if byte == 0 else "x" for byte in data[:4])
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) or zeros in ("x000", "000x"):
        name = "UTF-32"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or zeros in ("x0x0", "0x0x"):
        name = "UTF-16"
    else:
        return
    raise NotUTF8Error(f"{subject}: must be UTF-8 but is {name}; convert it, such as with iconv")


@overload
def read_json(path: Path) -> dict[str, Any]: ...
@overload
def read_json(path: Path, kind: type[_T]) -> _T: ...
def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """Read a JSON file of type `kind`, by default an object; OSError as from open().

    `kind` is any type that msgspec decodes: the fields of a msgspec.Struct or of a TypedDict are
    checked. ConfigError names the file, and the field if one is wrong.
    """
    return parse_json(read_bytes(path), path, kind)


def read_own_json(path: Path, kind: type[_T]) -> _T:
    """Read a JSON file that this package wrote, of a struct that forbids unknown fields."""
    try:
        return read_json(path, kind)
    except ConfigError as error:
        if "unknown field" not in str(error):
            raise
        raise ConfigError(
            f"{error}; a newer version of yocobit has written it: update yocobit"
        ) from None


@overload
def parse_json(data: bytes | str, subject: str | Path) -> dict[str, Any]: ...
@overload
def parse_json(data: bytes | str, subject: str | Path, kind: type[_T]) -> _T: ...
def parse_json(data: bytes | str, subject: str | Path, kind: Any = dict[str, Any]) -> Any:
    """Decode JSON of type `kind`, by default an object; ConfigError names `subject` otherwise."""
    with boundary(subject, "is not valid JSON"):
        raw = data.encode() if isinstance(data, str) else data.removeprefix(codecs.BOM_UTF8)
        check_encoding(raw, subject)
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.ValidationError as error:
            field, message = wrong_field(error)
            message = f"{field}: {message}" if field else message
            raise ConfigError(f"{subject}: {printable(message, 300)}") from None


def wrong_field(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the name of the field that an error of msgspec is about, or "", and the message."""
    message, _, path = str(error).partition(" - at `$")
    return path.rstrip("`").lstrip("."), message


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; OSError as from open(), ConfigError if it is not TOML."""
    return parse_toml(read_text(path, _MAX_TOML_BYTES), path)


def parse_toml(text: str, subject: str | Path) -> dict[str, Any]:
    """Decode TOML; ConfigError names `subject` if it is invalid."""
    if sum(line.count(".") ** 2 for line in text.splitlines()) > _MAX_DOT_PAIRS:
        raise ConfigError(f"{subject}: is not valid TOML (dotted keys are nested too deeply)")
    with boundary(subject, "is not valid TOML"):
        return tomllib.loads(text)


def _is_failure(error: BaseException) -> bool:
    """Whether an exception comes from a library: Rust panics are BaseExceptions."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
