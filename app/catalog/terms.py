"""`a:0.7+b:0.3`: a weighted sum of adapters, as it is spelled. Knows no adapter.

A `+` in a query means a space (application/x-www-form-urlencoded), so either stands between terms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.adapters.sums import CannotCompose

MOST_TERMS = 8
LARGEST = 100.0  # of a weight
LONGEST = 2000  # characters of a whole sum
BETWEEN = re.compile(r"[+ ]+")
TERM = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]{0,62}(?:@[0-9A-Fa-f]{1,64})?)(?::(?P<weight>.*))?")
NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:e-[0-9]{1,3})?")
EXAMPLE = "a sum is spelled name:weight+name:weight, as in a:0.7+b:0.3"


@dataclass(frozen=True)
class Spelled:
    """One term. name: `name` or `name@version`. A term without a weight counts once."""

    name: str
    weight: float = 1.0


def read_terms(spelled: str) -> list[Spelled] | None:
    """The terms of a sum; None for what is none: a name, or another server's model.

    Raises CannotCompose for one that is meant as a sum and is spelled wrong.
    """
    pieces = BETWEEN.split(spelled[: LONGEST + 1].strip())
    matches = [TERM.fullmatch(piece) for piece in pieces]
    weighted = [m is not None and _is_number(m["weight"]) for m in matches]
    if len(pieces) == 1 and not weighted[0]:
        return None
    if None in matches and not ("+" in spelled or any(weighted)):
        return None
    if len(spelled) > LONGEST or len(pieces) > MOST_TERMS:
        raise CannotCompose(f"a sum has at most {MOST_TERMS} terms: compose some of them first")
    return [_term(*pair) for pair in zip(pieces, matches, strict=True)]


def _is_number(weight: str | None) -> bool:
    """Is it meant as one, whether it is a weight or not?"""
    try:
        float(weight or "")
    except ValueError:
        return False
    return True


def _term(spelled: str, match: re.Match[str] | None) -> Spelled:
    if match is None:
        raise CannotCompose(f"{spelled[:80]!r} is no term: {EXAMPLE}")
    if match["weight"] is None:
        return Spelled(match["name"])
    if not NUMBER.fullmatch(match["weight"]) or abs(float(match["weight"])) > LARGEST:
        raise CannotCompose(
            f"{match['weight'][:40]!r} is no weight from -{LARGEST:g} to {LARGEST:g}: {EXAMPLE}"
        )
    return Spelled(match["name"], float(match["weight"]))
