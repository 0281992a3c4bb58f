"""The time that a client gives its request: X-Request-Timeout, in seconds from when its head has come."""

from __future__ import annotations

import math
import time

from starlette.exceptions import HTTPException

from app.api.errors import invalid

TIMEOUT = "x-request-timeout"
LATE = HTTPException(504, f"not answered within the {TIMEOUT} that was asked for")


def time_left_s(said: str | None, began: float) -> float | None:
    """Seconds; None: any time. began: of perf_counter. Raises Refusal for what is no number above 0."""
    if said is None:
        return None
    try:
        timeout_s = float(said)
    except ValueError:
        timeout_s = -1.0
    if not 0 < timeout_s < math.inf:
        raise invalid(TIMEOUT, f"is {said!r}; it is a number of seconds, above 0")
    return max(0.0, began + timeout_s - time.perf_counter())
