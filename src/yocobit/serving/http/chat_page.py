"""The chat page: its files under fixed paths, with a content security policy."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import FileResponse, Response
from starlette.routing import Route

_PACKAGE = Path(__file__).parents[2]
# In the wheel; in a checkout, at the top of the repository.
_PAGE = next(path for path in (_PACKAGE / "web", _PACKAGE.parents[1] / "web") if path.is_dir())
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
# Fixed: the system's own table may differ, and browsers refuse scripts and styles of another type.
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


def page_routes() -> list[Route]:
    """Return the page's routes: no part of a request is used as a file path."""
    # Licences and other texts have none of the types, and no route.
    found = [file for file in _PAGE.rglob("*") if file.suffix in _TYPES]
    files = {file.relative_to(_PAGE).as_posix(): file for file in found}

    async def index(request: HTTPRequest) -> Response:
        return _response(_PAGE / "index.html")

    async def serve_file(request: HTTPRequest) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        return _response(file)

    return [Route("/", index), Route("/page/{name:path}", serve_file)]


def _response(file: Path) -> Response:
    return FileResponse(file, headers=_HEADERS, media_type=_TYPES[file.suffix])
