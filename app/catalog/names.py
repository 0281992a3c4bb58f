"""A name as the store has it, also where other servers move it.

Of a store that is this server's alone the registry knows everything. Of a shared one it knows the
names that were asked for, and all of them where they are few: the store is asked each second which
have moved, and those are read again. Knows the store and the registry; knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from app.adapters.refusals import AdapterRejected
from app.catalog.absent import Absent
from app.catalog.fetch import Fetcher
from app.catalog.nearest import LONGEST
from app.catalog.pointer import Pointer, valid_name
from app.catalog.registry import Name, Registry
from app.catalog.store import CacheUnusable, Moves, NameUnreadable, Store, StoreUnavailable
from app.catalog.stored_names import READERS, WHOLE, StoredNames

log = logging.getLogger(__name__)
EVERY_S = 1.0  # between two looks at what has moved
TTL_S = 300.0  # then a name in use is read again: a server may end before it tells a move
FORGOTTEN_S = 3_600.0  # after which a name that nobody asks for is known no more
ASKERS = 16  # unknown names that are looked up at the same time
MOST_ASKING = 128  # and that wait: somebody tries them out
NEVER_READ = "-"  # no log's: all may have moved
GONE = "what was stored about it is gone or damaged: PUT it again"


@dataclass(eq=False)
class Names:
    """unreachable: why the store cannot be asked now; None: it answers. met: whether it ever has.
    whole: whether every name that the store has is known. Touched from the event loop only, and so
    without a lock.
    """

    store: Store
    registry: Registry
    fetcher: Fetcher
    unreachable: str | None = None
    met: bool = True
    whole: bool = True
    always: frozenset[str] = frozenset()  # learned whether they are there or not
    _epoch: str = ""
    _asking: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _absent: Absent = field(default_factory=Absent)
    _read_at: dict[str, float] = field(default_factory=dict)
    _moved: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    _back: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: set[str] = field(default_factory=set)  # what is in that queue
    # Threads apart: what strangers ask for delays neither moves nor the looks at them.
    _askers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(ASKERS, "ask"))
    _poller: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "moves"))
    _readers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(READERS, "look")
    )

    async def get(self, name: str, at_least: int = 0, holding: str | None = None) -> Name:
        """The name, at a revision of `at_least` or a later one.

        holding: a version's first digits; where they are none of its history, another server may
        have just put it. Raises UnknownAdapter, OlderThanAsked; StoreUnavailable for a name of a
        shared store that is not known yet while that cannot be asked.
        """
        if self.store.shared:
            await self._look_if_needed(name, at_least)
            if holding is not None and self.unreachable is None:
                await self._look_for(name, holding)
        return self.registry.get(name, at_least)

    async def _look_if_needed(self, name: str, at_least: int) -> None:
        now = time.monotonic()
        for _ in range(2):  # a look that is under way may have begun too early
            served = self.registry.names.get(name)
            if served is None and name in self._absent and not at_least:
                return
            if served is not None and served.pointer.revision >= at_least:
                if now - self._read_at.setdefault(name, now) > TTL_S:
                    self._read_soon(name)
                return
            if not valid_name(name):
                return
            self.refuse_unreachable()
            await asyncio.shield(self._begin(name))

    def refuse_unreachable(self) -> None:
        """Raises StoreUnavailable while the store is known not to answer."""
        if self.unreachable is not None:
            raise StoreUnavailable(self.unreachable)

    async def _look_for(self, name: str, prefix: str) -> None:
        """Once for some time, as for a name that is not there."""
        served, digits = self.registry.names.get(name), prefix[:LONGEST].lower()
        key = f"{name}@{digits}"
        known = served is None or any(e.version.startswith(digits) for e in served.pointer.history)
        if not known and key not in self._absent:
            self._absent.add(key)
            await asyncio.shield(self._begin(name))

    async def look(self, name: str) -> Pointer:
        """Where the name points now, before this server moves it.

        What is known at a later revision is of a shared store that has gone back: by hand, or
        restored. It is known no more. Raises StoreUnavailable.
        """
        known = self.registry.names.get(name)
        pointer = await self.fetcher.ask(self.store.look, name)
        newer = known is not None and known.pointer.revision > pointer.revision
        if self.store.shared and newer and self.registry.names.get(name) is known:
            self.registry.remove(name)
        return pointer

    async def move(self, before: Pointer, after: Pointer) -> Pointer:
        """As Store.move. Then it is read again: another server may have moved it since, which may
        have been seen before; and of an unsure move it is not known whether it was made.
        """
        try:
            return await self.fetcher.ask(self.store.move, before, after)
        finally:
            if self.store.shared:
                self._read_soon(after.name)

    def _begin(self, name: str) -> asyncio.Task[None]:
        """One look for all who wait for it. Raises StoreUnavailable where there are too many."""
        looking = self._asking.get(name)
        if looking is None:
            if len(self._asking) >= MOST_ASKING:
                raise StoreUnavailable("too many unknown names are being looked up: try again")
            looking = self._asking[name] = asyncio.create_task(self._look(name, self._askers))
            looking.add_done_callback(partial(self._looked, name))
        return looking

    def _looked(self, name: str, looking: asyncio.Task[None]) -> None:
        self._asking.pop(name, None)
        if not looking.cancelled():
            looking.exception()  # whoever waits has it; nobody need wait

    async def _look(self, name: str, threads: ThreadPoolExecutor) -> None:
        """Make the registry know what the store says, unless this server moves the name meanwhile:
        then look again. Raises StoreUnavailable.
        """
        loop = asyncio.get_running_loop()
        while True:
            before = self.registry.names.get(name)
            seen = before.pointer if before else None
            pointer = await loop.run_in_executor(threads, self.store.look, name, seen)
            if before is not None and pointer.revision <= before.pointer.revision:
                if pointer == seen:
                    break
                # It was healed, restored or taken away by hand: or it came damaged.
                again = await loop.run_in_executor(threads, self.store.look, name)
                if again != pointer:
                    continue
            if self.registry.names.get(name) is before and await self._take(pointer, before):
                break
        self._read_at.pop(name, None)
        if name in self.registry.names:
            self._read_at[name] = time.monotonic()

    async def _take(self, pointer: Pointer, before: Name | None) -> bool:
        """Serve what the pointer says. Returns whether the name was left alone meanwhile."""
        name = pointer.name
        if pointer.version is None:
            self.registry.remove(name)
            if before is not None and not pointer.revision:
                self.registry.broken[name] = GONE
            self._absent.add(name)
            return True
        report = await self.fetcher.ask(self.fetcher.stored_report, pointer.version)
        if before is not None and before.digest in self.registry.residents:
            # Told to who asks for it: else the old version would be served, and nobody told.
            with contextlib.suppress(AdapterRejected, OSError, CacheUnusable):
                await self.fetcher.load_stored(pointer.version, moved=True)
        if self.registry.names.get(name) is not before:
            return False
        if report is None:
            await self.fetcher.load_name(pointer)
        else:
            self.fetcher.point(pointer, report)
        return True

    def begin(self, stored: StoredNames) -> None:
        """From what a start has read of a shared store."""
        met = stored.unreachable is None
        self._epoch, self.whole = stored.epoch if met else NEVER_READ, stored.whole
        self._read_at = dict.fromkeys(self.registry.names, time.monotonic())
        if stored.unreachable is not None:
            self.met = False
            self._lost(stored.unreachable)

    async def follow(self) -> None:
        """Read again what others have moved in a shared store, until cancelled.

        A version that takes long to come holds up the names that wait for it, and no other.
        """
        async with asyncio.TaskGroup() as readers:
            readers.create_task(self._read_moved(readers))
            while True:
                await self._see_what_moved()
                self._forget_unused()
                await asyncio.sleep(EVERY_S)

    async def _see_what_moved(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            moves = await loop.run_in_executor(self._poller, self.store.moves, self._epoch)
            names = await self._to_be_read(moves)
        except StoreUnavailable as error:
            self._lost(str(error))
            return
        except Exception:  # nothing may keep this server from following
            log.exception("what has moved cannot be read")
            self._lost("what has moved in the store cannot be read: see the log")
            return
        for name in names:
            self._read_soon(name)
        self._epoch = moves.epoch
        self._found()

    async def _to_be_read(self, moves: Moves) -> set[str]:
        """The names that have moved, of those that are known, or are to be. Raises
        StoreUnavailable.
        """
        known = {*self.registry.names, *self.registry.broken, *self.always}
        if moves.names is None:
            page = await self.fetcher.ask(self.store.names)
            self.whole = len(page) <= WHOLE
            self._absent.clear()
            return known.union(page if self.whole else ())
        for name in moves.names:
            self._absent.forget(name)
        names = set(moves.names if self.whole else moves.names & known)
        self.whole = self.whole and len(known | names) <= WHOLE
        return names

    def _forget_unused(self) -> None:
        """Of a store that is not known whole: else a server would know all names at last. While
        the store cannot be asked no name is read again, however often it is used.
        """
        if self.whole or self.unreachable is not None:
            return
        now = time.monotonic()
        for name in self.registry.names.keys() - self.always:
            if now - self._read_at.setdefault(name, now) > FORGOTTEN_S:
                self._read_at.pop(name)
                self.registry.remove(name)

    def _read_soon(self, name: str) -> None:
        if name not in self._waiting:
            self._waiting.add(name)
            self._moved.put_nowait(name)

    async def _read_moved(self, readers: asyncio.TaskGroup) -> None:
        """Each by itself, until cancelled."""
        while True:
            name = await self._moved.get()
            self._waiting.discard(name)  # if it moves again from here on, it waits again
            readers.create_task(self._read_again(name))

    async def _read_again(self, name: str) -> None:
        try:
            await self._look(name, self._readers)
        except NameUnreadable as error:
            self._leave(name, error)
        except StoreUnavailable:
            await asyncio.sleep(EVERY_S)
            if self.unreachable is not None:  # of thousands none asks before it answers again
                await self._back.wait()
            self._read_soon(name)
        except Exception:  # one name must not keep the others from being followed
            log.exception("the name %(name)s cannot be followed", {"name": name})

    def _leave(self, name: str, error: NameUnreadable) -> None:
        """What a newer server has moved is no more what is known; what is damaged may be."""
        log.error("the name %(name)s: %(why)s", {"name": name, "why": str(error)})
        if error.newer:
            self.registry.remove(name)
            self.registry.broken[name] = str(error)

    def _lost(self, why: str) -> None:
        if self.unreachable is None:
            log.error("what is known is served, and nothing else: %(why)s", {"why": why})
        self.unreachable = why
        self._back.clear()

    def _found(self) -> None:
        if self.unreachable is not None:
            log.info("the store answers again")
            self._read_at = dict.fromkeys(self._read_at, time.monotonic())  # else all are forgotten
        self.unreachable, self.met = None, True
        self._back.set()
