"""How log lines look: text for people, one JSON object a line for collectors.

No line quotes what a client sent: messages of exceptions lose what stands in quotes. No line can be
forged: control characters are escaped. Knows logging; knows nothing of what is logged.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any, Literal

import orjson

Form = Literal["text", "json"]
# As repr() quotes a value; an apostrophe within a word opens nothing.
QUOTED = re.compile(r"""(?<!\w)[bru]{0,2}('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?!\w)""", re.DOTALL)
LONGEST_MESSAGE = 500  # characters of an exception's


class JsonLines(logging.Formatter):
    """{"time", "level", "logger", "message"}, what the message is made of, and an "exception"."""

    def format(self, record: logging.LogRecord) -> str:
        """Of logging: the record as one line."""
        line = {
            **_members(record),
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = traceback_of(record.exc_info[1])
        try:
            return orjson.dumps(line).decode()
        except TypeError:  # half of a surrogate pair, or a value that JSON does not have
            return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """time LEVEL logger: message"""

    def format(self, record: logging.LogRecord) -> str:
        """Of logging: the record as one line, and an exception's traceback below it."""
        head = f"{self.formatTime(record)} {record.levelname} {record.name}: "
        lines = [head + printable(_message(record))]
        if record.exc_info and record.exc_info[1]:
            lines += map(printable, traceback_of(record.exc_info[1]).split("\n"))
        return "\n".join(lines)


def _members(record: logging.LogRecord) -> Mapping[str, Any]:
    """Of a line that names them: `log.info("%(name)s is gone", {"name": …})`."""
    return record.args if isinstance(record.args, Mapping) else {}


def _message(record: logging.LogRecord) -> str:
    members = {name: "-" if value is None else value for name, value in _members(record).items()}
    return str(record.msg) % members if members else record.getMessage()


def printable(text: str) -> str:
    """The text in one line, its control characters escaped (log forging)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def without_quotes(text: str) -> str:
    """The text without what it quotes, which a client may have sent."""
    return QUOTED.sub("…", text)


def traceback_of(error: BaseException) -> str:
    """As Python prints it, but for what its messages quote."""
    parts: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        told = f"{type(cause).__name__}: {without_quotes(str(cause))[:LONGEST_MESSAGE]}"
        parts.append("".join(traceback.format_tb(cause.__traceback__)) + told)
        inner = cause.__context__ if not cause.__suppress_context__ else None
        cause = cause.__cause__ or inner
    return "\nafter\n".join(reversed(parts))


def set_up(form: Form) -> None:
    """All that this process says goes through logging from now on: libraries' lines, warnings, and
    what ends a thread or the process.

    Called again after a library was imported, it takes away the handlers that this has added.
    """
    logging.config.dictConfig(_config(form))
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, _: _uncaught(kind, error, "the process")
    threading.excepthook = lambda hook: _uncaught(hook.exc_type, hook.exc_value, "a thread")
    sys.unraisablehook = lambda hook: _uncaught(hook.exc_type, hook.exc_value, "a clean-up")


def _uncaught(kind: type[BaseException], error: BaseException | None, where: str) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        logging.getLogger("app").critical("%s has failed", where, exc_info=error)


def _config(form: Form) -> dict[str, Any]:
    """For logging.config.dictConfig."""
    formatter = {"()": JsonLines if form == "json" else TextLines}
    ours: dict[str, Any] = {"handlers": [], "propagate": True}  # theirs write as they please
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["err"], "level": "WARNING"},
        "loggers": {
            "app": {"level": "INFO"},
            "transformers": {**ours, "level": "WARNING"},
            "huggingface_hub": {**ours, "level": "ERROR"},  # warns of URLs, which clients may name
            "python_multipart": {"level": "ERROR"},  # what is wrong with a form, its client is told
        },
    }
