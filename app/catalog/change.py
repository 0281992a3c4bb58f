"""One change of a name, from when it is asked for: who asks, what becomes of it, and its record.

Whoever changes a name fills in what it is on the way, so that a change that is refused is told as
well as one that is made. Knows the store; knows no HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from app.catalog.pointer import now
from app.catalog.store import Json, Store, StoreFull, StoreUnavailable

log = logging.getLogger("app.changes")

LINE = "%(action)s of %(name)s: %(outcome)s, from %(from)s to %(to)s, by %(by)s at %(address)s"
REFUSED = ", %(error_type)s (%(reason)s)"
REQUEST = ", request %(request_id)s"  # last: it is the client's own
Action = Literal[
    "put",
    "stage",
    "compose",
    "labels",
    "delete",
    "rollback",
    "merge",
    "unmerge",
    "canary",
    "shadow",
    "promote",
    "abort",
    "folder",
    "folder_gone",
]
Outcome = Literal["changed", "unchanged", "refused", "unsure"]
UNSURE = "change_unsure"  # the error type of a change of which nobody knows if it was made


@dataclass(eq=False)
class Change:
    """name, by (a key's name), address, request_id: None where there is none or none is known.

    before, after: the name's version, and the one that it gets or would have got; of a canary or
    shadow the version on trial. done: it has been made, whatever is answered.
    """

    action: Action = "put"
    name: str | None = None
    by: str | None = None
    address: str | None = None
    request_id: str | None = None
    before: str | None = None
    after: str | None = None
    done: bool = False

    def of(self, name: str, before: str | None, after: str | None) -> None:
        """What is about to be tried."""
        self.name, self.before, self.after = name, before, after

    def record(self, error_type: str | None) -> Json:
        """As the log and the audit have it."""
        outcome: Outcome = "changed" if self.done else "unchanged"
        if not self.done and error_type is not None:
            outcome = "unsure" if error_type == UNSURE else "refused"
        return {
            "action": self.action,
            "name": self.name,
            "from": self.before,
            "to": self.after,
            "outcome": outcome,
            "error_type": error_type,
            "by": self.by,
            "address": self.address,
            "request_id": self.request_id,
        }


def write_down(
    store: Store,
    change: Change,
    error_type: str | None = None,
    reason: str | None = None,
    *,
    audited: bool = True,
) -> None:
    """One line in the log, and one record in the store's audit. Blocks until it is on the disk.

    reason: of a refusal, for the log.
    """
    record = change.record(error_type)
    if record["outcome"] in ("refused", "unsure"):
        log.warning(LINE + REFUSED + REQUEST, record | {"reason": reason})
    else:
        log.info(LINE + REQUEST, record)
    if audited:
        audit(store, change, error_type)


def audit(store: Store, change: Change, error_type: str | None = None) -> None:
    """One record in the store's audit. Blocks.

    A store that takes no record undoes no change: the log says so. One in a bucket takes it later,
    if this process still lives then.
    """
    record = change.record(error_type)
    try:
        store.append_audit({"time": now(), **record})
    except (StoreFull, StoreUnavailable) as error:
        log.error("the audit lacks a change: %(why)s", {"why": str(error), **record})


def say_together(changes: Sequence[Change]) -> None:
    """One line for changes that were made at once, as a start makes them."""
    if changes:
        names = ", ".join(change.name or "" for change in changes)
        line = {"action": changes[0].action, "count": len(changes), "names": names}
        log.info("%(action)s of %(count)d names: changed, %(names).1000s", line)
