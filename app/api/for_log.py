"""Why a request was refused, in words that hold nothing of what the client sent: for the log."""

from __future__ import annotations

import re
from pathlib import PurePath
from traceback import extract_tb

from app.adapters.refusals import AdapterRejected
from app.api.refusal import Refusal
from app.logs import without_quotes

LONGEST = 200  # characters


def reason_of(error: Exception, refusal: Refusal) -> str:
    """What our messages take from a client stands in quotes, or behind the first colon.

    Not so of uploads, whose authors name tensors and files: where our code refused it is told.
    """
    if refusal.for_log:
        return refusal.for_log
    if isinstance(error, AdapterRejected):
        last = extract_tb(error.__traceback__)[-1]
        where = f"{PurePath(last.filename).name}, {last.name}"
        return f"the upload: {len(error.problems)} problems ({where}), told to its client"
    return re.split(r"[:;](?:\s|$)", without_quotes(refusal.message), maxsplit=1)[0][:LONGEST]
