"""Conversations on the chat page: stored over reloads, listed, edited, shared between tabs."""

from __future__ import annotations

import json
from pathlib import Path

from chat_page import expect


def test_reload_keeps_messages_and_draft(visit, stand_in):
    page = visit()
    page.say("Who?")
    page.write("not sent yet")
    stand_in.reset()

    page.page.reload()

    assert page.texts() == ["Who?", "Hello there, reader."]
    expect(page.find("#composer textarea")).to_have_value("not sent yet")
    expect(page.find(".context .value")).to_have_text("43")
    assert not stand_in.requests


def test_answer_interrupted_by_a_reload_keeps_its_text(visit, stand_in):
    stand_in.answer = "word " * 1000
    stand_in.delay_s = 0.005
    page = visit()
    page.send("Speak.")
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


def test_messages_of_another_tab_appear_and_the_draft_stays(visit):
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


def test_conversation_is_shown_when_storage_is_full(visit):
    page = visit()
    page.page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")

    page.say("Who?")

    expect(page.find("#notice")).to_contain_text("storage is full")
    assert page.texts() == ["Who?", "Hello there, reader."]


def test_answer_continues_to_stream_while_another_conversation_is_open(visit, stand_in):
    stand_in.answer = "word " * 40
    stand_in.delay_s = 0.01
    page = visit()
    page.send("Speak.")
    expect(page.find(".answer .body")).to_contain_text("word")

    page.find(".begin").click()
    expect(page.find("article")).to_have_count(0)
    expect(page.find("#sidebar .running")).to_have_count(0)
    page.find("#sidebar li button").click()

    expect(page.find(".answer .body")).to_have_text(("word " * 40).strip())


def test_last_message_is_edited_in_place_and_earlier_ones_in_a_copy(visit, stand_in):
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


def test_edit_survives_a_reload_until_it_is_cancelled(visit):
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


def test_page_follows_new_tokens_until_the_user_scrolls_up(visit, stand_in):
    stand_in.answer = "word\n\n " * 400
    stand_in.delay_s = 0.004
    page = visit()
    page.send("Speak.")
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
