"""An uploader's regular expressions, matched under bounds: none may hold the server."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Any

from app.adapters.refusals import AdapterRejected

MAX_PATTERN_LENGTH = 10_000  # every layer of a large model by its whole path
MAX_REPETITIONS = 1000
PATTERNS_S = 0.5  # for all of an upload's patterns on all of its layers
COUNTED = re.compile(r"\{(\d{1,6})(?:,(\d{0,6}))?\}")


@dataclass(eq=False)
class Patterns:
    """One upload's expressions, and the time that they may still take together."""

    remaining_s: float = PATTERNS_S

    def match(self, pattern: str, path: str, *, whole: bool = False) -> Any:
        """re.match's answer for this expression, or re.fullmatch's with `whole`.

        Large counts are refused unread, because compiling `(a?){1000000}` alone takes seconds and
        gigabytes. Raises AdapterRejected for them, for no expression, and when the time is spent.
        """
        if len(pattern) > MAX_PATTERN_LENGTH or _repetitions(pattern) > MAX_REPETITIONS:
            raise AdapterRejected(
                f"the pattern {pattern!r:.60} is over {MAX_PATTERN_LENGTH} characters, or repeats "
                f"over {MAX_REPETITIONS} times, which is not served"
            )
        import regex  # a tenth of a second of a start, where no upload has a pattern

        started = time.monotonic()
        try:
            if self.remaining_s <= 0:
                raise TimeoutError
            method = regex.fullmatch if whole else regex.match
            return method(pattern, path, timeout=self.remaining_s)
        except regex.error as error:
            raise AdapterRejected(
                f"the pattern {pattern!r:.60} is no expression: {error}"
            ) from None
        except TimeoutError:
            raise AdapterRejected(f"the patterns take over {PATTERNS_S} s to match") from None
        except (MemoryError, OverflowError, RecursionError):
            raise AdapterRejected(f"the pattern {pattern!r:.60} is nested too deeply") from None
        finally:
            self.remaining_s -= time.monotonic() - started


def _repetitions(pattern: str) -> float:
    """How often its counted parts could repeat, each inside the next: {2}, {1,3}, {4,}, …"""
    counted = COUNTED.findall(pattern)
    if len(counted) < pattern.count("{"):
        return math.inf  # something else in braces, such as regex's fuzzy matching
    return math.prod(int(most or least) for least, most in counted)
