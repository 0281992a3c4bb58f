"""Kills the store's writer at every step of every change, and looks at what it left.

    python -m tests.catalog.crashing FOLDER

Each change is done by a forked child that kills itself (SIGKILL) at its n-th touch of the disk, for
n = 1, 2, … until it gets through. Prints one JSON object: kills by change, and what was wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from app.catalog.local_store import LocalStore
from app.catalog.pointer import Entry, deleted, moved, now
from app.catalog.store import VersionDamaged, content_version

KEEP = 2
TOUCHES = ("open", "os.", "shutil.", "tempfile.")


def put(store: LocalStore, content: bytes) -> None:
    with store.receiving() as tmp:
        (tmp / "body").write_bytes(content)
        folder = tmp / "adapter"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(content)
        (folder / "config.json").write_bytes(b"{}")
        digest = content_version(folder, {})
        store.commit(folder, digest, {}, {"rank": 1})
        point(store, digest)


def point(store: LocalStore, digest: str) -> None:
    before = store.look("x")
    store.move(before, moved(before, Entry(digest, now()), KEEP))


def rollback(store: LocalStore) -> None:
    pointer = store.look("x")
    point(store, pointer.history[-2].version)


def delete(store: LocalStore) -> None:
    pointer = store.look("x")
    store.move(pointer, deleted(pointer))


def damage(store: LocalStore) -> None:
    """A damaged version is put aside and put again."""
    (store.folder(_version(store)) / "config.json").write_bytes(b"[]")
    put(store, b"two")


CHANGES: dict[str, Callable[[LocalStore], None]] = {
    "first put": lambda store: put(store, b"first"),
    "replacing": lambda store: put(store, b"three"),  # drops the oldest version
    "same again": lambda store: put(store, b"two"),
    "rollback": rollback,
    "delete": delete,
    "damage": damage,
    "audit": lambda store: store.append_audit({"name": "x"}),
    "start": lambda store: collect(LocalStore(store.root)),
}


def killed(root: Path, change: Callable[[LocalStore], None], at: int) -> bool:
    """Do the change in a child that is killed at its at-th touch; whether it came to that."""
    child = os.fork()
    if child == 0:
        count = 0

        def touch(event: str, _: object) -> None:
            nonlocal count
            if event.startswith(TOUCHES):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        store = LocalStore(root)
        fsync = os.fsync
        os.fsync = lambda fd: (touch("os.fsync", fd), fsync(fd))[1]  # type: ignore[assignment]
        Path.write_text = halfway(touch)  # type: ignore[method-assign]
        sys.addaudithook(touch)
        change(store)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def halfway(touch: Callable[[str, object], None]) -> Callable[[Path, str], int]:
    """Path.write_text with a touch in the midst of the writing."""

    def write_text(path: Path, text: str) -> int:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
            file.flush()
            touch("os.write", path)
            return file.write(text[len(text) // 2 :])

    return write_text


def state(root: Path, faults: list[str], where: str) -> tuple[str | None, ...]:
    """What a start finds: the version and its history. Notes whatever no start may find."""
    store = LocalStore(root)
    collect(store)
    pointer = store.look("x")
    held = {e.version for e in pointer.history}
    there = {p.name for p in (root / "versions").iterdir()}
    if there - held:
        faults.append(f"{where}: {len(there - held)} versions that nobody holds")
    for version in held:
        if not whole(store, version):
            faults.append(f"{where}: version {version[:12]} is held and not whole")
    if any((root / "tmp").iterdir()) or any((root / "names").glob("*.damaged")):
        faults.append(f"{where}: leftovers")
    audited = len(store.read_audit("", 100, lambda _: True))
    return (str(audited), pointer.version, *(e.version for e in pointer.history))


def collect(store: LocalStore) -> None:
    """Mark what no name holds, and remove it."""
    store.collect(0)
    store.collect(0)


def whole(store: LocalStore, version: str) -> bool:
    try:
        return store.folder(version).is_dir()
    except VersionDamaged:
        return False


def main() -> None:
    work = Path(sys.argv[1])
    empty, full = work / "empty", work / "full"
    LocalStore(empty)
    store = LocalStore(full)
    put(store, b"one")
    put(store, b"two")
    store.append_audit({"name": "x"})
    (full / "tmp" / "left").mkdir()
    shutil.copytree(store.folder(_version(store)), full / "versions" / "0")
    kills: dict[str, int] = {}
    faults: list[str] = []
    for name, change in CHANGES.items():
        begin = empty if name == "first put" else full
        clean = shutil.copytree(begin, work / "clean")
        ignored: list[str] = []
        old = state(clean, ignored, "")
        shutil.rmtree(clean)
        done = shutil.copytree(begin, work / "done")
        change(LocalStore(done))
        new = state(done, faults, name)
        shutil.rmtree(done)
        at, again = 0, True
        while again:
            at += 1
            root = shutil.copytree(begin, work / "root")
            again = killed(root, change, at)
            where = f"{name}, killed at {at}"
            # damage() itself is no change of ours: until it is healed the version is not whole
            found = state(root, [] if name == "damage" and again else faults, where)
            if found not in ((old, new) if again else (new,)):
                faults.append(f"{where}: {found} is neither {old} nor {new}")
            kills[name] = kills.get(name, 0) + again
            shutil.rmtree(root)
    print(json.dumps({"kills": kills, "faults": faults}))


def _version(store: LocalStore) -> str:
    version = store.look("x").version
    assert version is not None
    return version


if __name__ == "__main__":
    main()
