"""The chat page in a browser, and a stand-in for the server with scripted responses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route

from yocobit.serving.http.chat_page import page_routes

NAMES = ("chromium", "/usr/bin/chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MODEL = {
    "id": "tiny",
    "object": "model",
    "created": 0,
    "owned_by": "yocobit",
    "context_window": 8192,
    "yocobit": {
        "parameters": 7_100_000,
        "weights": "ternary",
        "model_bytes": 3_450_000,
        "cache": "f32",
        "cache_bytes_per_token": 1024,
        "transformer_cache_bytes_per_token": 6144,
        "state_bytes": 196_608,
        "sampling": {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0.0},
        "has_chat_template": True,
    },
}


class StandIn:
    """Implements the server's API. `answer` is the model's output, with a token per word."""

    address: str

    def __init__(self) -> None:
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            *page_routes(),
        ]
        self.app = Starlette(routes=[Mount("/behind/a/proxy", routes=routes), *routes])
        self.reset()

    def reset(self) -> None:
        self.model = MODEL
        self.answer = "Hello there, reader."
        self.finish = "stop"
        self.delay_s = 0.0  # before each token
        self.fail_after: int | None = None  # tokens, with an error event
        self.break_after: int | None = None  # tokens, by closing the connection
        self.errors: list[tuple[int, dict, dict[str, str]]] = []  # status, body, headers
        self.requests: list[dict] = []
        self.n_prompt_tokens = 40
        self.n_aborted = 0

    async def _models(self, request):
        return JSONResponse({"object": "list", "data": [self.model]})

    async def _complete(self, request):
        self.requests.append(await request.json())
        if self.errors:
            status, body, headers = self.errors.pop(0)
            return JSONResponse(body, status, headers)
        is_chat = request.url.path.endswith("chat/completions")
        return StreamingResponse(self._events(is_chat), media_type="text/event-stream")

    async def _events(self, is_chat: bool):
        def event(text: str, finish: str | None = None) -> str:
            content = {"delta": {"content": text} if text else {}} if is_chat else {"text": text}
            choice = {"index": 0, **content, "finish_reason": finish}
            return f"data: {json.dumps({'choices': [choice]})}\n\n"

        tokens = [token for token in self.answer.replace(" ", "\0 ").split("\0") if token]
        done = False
        try:
            yield ": ping\n\n"
            for number, token in enumerate(tokens):
                if number == self.fail_after:
                    yield 'data: {"error": {"message": "The engine ran out of memory."}}\n\n'
                if number in (self.fail_after, self.break_after):
                    return
                await asyncio.sleep(self.delay_s)
                yield event(token)
            yield event("", self.finish)
            n_prompt = self.n_prompt_tokens
            usage = {
                "prompt_tokens": n_prompt,
                "completion_tokens": len(tokens),
                "total_tokens": n_prompt + len(tokens),
                "prompt_tokens_details": {"cached_tokens": 30},
                "queue_time": 0.001,
                "prompt_time": 0.01,
                "completion_time": (len(tokens) - 1) / 200,  # from the first token on
                "total_time": 1.0,
            }
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
            done = True
        finally:
            self.n_aborted += not done


@contextlib.contextmanager
def serving(app):
    """Serve an application on a free port of this machine; yield its address."""
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    server.force_exit = True
    thread.join(5)


class Visit:
    """The page in a new tab, without messages. `problems` collects its errors."""

    def __init__(self, context, address: str) -> None:
        self.address = address
        self.problems: list[str] = []
        self.urls: list[str] = []
        self.page = context.new_page()
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._record)
        self.page.add_init_script("sessionStorage.length || localStorage.clear()")
        self.page.add_init_script("sessionStorage.opened = true")
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " (event) => console.error('violates ' + event.violatedDirective))"
        )
        self.open()

    def open(self) -> None:
        # wait_for() looks again after 20 ms, expect() after 100.
        self.page.goto(self.address)
        self.find("#header .name:not(:empty)").wait_for(state="attached")

    def _record(self, message) -> None:
        # The browser logs each error response.
        if message.type in ("error", "warning") and "Failed to load" not in message.text:
            self.problems.append(message.text)

    def find(self, selector: str, **options):
        return self.page.locator(selector, **options)

    def write(self, text: str) -> None:
        self.find("#composer textarea").fill(text)

    def send(self, text: str) -> None:
        self.write(text)
        self.find(".send").click()

    def say(self, text: str) -> None:
        """Send a message, and wait for the end of the answer."""
        self.send(text)
        self.wait()

    def wait(self) -> None:
        self.find(".send").wait_for()

    def choose_files(self, selector: str, *files: tuple[str, bytes]) -> None:
        """Choose files, as (name, content), with the input that a button opens."""
        with self.page.expect_file_chooser() as chooser:
            self.find(selector).click()
        chooser.value.set_files(
            [{"name": name, "mimeType": "", "buffer": content} for name, content in files]
        )

    def texts(self) -> list[str]:
        return self.find("article .body").all_inner_texts()

    def markdown(self, *texts: str) -> str:
        """Return the HTML of an element after it has rendered each text in turn."""
        return self.page.evaluate(
            """async (texts) => {
              const { renderMarkdown } = await import("./page/markdown.js");
              const element = document.createElement("div");
              for (const text of texts) renderMarkdown(element, text);
              return element.innerHTML;
            }""",
            list(texts),
        )
