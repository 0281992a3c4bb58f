"""Whether two versions of a name may answer the same requests.

Knows reports; knows no traffic.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from app.adapters.refusals import AdapterRejected
from app.adapters.report import Report
from app.catalog.fetch import Fetcher
from app.catalog.pointer import Pointer

log = logging.getLogger(__name__)


def alike(report: Report, other: Report) -> bool:
    """Whether both answer the same requests, in the same shape."""
    return (report.task, report.has_head) == (other.task, other.has_head)


async def with_fitting_trial(fetcher: Fetcher, after: Pointer, report: Report) -> Pointer:
    """The pointer without its trial, where that answers in another shape than the report's version.

    A trial whose version cannot be loaded does not fit either. Raises StoreUnavailable.
    """
    if after.trial is None:
        return after
    try:
        trial = await fetcher.load_stored(after.trial.version)
        if alike(report, trial.report):
            return after
    except AdapterRejected:
        pass
    over = {"mode": after.trial.mode, "name": after.name}
    log.warning("the %(mode)s of %(name)s is over: it does not fit", over)
    return replace(after, trial=None)
