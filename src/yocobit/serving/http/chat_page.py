"""The chat page: its files under fixed paths, with a content security policy."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request as HTTPRequest
from starlette.responses import FileResponse, Response
from starlette.routing import Route

_PACKAGE = Path(__file__).parents[2]
# In the wheel; in a checkout, at the top of the repository.
_PAGE = next(path for path in (_PACKAGE / "web", _PACKAGE.parents[1] / "web") if path.is_dir())
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """Return a route for each file: no part of a request is used as a file path."""
    files = {f"/page/{file.name}": file for file in _PAGE.iterdir() if file.is_file()}
    return [_route(path, file) for path, file in {"/": _PAGE / "index.html", **files}.items()]


def _route(path: str, file: Path) -> Route:
    async def serve_file(request: HTTPRequest) -> Response:
        return FileResponse(file, headers=_HEADERS)

    return Route(path, serve_file)
