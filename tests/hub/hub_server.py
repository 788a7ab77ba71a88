"""A server that speaks the part of the Hugging Face Hub's API that downloads use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repository:
    """The files of a model, and how the server answers for them."""

    files: dict[str, bytes]
    is_gated: bool = False
    token: str | None = None  # of those who may read it
    revisions: tuple[str, ...] = ("main", COMMIT)
    hash_of: dict[str, str] = field(default_factory=dict)  # a wrong SHA-256, by file
    cut_after: dict[str, int] = field(default_factory=dict)  # close after N bytes, once

    @classmethod
    def of(cls, folder: Path, **settings) -> Repository:
        return cls({file.name: file.read_bytes() for file in folder.iterdir()}, **settings)


@dataclass
class HubServer:
    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("range", "")))
        if found := _API.fullmatch(path):
            name, revision, file = found[1], found[2], None
        elif found := _FILE.fullmatch(path):
            name, revision, file = found.groups()
        else:
            return self._error(404, "EntryNotFound", "no such page")
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._error(404, "RepoNotFound", "Repository Not Found")
        if (
            repository.is_gated
            and self.headers.get("authorization") != f"Bearer {repository.token}"
        ):
            return self._error(403, "GatedRepo", f"Access to model {name} is restricted.")
        if (revision or "main") not in repository.revisions:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file is None:
            return self._send(json.dumps(_info(name, repository)).encode(), {}, has_body)
        if file not in repository.files:
            return self._error(404, "EntryNotFound", f"{file} does not exist")
        content = repository.files[file]
        etag = f'"{_hash(repository, file)}"'
        headers = {"X-Repo-Commit": COMMIT, "ETag": etag, "Accept-Ranges": "bytes"}
        if _is_large(file):
            headers |= {"X-Linked-ETag": etag, "X-Linked-Size": str(len(content))}
        self._send(
            content,
            headers,
            has_body,
            cut=repository.cut_after.pop(file, None) if has_body else None,
        )

    def _send(self, content: bytes, headers: dict, has_body: bool, cut: int | None = None) -> None:
        first = 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked:
            first, size = int(asked[1]), len(content)
            content = content[: int(asked[2]) + 1 if asked[2] else size]
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{size}"
        self.send_response(206 if asked else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if has_body and cut is not None:
            self.wfile.write(content[first:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        elif has_body:
            self.wfile.write(content[first:])

    def _error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _is_large(file: str) -> bool:
    return file.endswith((".gguf", ".safetensors"))


def _hash(repository: Repository, file: str) -> str:
    content = repository.files[file]
    if _is_large(file):
        return repository.hash_of.get(file) or hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # of git


def _info(name: str, repository: Repository) -> dict:
    siblings = []
    for file, content in repository.files.items():
        entry = {"rfilename": file, "size": len(content), "blobId": _hash(repository, file)}
        if _is_large(file):
            sha256 = _hash(repository, file)
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        siblings.append(entry)
    return {"id": name, "sha": COMMIT, "private": False, "siblings": siblings}


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Yield a running hub without models."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = HubServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield handler.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
