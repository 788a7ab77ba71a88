"""Conversations on the chat page: stored over reloads, listed, edited, shared between tabs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

ANSWER = {"role": "assistant", "content": "Imported."}


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


def test_exported_conversations_are_imported(visit, stand_in):
    page = visit()
    page.say("First?")
    stand_in.answer = "Hello again."
    page.find(".again:visible").click()
    page.wait()
    with page.page.expect_download() as download:
        page.find("#sidebar .export").click()
    exported = Path(download.value.path()).read_bytes()

    page.choose_files("#sidebar .import", ("a.json", exported))
    expect(page.find("#notice")).to_contain_text("Imported: 0; 1 are here already")
    page.find("#header .remove").click()
    page.choose_files("#sidebar .import", ("a.json", exported))
    expect(page.find("#notice")).to_contain_text("Imported: 1")
    page.find("#sidebar .open").click()

    assert page.texts() == ["First?", "Hello again."]
    page.find(".previous:visible").click()
    assert page.texts() == ["First?", "Hello there, reader."]
    page.page.reload()
    assert page.texts() == ["First?", "Hello there, reader."]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": 2}, "a.json: version must be 1 but is 2"),
        ({"conversations": {}}, "a.json: conversations must be a list"),
        (
            {"conversations": [{"messages": [{"role": "user", "content": 3}]}]},
            "a.json: a message must have a text, and the role user or assistant",
        ),
        (
            {"conversations": [{"messages": [ANSWER | {"versions": {"at": 0, "tails": [None]}}]}]},
            "a.json: versions must be the messages of each version, null for the shown one",
        ),
    ],
)
def test_invalid_export_is_refused(visit, changes, problem):
    page = visit()
    file = {"format": "yocobit-conversations", "version": 1, "conversations": [], **changes}

    page.choose_files("#sidebar .import", ("a.json", json.dumps(file).encode()))

    expect(page.find("#notice p")).to_have_text(problem)
    expect(page.find("#sidebar li")).to_have_count(0)


def test_import_ignores_unknown_fields_and_makes_new_ids(visit):
    page = visit()
    page.say("First?")
    id = page.page.url.rpartition("#")[2]
    conversation = {"id": id, "messages": [ANSWER], "draft": 3, "title": "Mine"}
    bad_id = {"id": "../a", "messages": [ANSWER | {"usage": {"completion": "<b>"}, "model": 7}]}
    file = {"format": "yocobit-conversations", "version": 1}

    file = json.dumps({**file, "conversations": [conversation, bad_id]}).encode()
    page.choose_files("#sidebar .import", ("a.json", file))

    expect(page.find("#sidebar li")).to_have_count(3)
    page.find("#sidebar .open", has_text="Mine").click()
    assert page.texts() == ["Imported."]


def test_search_finds_messages_and_titles(visit, stand_in):
    page = visit()
    stand_in.answer = "The waves of the sea [rise] and fall."
    page.say("Tell me about the sea.")
    page.find(".begin").click()
    stand_in.answer = "Snow lies on the hills."
    page.say("And winter?")
    search, rows = page.find("#sidebar .search"), page.find("#sidebar .open")

    page.page.keyboard.press("Control+k")
    expect(search).to_be_focused()
    search.fill("WAVES fall")
    expect(rows).to_have_count(1)
    expect(rows.locator("mark")).to_have_text("waves")
    search.fill("sea [rise]")
    expect(rows).to_have_count(1)
    search.fill("sea winter")
    expect(rows).to_have_count(0)
    expect(page.find("#sidebar .none")).to_be_visible()
    search.fill("waves")
    search.press("Enter")

    expect(page.find(".question .body")).to_have_text("Tell me about the sea.")
    expect(page.find(".answer.found")).to_be_in_viewport()
    search.press("Escape")
    expect(search).to_have_value("")
    expect(rows).to_have_count(2)


def test_conversation_is_renamed(visit):
    page = visit()
    page.say("First?")
    title, row = page.find("#sidebar li input"), page.find("#sidebar .open .title")

    page.page.keyboard.press("F2")
    title.fill("About readers")
    title.press("Escape")
    expect(row).to_have_text("First?")
    page.page.get_by_role("button", name="Rename: First?").click()
    title.fill("About readers")
    title.press("Enter")

    expect(row).to_have_text("About readers")
    page.page.reload()
    expect(row).to_have_text("About readers")
    page.page.keyboard.press("F2")
    title.fill(" ")
    title.press("Enter")
    expect(row).to_have_text("First?")


def test_text_files_are_added_to_the_message(visit):
    page = visit()
    page.write("Explain:")
    text = b"a ``` b\n````\nc\n"

    page.choose_files("#composer .attach", ("notes.md", text), ("a.py", b"x = 1"))

    expect(page.find("#composer textarea")).to_have_value(
        "Explain:\n\nnotes.md:\n`````md\na ``` b\n````\nc\n`````\n\na.py:\n```py\nx = 1\n```\n"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x89PNG\r\n", "a.txt: must be text in UTF-8"),
        (b"a\0b", "a.txt: must be text in UTF-8"),
        (b"a" * (256 * 1024 + 1), "a.txt: must be at most 256 KiB but is 257 KiB"),
    ],
)
def test_binary_and_large_files_are_refused(visit, content, problem):
    page = visit()

    page.choose_files("#composer .attach", ("a.txt", content))

    expect(page.find("#notice p")).to_have_text(problem)
    expect(page.find("#composer textarea")).to_have_value("")


def test_file_is_dropped_on_the_page(visit):
    page = visit()
    data = page.page.evaluate_handle(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(["the sea"], "a.txt"));
          return data;
        }"""
    )

    page.find("#scroller").dispatch_event("dragover", {"dataTransfer": data})
    expect(page.find("body")).to_have_class(re.compile("dropping"))
    page.find("#scroller").dispatch_event("drop", {"dataTransfer": data})

    expect(page.find("#composer textarea")).to_have_value("a.txt:\n```txt\nthe sea\n```\n")
    expect(page.find("body")).not_to_have_class(re.compile("dropping"))


def test_shortcuts_are_listed_and_work(visit):
    page = visit()
    page.say("First?")
    message = page.find("#composer textarea")

    message.fill("a")
    message.press("?")
    expect(page.find("#help")).to_be_hidden()
    page.find("#scroller").focus()
    page.page.keyboard.press("?")
    expect(page.find("#help")).to_be_visible()
    expect(page.find("#help dt").first).to_have_text("Enter")
    page.page.keyboard.press("F2")
    expect(page.find("#sidebar li input")).to_have_count(0)
    page.page.keyboard.press("Escape")
    expect(page.find("#help")).to_be_hidden()

    page.find("#scroller").focus()
    page.page.keyboard.press("/")
    expect(message).to_be_focused()
    message.fill("")
    message.press("ArrowUp")
    expect(page.find(".editor textarea:visible")).to_have_value("First?")
    page.page.keyboard.press("Escape")
    page.page.keyboard.press("Control+Shift+O")
    expect(page.find("article")).to_have_count(0)


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
    page.find("#sidebar li .open").click()

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
