"""No bytes whatever make the reader do anything but accept or refuse by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.adapters.receiving.archive import unpack
from app.adapters.receiving.upload import read_tensors
from app.adapters.refusals import AdapterRejected, UploadTooLarge
from tests.adapters.made import peft_file, peft_tensors

FILE = peft_file()
ANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@ANY
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(AdapterRejected):
        read_tensors(path)


@ANY
@given(at=st.integers(0, len(FILE) - 1), byte=st.integers(0, 255))
def test_one_changed_byte_is_read_or_refused(tmp_path: Path, at: int, byte: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILE[:at] + bytes([byte]) + FILE[at + 1 :])
    try:
        found = read_tensors(path)
    except AdapterRejected:
        return
    assert all(torch.isfinite(t).all() for t in found.tensors.values())


@ANY
@given(
    data=st.binary(max_size=200),
    start=st.sampled_from([b"PK\x03\x04", b"\x1f\x8b", b"", b"\x80\x02", b"x" * 257 + b"ustar"]),
)
def test_random_bodies_are_refused(tmp_path_factory, data: bytes, start: bytes) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("u")
    (folder / "adapter").mkdir()
    (folder / "body").write_bytes(start + data)
    try:
        unpack(folder / "body", folder / "adapter", 1 << 20)
    except (AdapterRejected, UploadTooLarge):
        return
    with pytest.raises(AdapterRejected):
        read_tensors(folder / "adapter" / "adapter_model.safetensors")


def test_a_good_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILE)
    found = read_tensors(path)
    wanted = peft_tensors()
    assert found.tensors.keys() == wanted.keys()
    assert all(torch.equal(found.tensors[n], wanted[n]) for n in wanted)
    assert found.file_bytes == len(FILE)
