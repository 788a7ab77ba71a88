"""The chat page in a browser, against a stand-in for the server that says what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import threading
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

from starlette.applications import Starlette  # noqa: E402
from starlette.responses import FileResponse, JSONResponse, StreamingResponse  # noqa: E402
from starlette.routing import Mount, Route  # noqa: E402
from starlette.staticfiles import StaticFiles  # noqa: E402

expect = sync_api.expect

PAGE = Path(__file__).parents[1] / "src/yocobit/serving/page"
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
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
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

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


class StandIn:
    """Speaks the server's API. `answer` is what the model says; it is cut into tokens at spaces."""

    def __init__(self) -> None:
        routes = [
            Route("/", self._index),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Mount("/page", StaticFiles(directory=PAGE)),
        ]
        self.app = Starlette(routes=[Mount("/behind/a/proxy", routes=routes), *routes])
        self.reset()

    def reset(self) -> None:
        self.model = MODEL
        self.answer = "Hello there, reader."
        self.finish = "stop"
        self.delay_s = 0.0  # before each token
        self.fail_after: int | None = None  # tokens, with an event that is an error
        self.break_after: int | None = None  # tokens, by ending the connection
        self.refusals: list[tuple[int, dict, dict[str, str]]] = []  # status, body, headers
        self.requests: list[dict] = []
        self.n_prompt_tokens = 40
        self.n_aborted = 0

    async def _index(self, request):
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    async def _models(self, request):
        return JSONResponse({"object": "list", "data": [self.model]})

    async def _complete(self, request):
        self.requests.append(await request.json())
        if self.refusals:
            status, body, headers = self.refusals.pop(0)
            return JSONResponse(body, status, headers)
        is_chat = request.url.path.endswith("chat/completions")
        return StreamingResponse(self._events(is_chat), media_type="text/event-stream")

    async def _events(self, is_chat: bool):
        def event(text: str, finish: str | None = None) -> str:
            said = {"delta": {"content": text} if text else {}} if is_chat else {"text": text}
            choice = {"index": 0, **said, "finish_reason": finish}
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
                "completion_time": len(tokens) / 200,
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


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def stand_in_and_address():
    stand_in = StandIn()
    with serving(stand_in.app) as address:
        yield stand_in, address


@pytest.fixture
def stand_in(stand_in_and_address) -> StandIn:
    stand_in_and_address[0].reset()
    return stand_in_and_address[0]


class Visit:
    """The page in a tab where nothing was said yet. What went wrong is in `problems`."""

    def __init__(self, context, address: str) -> None:
        self.address = address
        self.problems: list[str] = []
        self.urls: list[str] = []
        self.page = context.new_page()
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._hear)
        self.page.add_init_script("sessionStorage.length || localStorage.clear()")
        self.page.add_init_script("sessionStorage.opened = true")
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " (event) => console.error('violates ' + event.violatedDirective))"
        )
        self.open()

    def open(self) -> None:
        self.page.goto(self.address)
        expect(self.find("#header .name")).not_to_be_empty()

    def _hear(self, message) -> None:
        # The browser itself reports each response that is an error.
        if message.type in ("error", "warning") and "Failed to load" not in message.text:
            self.problems.append(message.text)

    def find(self, selector: str, **options):
        return self.page.locator(selector, **options)

    def write(self, text: str) -> None:
        self.find("#composer textarea").fill(text)

    def say(self, text: str) -> None:
        """Send a message, and wait for the end of the answer."""
        self.write(text)
        self.find(".send").click()
        self.wait()

    def wait(self) -> None:
        expect(self.find(".send")).to_be_visible()

    def texts(self) -> list[str]:
        return self.find("article .body").all_inner_texts()

    def markdown(self, *texts: str) -> str:
        """Return the HTML of an element that shows some texts, one after the other."""
        return self.page.evaluate(
            """async (texts) => {
              const { renderMarkdown } = await import("./page/markdown.js");
              const element = document.createElement("div");
              for (const text of texts) renderMarkdown(element, text);
              return element.innerHTML;
            }""",
            list(texts),
        )


@pytest.fixture(scope="module")
def context(browser):
    """One for all that need no other: it has the page's files in its cache."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def visit(browser, context, stand_in, stand_in_and_address):
    """Open the page; whatever a test does with it, it stays within bounds."""
    visits = []

    def open_page(**options) -> Visit:
        own = browser.new_context(**options) if options else context
        visits.append(Visit(own, stand_in_and_address[1]))
        return visits[-1]

    yield open_page
    for one in visits:
        outside = [url for url in one.urls if not url.startswith((one.address, "blob:"))]
        one.page.close()
        assert not outside
        assert not one.problems


# ---- answers ----


def test_an_answer_is_streamed_and_measured(visit, stand_in):
    page = visit()

    page.say("Who is there?")

    assert page.texts() == ["Who is there?", "Hello there, reader."]
    request = stand_in.requests[0]
    assert request["messages"] == [{"role": "user", "content": "Who is there?"}]
    assert request["stream_options"] == {"include_usage": True}
    assert request.keys() == {"model", "messages", "stream", "stream_options", "seed"}
    expect(page.find(".speed .value")).to_have_text("200")
    expect(page.find(".first .value")).to_have_text(re.compile(r"\d m?s"))
    expect(page.find(".context .value")).to_have_text("43")
    # 196,608 + 43 * 1,024 and 43 * 6,144 bytes
    expect(page.find(".bar.ours .value")).to_have_text("241 kB")
    expect(page.find(".bar.transformers .value")).to_have_text("264 kB")
    expect(page.find(".ratio")).to_have_text("1.1 times less")


def test_text_comes_while_it_is_written_and_can_be_stopped(visit, stand_in):
    stand_in.answer = "word " * 1000
    stand_in.delay_s = 0.005
    page = visit()

    page.write("Speak.")
    page.find("#composer textarea").press("Enter")
    expect(page.find(".answer .body")).to_contain_text("word word")
    expect(page.find(".answer")).to_have_attribute("aria-busy", "true")
    page.page.keyboard.press("Escape")
    page.wait()

    expect(page.find(".answer .note")).to_contain_text("stopped")
    said = page.texts()[1]
    assert "word word" in said
    stand_in.answer = "Yes."
    page.say("Are you done?")
    assert [m["content"].strip() for m in stand_in.requests[1]["messages"]] == [
        "Speak.",
        said,
        "Are you done?",
    ]
    assert stand_in.n_aborted == 1


def test_shift_enter_begins_a_line(visit, stand_in):
    page = visit()

    page.find("#composer textarea").press_sequentially("one")
    page.page.keyboard.press("Shift+Enter")
    page.find("#composer textarea").press_sequentially("two")
    page.page.keyboard.press("Enter")
    page.wait()

    assert stand_in.requests[0]["messages"][0]["content"] == "one\ntwo"
    expect(page.find("#composer textarea")).to_have_value("")


def test_the_last_answer_can_be_had_again(visit, stand_in):
    page = visit()
    page.say("Who?")
    stand_in.answer = "Somebody else."

    page.find(".again:visible").click()
    page.wait()

    assert page.texts() == ["Who?", "Somebody else."]
    first, second = stand_in.requests
    assert first["messages"] == second["messages"]
    assert first["seed"] != second["seed"]


def test_an_answer_is_kept_if_there_is_no_other(visit, stand_in):
    page = visit()
    page.say("Who?")
    stand_in.refusals = [(500, {"error": {"message": "Out of order."}}, {})]

    page.find(".again:visible").click()

    expect(page.find(".problem p:visible")).to_have_text("Out of order.")
    assert page.texts() == ["Who?", "Hello there, reader."]


@pytest.mark.parametrize(
    ("trouble", "words", "kept"),
    [
        (
            {"refusals": [(503, {"error": {"message": "Too busy."}}, {"Retry-After": "7"})]},
            "Too busy. (It asks to try again in 7 s.)",
            "",
        ),
        ({"refusals": [(502, {}, {})]}, "The server answered 502 Bad Gateway.", ""),
        ({"fail_after": 2}, "The engine ran out of memory.", "Hello there,"),
        ({"break_after": 1}, "The connection ended before the answer did.", "Hello"),
    ],
)
def test_an_error_is_shown_in_place_and_can_be_retried(visit, stand_in, trouble, words, kept):
    page = visit()
    for name, value in trouble.items():
        setattr(stand_in, name, value)

    page.say("Who?")
    expect(page.find(".problem p:visible")).to_have_text(words)
    assert [text for text in page.texts() if text] == ["Who?", kept][: 1 + bool(kept)]
    stand_in.reset()
    page.find(".retry:visible").click()
    page.wait()

    expect(page.find(".problem:visible")).to_have_count(0)
    assert page.texts() == ["Who?", "Hello there, reader."]


def test_a_server_that_is_away_loses_nothing(visit, stand_in):
    page = visit()
    page.page.route("**/v1/chat/completions", lambda route: route.abort())

    page.say("Who?")
    expect(page.find(".problem p:visible")).to_contain_text("cannot be reached")
    page.page.unroute("**/v1/chat/completions")
    page.page.reload()
    page.find(".retry:visible").click()
    page.wait()

    assert page.texts() == ["Who?", "Hello there, reader."]


def test_settings_are_checked_sent_and_remembered(visit, stand_in):
    page = visit()
    page.find("#header .set").click()
    page.page.get_by_label("Temperature").fill("0,25")
    page.page.get_by_label("Top k").fill("12.5")
    page.page.get_by_label("Seed").fill("7")
    page.page.get_by_label("System message").fill("Be brief.")
    expect(page.page.get_by_label("Top k")).to_have_attribute("aria-invalid", "true")
    expect(page.find("#setting-top_k-hint")).to_have_text(
        "Must be a whole number from 0 to 1000000."
    )
    expect(page.page.get_by_label("Top p")).to_have_attribute("placeholder", "0.95")
    page.page.keyboard.press("Escape")

    page.open()
    page.say("Who?")

    request = stand_in.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (request["temperature"], request["seed"]) == (0.25, 7)
    assert "top_k" not in request and "top_p" not in request


def test_a_model_without_a_chat_template_continues_text(visit, stand_in):
    stand_in.model = {**MODEL, "yocobit": {**MODEL["yocobit"], "has_chat_template": False}}
    stand_in.answer = " God created"
    page = visit()
    expect(page.find(".text-only")).to_contain_text("not trained on conversations")

    page.say("In the beginning")
    stand_in.answer = " the *heaven*."
    page.find(".send").click()
    page.wait()

    assert [request["prompt"] for request in stand_in.requests] == [
        "In the beginning",
        "In the beginning God created",
    ]
    expect(page.find("#messages .last .body")).to_have_text(" the *heaven*.")
    page.find(".edit:visible").click()
    expect(page.find(".editor textarea:visible")).to_have_value(
        "In the beginning God created the *heaven*."
    )


def test_the_page_works_behind_a_proxy_that_adds_a_path(visit, stand_in):
    page = visit()
    page.address += "/behind/a/proxy/"
    page.urls.clear()

    page.open()
    page.say("Who?")

    assert page.texts() == ["Who?", "Hello there, reader."]
    assert all(url.startswith(page.address) for url in page.urls)


# ---- conversations ----


def test_a_reload_keeps_what_was_said_and_what_was_typed(visit, stand_in):
    page = visit()
    page.say("Who?")
    page.write("not sent yet")
    stand_in.reset()

    page.page.reload()

    assert page.texts() == ["Who?", "Hello there, reader."]
    expect(page.find("#composer textarea")).to_have_value("not sent yet")
    expect(page.find(".context .value")).to_have_text("43")
    assert not stand_in.requests


def test_an_answer_that_a_reload_interrupts_is_kept_as_far_as_it_came(visit, stand_in):
    stand_in.answer = "word " * 1000
    stand_in.delay_s = 0.005
    page = visit()
    page.write("Speak.")
    page.find(".send").click()
    expect(page.find(".answer .body")).to_contain_text("word word")

    page.page.reload()

    expect(page.find(".answer .body")).to_contain_text("word word")
    expect(page.find(".answer .note")).to_contain_text("interrupted")
    expect(page.find(".again:visible")).to_be_enabled()


def test_conversations_are_listed_deleted_and_exported(visit):
    page = visit()
    titles = page.find("#sidebar li")
    question = page.find(".question .body")
    page.say("First?")
    page.find(".begin").click()
    page.say("Second?")
    expect(titles).to_have_text(["Second?", "First?"])

    page.find("#header .remove").click()
    expect(titles).to_have_text(["First?"])
    page.page.get_by_role("button", name="Undo").click()
    expect(question).to_have_text("Second?")
    page.find("#sidebar li button", has_text="First?").click()
    expect(question).to_have_text("First?")
    page.page.go_back()
    expect(question).to_have_text("Second?")

    with page.page.expect_download() as download:
        page.find("#sidebar .export").click()
    exported = json.loads(Path(download.value.path()).read_text())["conversations"]
    assert [c["messages"][0]["content"] for c in exported] == ["Second?", "First?"]


def test_what_is_said_in_another_tab_comes_and_what_is_typed_here_stays(visit):
    here = visit()
    here.say("First?")
    here.page.wait_for_function("() => Object.values(localStorage).join().includes('reader')")
    there = here.page.context.new_page()
    there.goto(here.page.url)

    here.write("not sent yet")
    there.locator("#composer textarea").fill("Second?")
    there.locator(".send").click()

    expect(here.find("article .body")).to_have_text(
        ["First?", "Hello there, reader.", "Second?", "Hello there, reader."]
    )
    expect(here.find("#composer textarea")).to_have_value("not sent yet")
    there.close()


def test_a_browser_that_keeps_nothing_still_shows_the_conversation(visit):
    page = visit()
    page.page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")

    page.say("Who?")

    expect(page.find("#notice")).to_contain_text("no room")
    assert page.texts() == ["Who?", "Hello there, reader."]


def test_an_answer_goes_on_while_another_conversation_is_read(visit, stand_in):
    stand_in.answer = "word " * 40
    stand_in.delay_s = 0.01
    page = visit()
    page.write("Speak.")
    page.find(".send").click()
    expect(page.find(".answer .body")).to_contain_text("word")

    page.find(".begin").click()
    expect(page.find("article")).to_have_count(0)
    expect(page.find("#sidebar .running")).to_have_count(0)
    page.find("#sidebar li button").click()

    expect(page.find(".answer .body")).to_have_text(("word " * 40).strip())


def test_the_last_message_is_edited_in_place_and_earlier_ones_in_a_copy(visit, stand_in):
    page = visit()
    page.say("First?")
    page.say("Second?")
    page.write("not sent yet")

    for old, new in [("Second?", "Third?"), ("First?", "Fourth?")]:
        question = page.find(".question", has_text=old)
        question.hover()
        question.locator(".edit").click()
        question.locator("textarea").fill(new)
        question.locator(".submit").click()
        expect(page.find(".question").last).to_contain_text(new)
        page.wait()

    assert page.texts() == ["Fourth?", "Hello there, reader."]
    expect(page.find("#sidebar li")).to_have_text(["Fourth?", "First?"])
    page.find("#sidebar li button", has_text="First?").click()
    expect(page.find("#composer textarea")).to_have_value("not sent yet")
    said = [[m["content"] for m in request["messages"]][::2] for request in stand_in.requests]
    assert said == [["First?"], ["First?", "Second?"], ["First?", "Third?"], ["Fourth?"]]


def test_an_edit_survives_a_reload_until_it_is_cancelled(visit):
    page = visit()
    page.say("Who?")
    page.find(".question").hover()
    page.find(".question .edit").click()
    page.find(".editor textarea:visible").fill("What?")

    page.page.reload()
    expect(page.find(".editor textarea:visible")).to_have_value("What?")
    page.find(".editor textarea:visible").press("Escape")
    page.page.reload()

    expect(page.find(".editor:visible")).to_have_count(0)
    assert page.texts() == ["Who?", "Hello there, reader."]


def test_what_comes_is_followed_until_the_reader_goes_up(visit, stand_in):
    stand_in.answer = "word\n\n " * 400
    stand_in.delay_s = 0.004
    page = visit()
    page.write("Speak.")
    page.find(".send").click()
    top = "document.getElementById('scroller').scrollTop"
    page.page.wait_for_function(f"() => {top} > 300")

    page.find("#scroller").hover()
    page.page.mouse.wheel(0, -200)
    expect(page.find("#to-end")).to_be_visible()
    here = page.page.evaluate(top)
    height = page.page.evaluate("document.getElementById('scroller').scrollHeight")
    page.page.wait_for_function(
        f"() => document.getElementById('scroller').scrollHeight > {height + 100}"
    )
    assert page.page.evaluate(top) == here

    page.find("#to-end").click()
    page.page.wait_for_function(f"() => {top} > {here + 200}")
    page.find(".stop").click()


# ---- markdown ----


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("## A *title* ##", "<h4>A <em>title</em></h4>"),
        (
            "**a *b* c** ~~d~~ snake_case_name 2 * 3 * 4",
            "<p><strong>a <em>b</em> c</strong> <del>d</del> snake_case_name 2 * 3 * 4</p>",
        ),
        (
            "***a*** **a *b*** \\*c\\*",
            "<p><strong><em>a</em></strong> <strong>a <em>b</em></strong> *c*</p>",
        ),
        ("`a*b*` `` ` `` `open", "<p><code>a*b*</code> <code>`</code> `open</p>"),
        (
            "- a\n  - b\n\n- c\n\n3. d",
            '<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul><ol start="3"><li>d</li></ol>',
        ),
        ("1. a\n\n   b\n2. c", '<ol start="1"><li><p>a</p><p>b</p></li><li>c</li></ol>'),
        ("It was\n1986. Then\n- x", "<p>It was<br>1986. Then</p><ul><li>x</li></ul>"),
        ("> a\n> - b\n\nc", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>"),
        ("a\n\n---\n***", "<p>a</p><hr><hr>"),
        (
            "|a|b|\n|-|-:|\n|c \\| d|`e`|\n|f|",
            '<div class="table" tabindex="0"><table>'
            '<thead><tr><th>a</th><th class="right">b</th></tr></thead>'
            '<tbody><tr><td>c | d</td><td class="right"><code>e</code></td></tr>'
            '<tr><td>f</td><td class="right"></td></tr></tbody></table></div>',
        ),
    ],
)
def test_markdown_becomes_elements(reading, text, html):
    assert reading.markdown(text) == html


@pytest.fixture(scope="module")
def reading(browser, stand_in_and_address):
    """A page for tests that change nothing on it."""
    context = browser.new_context()
    yield Visit(context, stand_in_and_address[1])
    context.close()


@pytest.mark.parametrize(
    ("text", "href"),
    [
        ('[a **b**](https://x.org/c_(d) "title")', "https://x.org/c_(d)"),
        ("see https://x.org/a_b_c.", "https://x.org/a_b_c"),
        ("<https://x.org/?a=b>", "https://x.org/?a=b"),
        ("![a picture](https://x.org/a.png)", "https://x.org/a.png"),
        ("[write](mailto:a@x.org)", "mailto:a@x.org"),
    ],
)
def test_links_lead_out_without_a_trace(reading, text, href):
    html = reading.markdown(text)

    assert html.count("<a ") == 1
    assert f'<a href="{href}" title="{href}" rel="noopener noreferrer" target="_blank">' in html
    assert "<img" not in html


def test_code_is_shown_as_it_is_and_copied(visit, stand_in):
    code = "for i in a:\n    print('<b>&amp;</b>')  # **not bold**"
    stand_in.answer = f"So:\n\n```python\n{code}\n```\n\nDone."
    page = visit(permissions=["clipboard-read", "clipboard-write"])

    page.say("Show me code.")
    page.page.get_by_role("button", name="Copy code").click()

    expect(page.find(".code .language")).to_have_text("python")
    assert page.find(".code code").text_content() == code
    expect(page.find(".code button")).to_have_class(re.compile("done"))
    assert page.page.evaluate("navigator.clipboard.readText()") == code


def test_text_that_grows_looks_like_text_that_came_at_once(reading):
    text = (
        "# T\n\nSome **bold [link](https://x.org) text**\n- a\n  1. b\n\n```py\nx = '`'\n\ny\n"
        "```\n> q\n\n|a|b|\n|-|-|\n|c|d|\n\n~~~\nopen"
    )
    grown = [text[:length] for length in range(1, len(text) + 1)]

    assert reading.markdown(*grown) == reading.markdown(text)
    assert reading.markdown(*grown, *reversed(grown[5:])) == reading.markdown(text[:6])
    assert "<code>open</code>" in reading.markdown(text)


ATTACKS = """
<img src=x onerror="hacked=1"> <script>hacked=1</script> <svg onload=hacked=1>
<iframe src="//x.org"> [a](javascript:hacked=1) [b](JaVaScRiPt:hacked=1) [c](java\tscript:hacked=1)
[d]( javascript:hacked=1) [e](data:text/html,<script>hacked=1</script>) [f](vbscript:x)
[g](//x.org) [h](file:///etc/passwd) ![i](https://x.org/i.png) ![j](javascript:hacked=1)
<javascript:hacked=1> [k](blob:https://x.org/a) [l](https://x.org/" onclick="hacked=1)
[m](<https://x.org/" style="color:red>) https://x.org/"onclick=1 [n](https://you@x.org)
&lt;img src=x onerror=hacked=1&gt; **<b onclick=hacked=1>o</b>**
`<img src=x onerror=hacked=1>` [<img src=x onerror=hacked=1>](https://x.org)

| <img src=x onerror=hacked=1> | <style>*{display:none}</style> |
|---|---|
| <form action=//x.org><input> | [p](javascript:hacked=1) |

```"><img src=x onerror=hacked=1>
</code></pre><script>hacked=1</script>
```
""".strip()


def test_what_a_model_writes_cannot_become_anything_but_text(visit, stand_in):
    stand_in.answer = ATTACKS
    page = visit()

    page.say("<img src=x onerror=hacked=1>")

    found = page.page.evaluate(
        """() => {
          const nodes = [...document.querySelectorAll("#messages article .body, .body *")];
          return {
            tags: [...new Set(nodes.map((node) => node.localName))],
            attributes: [...new Set(nodes.flatMap((node) => node.getAttributeNames()))],
            hrefs: nodes.filter((node) => node.localName === "a").map((node) => node.href),
            hacked: typeof hacked,
          };
        }"""
    )
    allowed = {"div", "p", "a", "br", "strong", "code", "pre", "table", "thead", "tbody", "tr"}
    allowed |= {"th", "td", "figure", "figcaption", "span", "button", "svg", "use"}
    assert set(found["tags"]) <= allowed
    assert not [name for name in found["attributes"] if name.startswith(("on", "style", "src"))]
    assert found["hrefs"] and all(href.startswith("https://x.org/") for href in found["hrefs"])
    assert found["hacked"] == "undefined"


@pytest.mark.parametrize(
    "piece",
    ["[", "![a](", "**a ", "*a _b ", "`", "a`", "> ", "- ", "|a\n|-\n", "<https://a", "](a", "~~"],
)
def test_the_time_of_markdown_is_linear_in_its_length(reading, piece):
    reading.page.set_default_timeout(5_000)

    length = reading.page.evaluate(
        """async (text) => {
          const { renderMarkdown } = await import("./page/markdown.js");
          const begun = performance.now();
          renderMarkdown(document.createElement("div"), text);
          return performance.now() - begun;
        }""",
        piece * (100_000 // len(piece)),
    )

    assert length < 2000  # milliseconds; the square of 100,000 steps takes longer


# ---- looks ----


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_in_one_direction(visit, stand_in, width):
    stand_in.answer = (
        "A" * 300
        + "\n\n```python\n"
        + "x = 1; " * 40
        + "\n```\n\n"
        + "|a" * 30
        + "|\n"
        + "|-" * 30
        + "|\n\n[link](https://x.org/"
        + "a" * 200
        + ")"
    )
    page = visit(viewport={"width": width, "height": 640}, has_touch=True, is_mobile=True)

    page.say("B" * 200)

    inner = "(element) => element.scrollWidth - element.clientWidth"
    for selector in ("html", "#scroller", "#meter", "#header"):
        assert page.find(selector).evaluate(inner) <= 0, selector
    assert page.find("html").evaluate("(root) => root.clientWidth") == width
    page.find("#menu").tap()
    expect(page.find("#sidebar .begin")).to_be_in_viewport()
    page.find("#sidebar .begin").tap()
    expect(page.find("article")).to_have_count(0)


def test_dark_is_as_the_system_has_it_until_the_reader_chooses(visit):
    page = visit(color_scheme="dark")
    paper = page.find("html")

    expect(paper).to_have_css("background-color", "rgb(21, 23, 22)")
    page.find("#theme").click()
    expect(paper).to_have_css("background-color", "rgb(253, 253, 251)")
    page.open()
    expect(paper).to_have_css("background-color", "rgb(253, 253, 251)")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_told_apart(reading, theme):
    reading.page.emulate_media(color_scheme=theme)
    colours = reading.page.evaluate(
        """() => {
          const probe = document.body.appendChild(document.createElement("i"));
          const colour = (name) => {
            probe.style.color = `var(--${name})`;
            return getComputedStyle(probe).color.match(/[0-9]+/g).map(Number);
          };
          const names = ["paper", "side", "raised", "tint", "edge", "ink", "muted", "accent"];
          names.push("accent-tint", "on-accent", "problem", "problem-tint");
          return Object.fromEntries(names.map((name) => [name, colour(name)]));
        }"""
    )

    def contrast(one: str, other: str) -> float:
        """Of WCAG 2: 4.5 for text, 3 for the edge of what can be used."""
        brightness = []
        for name in (one, other):
            red, green, blue = [
                c / 255 / 12.92 if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4
                for c in colours[name]
            ]
            brightness.append(0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)
        return max(brightness) / min(brightness)

    for ground in ("paper", "side", "raised", "tint"):
        assert min(contrast(text, ground) for text in ("ink", "muted", "accent")) >= 4.5, ground
    assert contrast("ink", "accent-tint") >= 4.5
    assert contrast("on-accent", "accent") >= 4.5
    assert contrast("problem", "problem-tint") >= 4.5
    assert contrast("problem", "paper") >= 4.5
    assert min(contrast("edge", ground) for ground in ("paper", "raised")) >= 3
