"""How log lines look: text for people, one JSON object a line for collectors."""

from __future__ import annotations

import logging
from typing import Any, Literal

import orjson


class JsonLines(logging.Formatter):
    """{"time", "level", "logger", "message"} and, with an exception, "exception"."""

    def format(self, record: logging.LogRecord) -> str:
        """Of logging: the record as one line."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def log_config(form: Literal["text", "json"]) -> dict[str, Any]:
    """For logging.config.dictConfig; covers our own loggers and uvicorn's."""
    text = {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}
    formatter: dict[str, Any] = {"()": JsonLines} if form == "json" else text
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["err"], "level": "WARNING"},
        "loggers": {
            "app": {"level": "INFO"},
            "uvicorn": {"level": "INFO"},
            "python_multipart": {"level": "ERROR"},  # what is wrong with a form, its client is told
        },
    }
