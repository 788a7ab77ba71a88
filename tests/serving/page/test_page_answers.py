"""Answers on the chat page: streamed, stopped, regenerated and failed."""

from __future__ import annotations

import re

import pytest
from chat_page import MODEL, expect


def test_answer_is_streamed_and_measured(visit, stand_in):
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


def test_text_is_streamed_and_can_be_stopped(visit, stand_in):
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


def test_shift_enter_inserts_a_line_break(visit, stand_in):
    page = visit()

    page.find("#composer textarea").press_sequentially("one")
    page.page.keyboard.press("Shift+Enter")
    page.find("#composer textarea").press_sequentially("two")
    page.page.keyboard.press("Enter")
    page.wait()

    assert stand_in.requests[0]["messages"][0]["content"] == "one\ntwo"
    expect(page.find("#composer textarea")).to_have_value("")


def test_last_answer_can_be_regenerated(visit, stand_in):
    page = visit()
    page.say("Who?")
    stand_in.answer = "Hello again."

    page.find(".again:visible").click()
    page.wait()

    assert page.texts() == ["Who?", "Hello again."]
    first, second = stand_in.requests
    assert first["messages"] == second["messages"]
    assert first["seed"] != second["seed"]


def test_previous_answer_is_kept_if_regeneration_fails(visit, stand_in):
    page = visit()
    page.say("Who?")
    stand_in.errors = [(500, {"error": {"message": "Out of order."}}, {})]

    page.find(".again:visible").click()

    expect(page.find(".problem p:visible")).to_have_text("Out of order.")
    assert page.texts() == ["Who?", "Hello there, reader."]


@pytest.mark.parametrize(
    ("failure", "words", "kept"),
    [
        (
            {"errors": [(503, {"error": {"message": "Too busy."}}, {"Retry-After": "7"})]},
            "Too busy. (Try again in 7 s.)",
            "",
        ),
        ({"errors": [(502, {}, {})]}, "The server answered 502 Bad Gateway.", ""),
        ({"fail_after": 2}, "The engine ran out of memory.", "Hello there,"),
        ({"break_after": 1}, "The connection was closed before the answer was complete.", "Hello"),
    ],
)
def test_error_is_shown_in_place_and_can_be_retried(visit, stand_in, failure, words, kept):
    page = visit()
    for name, value in failure.items():
        setattr(stand_in, name, value)

    page.say("Who?")
    expect(page.find(".problem p:visible")).to_have_text(words)
    assert [text for text in page.texts() if text] == ["Who?", kept][: 1 + bool(kept)]
    stand_in.reset()
    page.find(".retry:visible").click()
    page.wait()

    expect(page.find(".problem:visible")).to_have_count(0)
    assert page.texts() == ["Who?", "Hello there, reader."]


def test_unreachable_server_loses_no_text(visit, stand_in):
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


def test_model_without_a_chat_template_continues_text(visit, stand_in):
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


def test_page_works_behind_a_proxy_that_adds_a_path(visit, stand_in):
    page = visit()
    page.address += "/behind/a/proxy/"
    page.urls.clear()

    page.open()
    page.say("Who?")

    assert page.texts() == ["Who?", "Hello there, reader."]
    assert all(url.startswith(page.address) for url in page.urls)
