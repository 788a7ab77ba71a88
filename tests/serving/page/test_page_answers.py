"""Answers on the chat page: streamed, stopped, regenerated and failed."""

from __future__ import annotations

import re

import pytest
from chat_page import MODEL
from playwright.sync_api import expect


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


def test_regeneration_keeps_versions_and_the_messages_after_each(visit, stand_in):
    page = visit()
    page.say("Who?")
    stand_in.answer = "Hello again."
    page.find(".again:visible").click()
    page.wait()
    which = page.find(".versions .which:visible")
    expect(which).to_have_text("2 of 2")
    expect(page.find(".next:visible")).to_be_disabled()

    page.say("And then?")
    page.find(".previous:visible").click()

    assert page.texts() == ["Who?", "Hello there, reader."]
    expect(which).to_have_text("1 of 2")
    expect(page.find(".next:visible")).to_be_focused()
    stand_in.answer = "Then what?"
    page.say("What next?")
    assert [m["content"] for m in stand_in.requests[-1]["messages"]] == [
        "Who?",
        "Hello there, reader.",
        "What next?",
    ]
    page.find(".next:visible").click()
    assert page.texts() == ["Who?", "Hello again.", "And then?", "Hello again."]
    page.page.reload()
    page.find(".previous:visible").click()
    assert page.texts() == ["Who?", "Hello there, reader.", "What next?", "Then what?"]


def test_cut_answer_is_continued(visit, stand_in):
    stand_in.finish = "length"
    page = visit()
    page.say("Who?")
    expect(page.find(".answer .note")).to_have_text(re.compile("3 tokens .*reached max tokens"))
    stand_in.answer, stand_in.finish = " You are welcome here.", "stop"

    page.find(".resume:visible").click()
    page.wait()

    assert page.texts() == ["Who?", "Hello there, reader. You are welcome here."]
    first, second = stand_in.requests
    assert "continue_final_message" not in first
    assert second["continue_final_message"] is True
    assert second["add_generation_prompt"] is False
    answer = {"role": "assistant", "content": "Hello there, reader."}
    assert second["messages"] == [*first["messages"], answer]
    expect(page.find(".answer .note")).to_have_text(re.compile("^7 tokens at 200 per second$"))
    expect(page.find(".resume:visible")).to_have_count(0)


def test_continuation_that_fails_keeps_the_text_and_can_be_retried(visit, stand_in):
    stand_in.finish = "length"
    page = visit()
    page.say("Who?")
    stand_in.errors = [(503, {"error": {"message": "Too busy."}}, {})]
    page.find(".resume:visible").click()
    expect(page.find(".problem p:visible")).to_have_text("Too busy.")
    assert page.texts() == ["Who?", "Hello there, reader."]
    stand_in.answer, stand_in.finish = " Welcome.", "stop"

    page.find(".retry:visible").click()
    page.wait()

    assert page.texts() == ["Who?", "Hello there, reader. Welcome."]


@pytest.mark.parametrize(
    ("answer", "note"), [("Hello", "1 token"), ("Hello there,", "2 tokens at 200 per second")]
)
def test_speed_excludes_the_time_to_the_first_token(visit, stand_in, answer, note):
    stand_in.answer = answer
    page = visit()

    page.say("Who?")

    expect(page.find(".answer .note")).to_have_text(note)
    expect(page.find(".speed .value")).to_have_text("200" if "at" in note else "–")


FULL = (400, {"error": {"message": "Too long.", "code": "context_length_exceeded"}}, {})


def test_oldest_turns_are_dropped_when_the_context_is_full(visit, stand_in):
    page = visit()
    for question in ("First?", "Second?", "Third?"):
        page.say(question)
    stand_in.errors = [FULL]
    page.say("Fourth?")
    expect(page.find(".problem p:visible")).to_have_text("Too long.")

    page.find(".drop:visible").click()
    page.wait()

    sent = [message["content"] for message in stand_in.requests[-1]["messages"]]
    assert sent == ["Third?", "Hello there, reader.", "Fourth?"]
    assert len(page.texts()) == 8
    expect(page.find("article.dropped")).to_have_count(4)
    expect(page.find(".dropped + .dropped-line")).to_contain_text("not sent to the model")

    page.page.reload()
    page.find(".restore").click()
    expect(page.find("article.dropped")).to_have_count(0)
    page.say("Fifth?")
    assert len(stand_in.requests[-1]["messages"]) == 9


def test_answer_that_fills_the_context_is_continued_after_a_drop(visit, stand_in):
    page = visit()
    page.say("First?")
    stand_in.finish, stand_in.n_prompt_tokens = "length", 8190
    page.say("Second?")
    expect(page.find(".problem p:visible")).to_have_text("The context is full.")
    stand_in.answer, stand_in.finish = " Welcome.", "stop"

    page.find(".drop:visible").click()
    page.wait()

    request = stand_in.requests[-1]
    assert [message["content"] for message in request["messages"]] == [
        "Second?",
        "Hello there, reader.",
    ]
    assert request["continue_final_message"] is True
    assert page.texts()[-1] == "Hello there, reader. Welcome."
    expect(page.find(".problem:visible")).to_have_count(0)


def test_single_message_that_is_too_long_cannot_be_dropped(visit, stand_in):
    stand_in.errors = [FULL]
    page = visit()

    page.say("Who?")

    expect(page.find(".problem p:visible")).to_have_text("Too long.")
    expect(page.find(".drop:visible")).to_have_count(0)


def test_packaged_model_says_what_it_is_and_offers_prompts(visit, stand_in):
    about = {"about": "A toy.", "prompts": ["Tell me about the sea.", "Speak."]}
    stand_in.model = {**MODEL, "yocobit": {**MODEL["yocobit"], **about}}
    page = visit()
    expect(page.find("#welcome .about")).to_have_text("A toy.")
    expect(page.find("#welcome .better")).to_contain_text("yocobit serve microsoft/")

    page.page.get_by_role("button", name="Tell me about the sea.").click()
    page.wait()

    assert page.texts() == ["Tell me about the sea.", "Hello there, reader."]


def test_other_models_show_their_figures_only(visit):
    page = visit()

    expect(page.find("#welcome h2")).to_have_text("tiny")
    expect(page.find("#welcome dd")).to_have_text(
        ["7.1 million", "ternary, 3.45 MB", "8,192 tokens", "f32, 1.02 kB per token"]
    )
    expect(page.find("#welcome .better")).to_be_hidden()
    expect(page.find("#welcome .prompts button")).to_have_count(0)


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
