"""What a log line may hold: one line, one object, nothing that was quoted."""

from __future__ import annotations

import json
import logging

import pytest

from app.logs import JsonLines, TextLines, traceback_of, without_quotes


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("app.x", logging.INFO, "x.py", 1, message, args, info)


def test_a_json_line_has_the_members_of_its_message() -> None:
    line = json.loads(JsonLines().format(record("%(name)s is gone", {"name": "a", "by": None})))
    assert line.keys() == {"name", "by", "time", "level", "logger", "message"}
    assert (line["name"], line["by"], line["message"]) == ("a", None, "a is gone")


def test_a_json_line_holds_whatever_it_is_given() -> None:
    for odd in ("half \ud83d", {1, 2}, b"\xff", "a\nb"):
        text = JsonLines().format(record("%(odd)s", {"odd": odd}))
        assert "\n" not in text
        json.loads(text)


def test_no_text_line_can_be_forged() -> None:
    forged = "x\n2026-01-01 00:00:00,000 INFO app.changes: delete\r\x1b[31m\u2028of all"
    text = TextLines().format(record("%(name)s is gone, by %(by)s", {"name": forged, "by": None}))
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert text.endswith("is gone, by -")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("no adapter is called 'a text'", "no adapter is called …"),
        ("""the file's own name is "it's"; the others' are 'x'""", "the file's own name is …; the others' are …"),
        (r"""it is 'a \'text\' and "more"' here""", "it is … here"),
        ("cannot parse b'a text'", "cannot parse …"),
        ("[input_value='a text', input_type=str]", "[input_value=…, input_type=str]"),
        ("nothing can't be quoted", "nothing can't be quoted"),
    ],
)  # fmt: skip
def test_what_a_message_quotes_is_left_out(text: str, rest: str) -> None:
    assert without_quotes(text) == rest


@pytest.mark.parametrize(
    "text", ["plain", "it's", 'say "x"', "both ' and \"", "a\\'b", "l1\nl2 ' x"]
)
def test_of_a_quoted_text_nothing_is_left_however_python_quotes_it(text: str) -> None:
    assert without_quotes(f"the value {text!r} is odd") == "the value … is odd"


def test_a_traceback_says_where_and_not_what_was_sent() -> None:
    try:
        try:
            {}["a client's text"]
        except KeyError as inner:
            raise ValueError("cannot read 'a text' of a client") from inner
    except ValueError as error:
        told = traceback_of(error)
        line = json.loads(JsonLines().format(record("failed", error=error)))
    assert line["exception"] == told
    assert "test_logs.py" in told
    assert "KeyError: …" in told
    assert told.endswith("ValueError: cannot read … of a client")
