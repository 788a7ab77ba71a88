"""The files of a directory or a glob: those that are read, and those that are left out.

* Hidden files and directories are left out, unless the pattern spells their dot.
* Links to files are followed. Links to directories are not, in a directory and below "**".
* Run directories are left out: a run may write into the directory of its training text.
* FIFOs, sockets, devices and links without a target are left out.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from yocobit.errors import ConfigError
from yocobit.packing.checkpoints import is_run

EVERYTHING = ("**", "*")
_SPECIAL = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFDIR: "directory"}


@dataclass
class Listing:
    """The files below `root` that match the parts of a glob and no pattern of `exclude`."""

    root: str
    exclude: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)  # path by name relative to `root`
    hidden: dict[str, str] = field(default_factory=dict)  # hidden files, likewise
    ignored: dict[str, str] = field(default_factory=dict)  # kinds of the others that are left out

    @classmethod
    def of_directory(cls, directory: str, exclude: tuple[str, ...]) -> Listing:
        """List the files of a directory and of its subdirectories."""
        return cls(directory, exclude)._search(EVERYTHING)

    @classmethod
    def of_glob(cls, pattern: str, exclude: tuple[str, ...]) -> Listing:
        """List the files of a glob; `root` is the directory before its first wildcard."""
        parts = Path(pattern).parts
        n_fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        rest = parts[n_fixed:]
        root = os.path.join(*parts[:n_fixed]) if n_fixed else ""
        return cls(root, exclude)._search((*rest, "*") if rest[-1] == "**" else rest)

    def _search(self, parts: tuple[str, ...]) -> Listing:
        """Search without recursion: directories may be nested a thousand deep."""
        pending, seen = [("", 0)], set[tuple[str, int]]()
        while pending:
            if (place := pending.pop()) in seen:  # reached twice by "**/**"
                continue
            seen.add(place)
            prefix, i = place
            is_last = i == len(parts) - 1
            if parts[i] == "**":
                pending.append((prefix, i + 1))
                pending += [(f"{name}/", i) for name in self._subdirectories(prefix)]
                continue
            for name in self._matching(prefix, parts[i]):
                if not is_last:
                    if os.path.isdir(self._path(name)):
                        pending.append((f"{name}/", i + 1))
                elif not _is_excluded(name, self.exclude):
                    self._add(name)
        return self

    def _matching(self, prefix: str, part: str) -> Iterator[str]:
        """Yield the entries of a directory that match one part of the glob."""
        if not glob.has_magic(part):
            if os.path.lexists(self._path(prefix + part)):
                yield prefix + part
            return
        for entry in self._entries(prefix):
            if not fnmatch.fnmatchcase(entry.name, part):
                continue
            if not entry.name.startswith(".") or part.startswith("."):
                yield prefix + entry.name
            elif not _is_excluded(prefix + entry.name, self.exclude) and _holds(entry.is_file):
                self.hidden[prefix + entry.name] = entry.path

    def _subdirectories(self, prefix: str) -> Iterator[str]:
        """Yield the subdirectories that "**" descends into."""
        for entry in self._entries(prefix):
            name = prefix + entry.name
            if not _holds(entry.is_dir) or _has_excluded_part(entry.name, self.exclude):
                continue
            if entry.name.startswith("."):
                self.ignored[name] = "hidden directory"
            elif entry.is_symlink():
                self.ignored[name] = "link to a directory"
            elif _holds(partial(is_run, entry.path)):
                self.ignored[name] = "run directory"
            else:
                yield name

    def _add(self, name: str) -> None:
        try:
            mode = os.stat(self._path(name)).st_mode
        except OSError:
            self.ignored[name] = "link without a target"
            return
        if stat.S_ISREG(mode):
            self.files[name] = self._path(name)
        elif not stat.S_ISDIR(mode):
            self.ignored[name] = kind_of(mode)

    def _entries(self, prefix: str) -> list[os.DirEntry[str]]:
        path = self._path(prefix).rstrip("/") or ("/" if self.root.startswith("/") else os.curdir)
        try:
            with os.scandir(path) as entries:
                return list(entries)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read ({error.strerror}); exclude it or change its permissions"
            ) from None

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)


def kind_of(mode: int) -> str:
    """Return the kind of a file that is not a regular one."""
    return _SPECIAL.get(stat.S_IFMT(mode), "device")


def _holds(is_kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; False if it cannot be read, as in a loop of links."""
    try:
        return is_kind()
    except OSError:
        return False


def _is_excluded(name: str, exclude: tuple[str, ...]) -> bool:
    """Whether a pattern matches the whole name or, without a slash, any part of it."""
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
        return True
    return any(_has_excluded_part(part, exclude) for part in PurePosixPath(name).parts)


@lru_cache(maxsize=4096)
def _has_excluded_part(part: str, exclude: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(part, p) for p in exclude if "/" not in p)
