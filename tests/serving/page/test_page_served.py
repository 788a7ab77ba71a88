"""The chat page in a browser, with a real server and the packaged model."""

from __future__ import annotations

import re

import pytest
import servers
from playwright.sync_api import expect
from servers import NO_END

from yocobit.serving import ServerSettings


@pytest.fixture(scope="module")
def server():
    with servers.running(ServerSettings(threads=1, max_waiting=0, max_sequences=1)) as running:
        yield running


@pytest.fixture
def visit(opened, server):
    return opened(server.url)


def test_answer_is_streamed_measured_and_kept_over_a_reload(visit, server):
    visit.say("Tell me about the sea.")

    said = visit.texts()[1]
    assert len(said) > 20
    expect(visit.find(".speed .value")).to_have_text(re.compile(r"[\d,]+"))
    expect(visit.find(".ratio")).to_contain_text("times")
    visit.page.reload()
    assert visit.texts() == ["Tell me about the sea.", said]


def test_second_message_hits_the_prefix_of_the_first(visit, server):
    visit.say("Tell me about the sea.")
    visit.say("And of the land?")

    assert len(visit.texts()) == 4
    text = server.client.get("/metrics").text
    hits = float(re.search(r"prefix_cache_hits_total ([\d.]+)", text)[1])
    assert hits > 20


def test_cut_answer_is_continued(visit, server):
    visit.find("#header .set").click()
    visit.page.get_by_label("Max tokens").fill("8")
    visit.page.keyboard.press("Escape")
    visit.say("Tell me about the sea.")
    expect(visit.find(".answer .note")).to_contain_text("8 tokens")
    start = visit.texts()[1]

    visit.find(".resume:visible").click()
    visit.wait()

    expect(visit.find(".answer .note")).to_contain_text("16 tokens")
    assert len(visit.texts()) == 2
    assert visit.texts()[1].startswith(start)


def test_packaged_model_offers_messages(visit):
    expect(visit.find("#welcome .about")).to_contain_text("speeches and sermons")
    visit.find("#welcome .prompts button").first.click()
    visit.wait()

    assert len(visit.texts()) == 2


def test_stop_frees_the_server(visit, server):
    visit.send("Tell me about the sea.")
    expect(visit.find(".answer .body")).not_to_be_empty()
    visit.page.keyboard.press("Escape")
    visit.wait()

    server.wait_until_idle()
    assert server.runtime.scheduler.memory.reserved_bytes == 0


def test_error_is_shown_and_can_be_tried_again(visit, server):
    body = {"prompt": "The king", "max_tokens": 8000, "stream": True, "logit_bias": NO_END}
    with server.client.stream("POST", "/v1/completions", json=body) as busy:
        lines = busy.iter_lines()  # closes the connection when it is deleted
        next(lines)
        visit.send("Tell me about the sea.")
        expect(visit.find("body")).to_contain_text("requests are waiting already")
    server.wait_until_idle()

    visit.page.get_by_role("button", name="Try again").click()
    visit.wait()

    assert len(visit.texts()) == 2
    assert len(visit.texts()[1]) > 10


def test_page_has_a_strict_content_security_policy(server):
    page = server.client.get("/")

    assert page.headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'"
    )
    assert page.headers["x-content-type-options"] == "nosniff"
    for name, kind in (
        ("page.js", "text/javascript"),
        ("markdown-it.js", "text/javascript"),
        ("page.css", "text/css"),
        ("katex/fonts/KaTeX_Main-Regular.woff2", "font/woff2"),
    ):
        assert server.client.get(f"/page/{name}").headers["content-type"].startswith(kind)
    for path in ("/page/%2e%2e/pyproject.toml", "/page/katex", "/page/katex/LICENSE", "/page/"):
        assert server.client.get(path).status_code == 404, path
    assert server.client.get("/page/icon.svg").headers["content-type"].startswith("image/svg+xml")
