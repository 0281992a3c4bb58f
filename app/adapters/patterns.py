"""An uploader's regular expressions, matched under bounds: none may hold the server."""

from __future__ import annotations

import math
import re
import time

import regex

from app.adapters.upload import AdapterRejected

MAX_PATTERN_LENGTH = 1000
MAX_REPETITIONS = 1000
PATTERNS_S = 0.5  # for all of an upload's patterns on all of its layers
COUNTED = re.compile(r"\{(\d{1,6})(?:,(\d{1,6}))?\}")


def matches(pattern: str, path: str, deadline_s: float) -> bool:
    """Whether the expression matches from the path's start. deadline_s: by time.monotonic().

    Large counts are refused unread, because compiling `(a?){1000000}` alone takes seconds and
    gigabytes. Raises AdapterRejected for them, for no expression, and past the deadline.
    """
    if len(pattern) > MAX_PATTERN_LENGTH or _repetitions(pattern) > MAX_REPETITIONS:
        raise AdapterRejected(
            f"the pattern {pattern!r:.60} is over {MAX_PATTERN_LENGTH} characters, or repeats "
            f"over {MAX_REPETITIONS} times, which is not served"
        )
    left_s = min(PATTERNS_S, deadline_s - time.monotonic())
    try:
        if left_s <= 0:
            raise TimeoutError
        return regex.match(pattern, path, timeout=left_s) is not None
    except regex.error as error:
        raise AdapterRejected(f"the pattern {pattern!r} is no expression: {error}") from None
    except (TimeoutError, MemoryError, OverflowError, RecursionError):
        raise AdapterRejected(f"the patterns take over {PATTERNS_S} s to match") from None


def _repetitions(pattern: str) -> float:
    """How often its counted parts could repeat, if each stood inside the next: {2}, {1,3}, …"""
    counted = COUNTED.findall(pattern)
    if len(counted) < pattern.count("{"):
        return math.inf  # something else in braces, such as regex's fuzzy matching
    return math.prod(int(most or least) for least, most in counted)
