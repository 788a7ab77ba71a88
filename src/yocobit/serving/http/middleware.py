"""Middleware: API keys, allowed hosts, request ids, access log; and the set-up of logging."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import re
import secrets
import time
import traceback
from collections.abc import Collection, Mapping

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yocobit.serving.api.messages import ANTHROPIC
from yocobit.serving.api.wire import OPENAI, WireFormat
from yocobit.serving.errors import APIError, internal_error, shutting_down
from yocobit.serving.http.access_log import AccessRecord
from yocobit.serving.http.json_body import write_error
from yocobit.serving.runtime.metrics import Metrics
from yocobit.serving.runtime.runtime import key_client
from yocobit.serving.settings import ServerSettings

logger = logging.getLogger("yocobit.access")

_CLIENT_CLOSED_REQUEST = 499  # nginx's status
_MAX_HOST = 256  # characters in an error
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Access:
    """The outermost middleware: admits or rejects each request, and logs its outcome."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        metrics: Metrics,
        public_paths: Collection[str],
        wires: Mapping[str, WireFormat],
    ) -> None:
        """`public_paths` need neither a key nor a trusted host: probes have none.

        `wires` has the wire format of errors by path; other paths have OpenAI's. Requests with
        the header anthropic-version have Anthropic's on every path.
        """
        self._app = app
        self._metrics = metrics
        self._public_paths = public_paths
        self._wires = wires
        self._api_keys = settings.api_keys
        self._keys = [key.encode() for key in settings.api_keys]
        self._hosts = frozenset(map(_host_name, settings.trusted_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # not supported
            await send({"type": "websocket.close", "code": 1000})
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16).encode()
        status = 0
        root = scope.get("root_path", "")
        if root and scope["path"].startswith(f"{root}{root}/"):  # the client sent the root, too
            scope = {**scope, "path": scope["path"].removeprefix(root)}
        path = scope["path"].removeprefix(root)  # without a proxy's prefix
        wire = self._wires.get(path, OPENAI)
        if b"anthropic-version" in headers:  # also for paths that both APIs have
            wire = ANTHROPIC
        record = AccessRecord(scope, request_id.decode(), self._api_keys)
        state = scope["state"] = {
            **scope.get("state", {}),
            "is_counted": False,
            "record": record,
            "wire": wire,
        }

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
                if wire is ANTHROPIC:  # whose SDKs read it
                    message["headers"].append((b"request-id", request_id))
            await send(message)

        try:
            self._check(path, headers, scope)
            await self._run(scope, receive, send_with_id)
        except ClientDisconnect:
            status = status or _CLIENT_CLOSED_REQUEST
        except APIError as error:
            record.error = str(error)
            await write_error(send_with_id, error, wire)
        except asyncio.CancelledError:  # the server exits before the response is complete
            if not status:
                await write_error(send_with_id, shutting_down(), wire)
        except Exception:
            logger.exception(
                "request %s failed",
                record.fields["request_id"],
                extra={"fields": {**record.fields, "message": "the request failed"}},
            )
            record.error = "internal server error"
            if not status:
                await write_error(send_with_id, internal_error(), wire)
        finally:
            is_rejected = status >= 400 and status != _CLIENT_CLOSED_REQUEST
            if is_rejected and not state["is_counted"] and path not in self._public_paths:
                self._metrics.reject(status)
            record.write(status)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; free the objects of a request that fails."""
        try:
            await self._app(scope, receive, send)
        except BaseException as error:
            _clear_frames(error)
            raise

    def _check(self, path: str, headers: Mapping[bytes, bytes], scope: Scope) -> None:
        """APIError unless the host name is trusted and the API key is valid, where required.

        Sets the client's identity in the scope: the index of its key, or its address.
        """
        if self._hosts and path not in self._public_paths:
            host = _host_name(headers.get(b"host", b"").decode("latin-1"))
            if host not in self._hosts:
                raise APIError(
                    403,
                    f"the host name {host[:_MAX_HOST]!r} is not trusted; allow it with "
                    "--trusted-host or YOCOBIT_TRUSTED_HOSTS",
                    code="host_not_allowed",
                )
        if not self._keys or path in self._public_paths:
            scope["state"]["client"] = client_of(scope)
            return
        given = _key(headers)
        # All keys are compared, each in constant time, so that timing reveals nothing.
        found = [hmac.compare_digest(given, key) for key in self._keys]
        if not any(found):
            reason = "is wrong" if given else "is missing; send it as Authorization: Bearer KEY"
            raise APIError(401, f"the API key {reason}", code="invalid_api_key")
        scope["state"]["client"] = key_client(found.index(True))


def _clear_frames(error: BaseException) -> None:
    """Clear the local variables in the traceback of an error.

    A variable that refers to the error, or to the task that raised it, makes a reference cycle,
    which would keep the request's body until the next full garbage collection.
    """
    each: BaseException | None = error
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each = each.__context__


def client_of(scope: Scope) -> str:
    """Return the client's address."""
    return str((scope.get("client") or ("", 0))[0])


def _host_name(host: str) -> str:
    """Return the name in a Host header: without port and brackets, in lower case."""
    host = host.lower()
    if found := re.fullmatch(r"\[(.*)\](:\d*)?", host):
        return found[1]
    return host.partition(":")[0] if host.count(":") == 1 else host  # more: an IPv6 address


def _key(headers: Mapping[bytes, bytes]) -> bytes:
    """Return a request's API key; browsers send it as the password of Basic authentication."""
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
    """Formats each record as a line of JSON."""

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
    """Log to standard error, with one line per request: uvicorn's own access log is off."""
    handler = logging.StreamHandler()
    if as_json:
        handler.setFormatter(JSONFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("yocobit", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "yocobit" else logging.WARNING)
