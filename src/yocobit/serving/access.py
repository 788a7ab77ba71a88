"""Who may ask, and what is written down of it: keys, hosts, request ids, logs."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yocobit.serving.errors import APIError, ServerStoppedError
from yocobit.serving.exchange import SERVER_FAILED, ClientGoneError, write_error
from yocobit.serving.metrics import Metrics
from yocobit.serving.settings import ServerSettings

logger = logging.getLogger("yocobit.access")

_OPEN_PATHS = frozenset({"/health"})  # for probes, which have no key and know no name
_CLIENT_GONE = 499  # as nginx has it
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Access:
    """Middleware around everything: lets a request in or refuses it, and logs how it went."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = [key.encode() for key in settings.api_keys]
        self._hosts = frozenset(map(_name_of, settings.trusted_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # there are none here
            await send({"type": "websocket.close", "code": 1000})
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16).encode()
        begin, status = time.perf_counter(), 0
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # of ours, below a proxy's
        state = scope["state"] = {**scope.get("state", {}), "is_counted": False}
        fields: dict[str, Any] = {
            "request_id": request_id.decode(),
            "client": client_of(scope),
            "method": scope["method"],
            "path": quote(scope["path"]),  # else it could end a line and write another
        }

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            self._check(path, headers, scope)
            await self._app(scope, receive, send_with_id)
        except ClientGoneError:
            status = status or _CLIENT_GONE
        except APIError as error:
            await write_error(send_with_id, error)
        except asyncio.CancelledError:  # the server ends before the answer does
            if not status:
                await write_error(send_with_id, ServerStoppedError())
        except Exception:
            logger.exception(
                "request %s failed",
                fields["request_id"],
                extra={"fields": {**fields, "message": "the request failed"}},
            )
            if not status:
                await write_error(send_with_id, SERVER_FAILED)
        finally:
            is_refusal = status >= 400 and status != _CLIENT_GONE
            if is_refusal and not state["is_counted"] and path not in _OPEN_PATHS:
                self._metrics.refused(status)
            fields |= {"status": status, "seconds": round(time.perf_counter() - begin, 6)}
            logger.info(
                "%s %s %s", fields["method"], fields["path"], status, extra={"fields": fields}
            )

    def _check(self, path: str, headers: Mapping[bytes, bytes], scope: Scope) -> None:
        """APIError unless the request names a host of ours and has a key, where they are asked."""
        if self._hosts and path not in _OPEN_PATHS:
            host = _name_of(headers.get(b"host", b"").decode("latin-1"))
            if host not in self._hosts:
                raise APIError(
                    403,
                    f"this server is not called {host!r}; allow that by --trusted-host or "
                    "YOCOBIT_TRUSTED_HOSTS",
                    code="host_not_allowed",
                )
        if not self._keys or path in _OPEN_PATHS:
            scope["state"]["caller"] = client_of(scope)
            return
        given = _key(headers)
        # Every key is compared, each in constant time: how long it takes tells nothing.
        found = [hmac.compare_digest(given, key) for key in self._keys]
        if not any(found):
            what = "is wrong" if given else "is missing; send it as Authorization: Bearer KEY"
            raise APIError(401, f"the API key {what}", code="invalid_api_key")
        scope["state"]["caller"] = f"key {found.index(True)}"


def client_of(scope: Scope) -> str:
    """Return the address that a request comes from."""
    return str((scope.get("client") or ("", 0))[0])


def _name_of(host: str) -> str:
    """Return the name in a Host header: no port, no brackets, no capitals."""
    host = host.lower()
    if found := re.fullmatch(r"\[(.*)\](:\d*)?", host):
        return found[1]
    return host.partition(":")[0] if host.count(":") == 1 else host  # more: an IPv6 address


def _key(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key that a request gives; a browser gives it as the password of Basic."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return headers.get(b"x-api-key", b"")


class JSONFormatter(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **(getattr(record, "fields", None) or {"message": record.getMessage()}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def set_up_logging(as_json: bool) -> None:
    """Log to standard error, each request once: uvicorn's own lines of them are left out."""
    handler = logging.StreamHandler()
    if as_json:
        handler.setFormatter(JSONFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("yocobit", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "yocobit" else logging.WARNING)
