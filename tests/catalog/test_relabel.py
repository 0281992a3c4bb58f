"""Labels given while the name moves belong to the version that it has moved to."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.assemble import assemble
from app.catalog.change import Change
from app.catalog.install import Installer
from app.catalog.local_store import LocalStore
from app.catalog.relabel import relabel
from app.inference.metrics import Metrics
from app.settings import Settings
from tests.oracles import make_adapter


def anything(_: str | None) -> None:
    """No precondition."""


async def relabelled_amid_a_rollback(installer: Installer, sources: list[Path]) -> tuple[str, str]:
    """The weights that the name has in the end, and those that it was rolled back to."""
    for source in sources:
        await installer.install_folder("x", source, Change("folder"))
    async with installer.changing:  # both wait for it, in this order
        labelling = asyncio.create_task(
            relabel(installer, "x", ("good", "bad"), None, anything, Change())
        )
        await asyncio.sleep(0.05)
        back = asyncio.create_task(installer.rollback("x", None, anything, Change()))
        await asyncio.sleep(0.05)
    await asyncio.gather(labelling, back)
    served = installer.registry.get("x")
    assert served.report.labels == ("good", "bad")
    earlier = (await back).digest
    folders = [installer.store.folder(digest) for digest in (served.digest, earlier)]
    now, then = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    return now.hex(), then.hex()


def test_labels_given_while_the_name_is_rolled_back_undo_no_rollback(
    tiny_bert: Path, tmp_path: Path
) -> None:
    sources = [make_adapter(tiny_bert, tmp_path / name, i, labels=2) for i, name in enumerate("ab")]
    settings = Settings(model=str(tiny_bert), store=tmp_path / "store")
    runtime, installer = assemble(settings, Metrics(), LocalStore(Path(settings.store)))
    runtime.engine.start()
    now, then = asyncio.run(relabelled_amid_a_rollback(installer, sources))
    runtime.engine.stop()
    assert now == then
