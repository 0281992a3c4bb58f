"""An archive is unpacked under bounds: no zip bomb, no path traversal, no link, nothing cut
short.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from app.adapters.receiving import archive
from app.adapters.receiving.archive import unpack
from app.adapters.receiving.received import MAX_FILES
from app.adapters.refusals import AdapterRejected, UploadTooLarge

W, C = "adapter_model.safetensors", "adapter_config.json"
FILES = {W: b"w" * 5000, C: b"{}"}
CAP = 1 << 20


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def gzipped(files: dict[str, bytes]) -> bytes:
    return tarred(files, "w:gz")


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return out.getvalue()


PACK = [tarred, gzipped, zipped]


def unpacked(tmp: Path, body: bytes, cap: int = CAP, path: str | None = None) -> dict[str, bytes]:
    (tmp / "adapter").mkdir()
    (tmp / "body").write_bytes(body)
    unpack(tmp / "body", tmp / "adapter", cap, path)
    return {p.name: p.read_bytes() for p in (tmp / "adapter").iterdir()}


@pytest.mark.parametrize("pack", PACK)
def test_a_packed_folder_gives_its_files(tmp_path: Path, pack: type) -> None:
    assert unpacked(tmp_path, pack({f"m/{name}": f for name, f in FILES.items()})) == FILES
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["adapter", "body"]


def test_bare_bytes_are_the_weights(tmp_path: Path) -> None:
    assert unpacked(tmp_path, b"12345678{}") == {W: b"12345678{}"}


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize(
    "name", [f"../{W}", f"m/../../{W}", f"/etc/{W}", f"..\\{W}", f"\\etc\\{W}"]
)
def test_a_path_that_leads_outside_is_refused(tmp_path: Path, pack: type, name: str) -> None:
    with pytest.raises(AdapterRejected, match="outside"):
        unpacked(tmp_path, pack({name: b"w"}))
    assert {p.name for p in tmp_path.rglob("*")} <= {"adapter", "body", "received"}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_a_tars_link_or_device_is_refused(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo(W)
    entry.type, entry.linkname = kind, "/etc/passwd"
    with pytest.raises(AdapterRejected, match="link or device"):
        unpacked(tmp_path, entry.tobuf() + bytes(1024))


@pytest.mark.parametrize("pack", PACK)
def test_what_unpacks_over_the_cap_is_too_large(tmp_path: Path, pack: type) -> None:
    with pytest.raises(UploadTooLarge):
        unpacked(tmp_path, pack({W: bytes(CAP + 1)}))


@pytest.mark.parametrize(("pack", "name"), [(gzipped, W), (gzipped, "notes.txt"), (zipped, W)])
def test_a_zip_bomb_is_refused_long_before_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: type, name: str
) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 1 << 16)
    with pytest.raises(AdapterRejected, match="20 times"):
        unpacked(tmp_path, pack({name: bytes(4 << 20)}), 1 << 40)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*")) < 1 << 20


def test_a_tar_within_a_gzip_bomb_after_its_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 1 << 16)
    with pytest.raises(AdapterRejected, match="20 times"):
        unpacked(tmp_path, gzip.compress(tarred(FILES) + bytes(8 << 20)), 1 << 40)


@pytest.mark.parametrize("pack", PACK)
def test_a_list_of_files_ends(tmp_path: Path, pack: type) -> None:
    with pytest.raises(AdapterRejected, match=f"more than {MAX_FILES}"):
        unpacked(tmp_path, pack({f"f{i}": b"" for i in range(MAX_FILES + 1)}))


@pytest.mark.parametrize(
    "body",
    [
        tarred(FILES)[:5632],
        tarred(FILES)[:6000],
        gzipped(FILES)[:-9],
        zipped(FILES)[:-30],
        gzip.compress(b"no tar"),
        b"\x1f\x8b" + bytes(40),
        b"PK\x03\x04" + bytes(40),
    ],
    ids=[
        "tar cut",
        "tar without end",
        "gzip cut",
        "zip cut",
        "no tar",
        "gzip of zeros",
        "zip of zeros",
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(AdapterRejected):
        unpacked(tmp_path, body)


def test_a_path_twice_is_refused_and_a_bare_file_has_none(tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match="twice"):
        unpacked(tmp_path, tarred({f"m/{W}": b"w", f"m\\{W}": b"w"}))
    (tmp_path / "adapter").rmdir()
    with pytest.raises(AdapterRejected, match="no folders"):
        unpacked(tmp_path, b"12345678{}", path="m")
