"""Answer: the deltas of a choice, and what it accumulates; wire formats."""

from __future__ import annotations

import json

from yocobit.serving.api import wire
from yocobit.serving.api.answer import Answer, CallArguments, CallStart, Content, Done
from yocobit.serving.api.tool_calls import ToolCallParser
from yocobit.serving.runtime.request import Event, Finish, Logprob, Prefilled, Token

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def token(text: str, logprob: float | None = None) -> Token:
    found = None if logprob is None else Logprob(7, logprob, (), text)
    return Token(choice=0, token=7, text=text, logprob=found)


def held(text: str, piece: str, is_open: bool = False) -> Token:
    """Return a token that adds `piece`; `text` is what became certain with it."""
    return Token(choice=0, token=7, text=text, logprob=Logprob(7, -1.0, (), piece, is_open))


def deltas(answer: Answer, *events: Event) -> list:
    return [delta for event in events for delta in answer.add(event)]


def test_text_becomes_content_and_is_accumulated():
    answer = Answer()

    found = deltas(answer, Prefilled(0), token("The "), token(""), Finish(0, "length", "sea"))

    assert found == [Content("The "), Content("sea"), Done("length")]
    assert (answer.text, answer.calls, answer.done) == ("The sea", [], Done("length"))


def test_logprobs_are_delivered_with_and_without_text():
    answer = Answer()

    found = deltas(answer, token("", -1.0), token("a", -2.0), Finish(0, "stop", ""))

    first, second = Logprob(7, -1.0, ()), Logprob(7, -2.0, (), "a")
    assert found == [Content("", (first,)), Content("a", (second,)), Done("stop")]
    assert answer.logprobs == [first, second]


def texts(found: list) -> list[tuple[str, list[str]]]:
    """Return the text of each content, and those of its log-probabilities."""
    return [(d.text, [each.text for each in d.logprobs]) for d in found if isinstance(d, Content)]


def test_logprobs_wait_for_text_that_may_be_a_stop_string():
    answer = Answer()

    found = deltas(
        answer, held("a", "aS"), held("", "T"), held("STb", "b"), Finish(0, "length", "")
    )

    assert texts(found) == [("a", []), ("STb", ["aS", "T", "b"])]


def test_a_stop_string_cuts_the_logprobs_with_the_text():
    answer = Answer()

    found = deltas(answer, held("a", "aS"), held("", "T"), held("", "OPb"), Finish(0, "stop", ""))

    assert texts(found) == [("a", []), ("", ["a"])]
    assert [each.text for each in answer.logprobs] == [answer.text]


def test_a_character_of_several_tokens_is_the_text_of_the_last():
    answer = Answer()

    found = deltas(
        answer, held("", "", is_open=True), held("\u20ac!", "\u20ac!"), Finish(0, "stop", "")
    )

    assert texts(found) == [("\u20ac!", ["", "\u20ac!"])]


def test_an_incomplete_character_at_the_end_is_part_of_its_token():
    answer = Answer()
    end = Finish(0, "length", "\ufffd", rest="\ufffd")

    found = deltas(answer, held("a", "a"), held(" ", " ", is_open=True), end)

    assert texts(found) == [("a", ["a"]), (" ", []), ("\ufffd", [" \ufffd"])]


def test_stop_string_is_reported():
    assert Answer().add(Finish(0, "stop", "", "END")) == [Done("stop", "END")]


def test_calls_start_before_their_arguments_and_decide_the_reason():
    answer = Answer(ToolCallParser(["f"]))

    found = deltas(answer, token("Well. "), token(CALL[:30]), token(CALL[30:] + CALL))
    found += answer.add(Finish(0, "stop", ""))

    starts = [delta for delta in found if isinstance(delta, CallStart)]
    for index, start in enumerate(starts):
        parts = [d.text for d in found if isinstance(d, CallArguments) and d.index == index]
        assert (start.index, start.name, json.loads("".join(parts))) == (index, "f", {"a": 1})
        assert found.index(start) < found.index(CallArguments(index, parts[0]))
    assert len({start.id for start in starts}) == 2
    assert [(call.id, call.name) for call in answer.calls] == [(s.id, s.name) for s in starts]
    assert [json.loads(call.arguments) for call in answer.calls] == [{"a": 1}] * 2
    assert answer.text.strip() == "Well."
    assert answer.done == found[-1] == Done("tool_calls")


def test_call_that_ends_with_the_answer_is_recognised():
    answer = Answer(ToolCallParser(["f"]))

    found = deltas(answer, token(CALL.removesuffix("</tool_call>")), Finish(0, "stop", ""))

    assert [type(delta) for delta in found] == [CallStart, CallArguments, Done]
    assert answer.text == ""


def test_events_are_framed():
    value = {"type": "response.created", "text": "a\nb"}

    assert wire.data_event(value) == b'data: {"type":"response.created","text":"a\\nb"}\n\n'
    assert wire.named_event(value) == b"event: response.created\n" + wire.data_event(value)
