"""Uploads that nobody should send: what each is, and its bytes. Asked by tests and
benchmarks/hostile.py.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save

from tests.adapters.made import peft_file, peft_tensors, raw_safetensors, tutorial_tensors

KEY = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> bytes:
    tensors = peft_tensors()
    change(tensors)
    return save({n: t.contiguous() for n, t in tensors.items()})


def zip_of(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def lzma_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("adapter_model.safetensors", peft_file())
    whole = bytearray(out.getvalue())
    whole[100:400] = b"\xff" * 300
    return bytes(whole)


def tar_link() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("adapter_model.safetensors")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


def entry(dtype: object = "F32", shape: object = (2,), at: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


UPLOADS: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello, this is no adapter at all",
    "html": b"<!DOCTYPE html><html>404</html>",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n",
    "pickle": pickle.dumps({"a": [1, 2, 3]}, protocol=4),
    "torch.save": zip_of("archive/data.pkl", b"\x80\x02"),
    "truncated": peft_file()[:-100],
    "truncated header": peft_file()[:50],
    "trailing bytes": peft_file() + b"\0" * 16,
    "zip, cut": zip_of("adapter_model.safetensors", peft_file())[:400],
    "zip without weights": zip_of("adapter_config.json", b"{}"),
    "zip that points outside": zip_of("../adapter_model.safetensors", peft_file()),
    "tar with a link": tar_link(),
    "gzip of nothing": b"\x1f\x8b" + b"\0" * 40,
    "header longer than the file": (1 << 60).to_bytes(8, "little") + b"{}",
    "header no json": raw_safetensors(b"{not json"),
    "header a list": raw_safetensors([1]),
    "header deep": raw_safetensors(b"[" * 100_000),
    "no tensors": raw_safetensors({}),
    "metadata no map": raw_safetensors({"__metadata__": {"a": 1}, "x": entry()}, b"\0" * 8),
    "entry no map": raw_safetensors({"x": 3}, b"\0" * 8),
    "offsets negative": raw_safetensors({"x": entry(at=(-8, 0))}, b"\0" * 8),
    "offsets past the end": raw_safetensors({"x": entry(at=(0, 800))}, b"\0" * 8),
    "shape huge": raw_safetensors({"x": entry(shape=(1 << 62, 4))}, b"\0" * 8),
    "shape a float": raw_safetensors({"x": entry(shape=(2.0,))}, b"\0" * 8),
    "dtype a list": raw_safetensors({"x": entry(["F32"])}, b"\0" * 8),
    "shape a text": raw_safetensors({"x": entry(shape="2")}, b"\0" * 8),
    "offsets a map": raw_safetensors({"x": entry(at={"a": 0, "b": 8})}, b"\0" * 8),
    "a name of half a surrogate": raw_safetensors(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
    "zip with an empty name": zip_of("q", b"x").replace(b"\x01\x00\x00\x00q", b"\x00\x00\x00\x00q"),
    "zip with a name in no encoding": zip_of("r", b"x").replace(b"r", b"\x80", 1),
    "lzma zip, damaged": lzma_zip(),
    "dtype odd": raw_safetensors({"x": entry("F8_E4M3", (8,))}, b"\0" * 8),
    "overlap": raw_safetensors({"x": entry(), "y": entry()}, b"\0" * 8),
    "gap": raw_safetensors({"x": entry(), "y": entry(at=(12, 20))}, b"\0" * 20),
    "no elements": raw_safetensors({"x": entry(shape=(0, 4), at=(0, 0))}),
    "twice the same name": raw_safetensors(
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8
    ),
    "NaN": changed(lambda t: t[KEY].fill_(float("nan"))),
    "infinity": changed(lambda t: t[KEY].fill_(float("inf"))),
    "wrong width": changed(lambda t: t.update({KEY: torch.ones(4, 48)})),
    "wrong rank": changed(lambda t: t.update({KEY: torch.ones(5, 32)})),
    "a vector": changed(lambda t: t.update({KEY: torch.ones(32)})),
    "half a pair": changed(lambda t: t.pop(KEY)),
    "unknown module": changed(lambda t: t.update({KEY.replace("query", "quary"): t.pop(KEY)})),
    "a layer too many": changed(lambda t: t.update({KEY.replace(".0.", ".7."): t.pop(KEY)})),
    "an unknown tensor": changed(lambda t: t.update({"who.knows": torch.ones(3)})),
    "DoRA on one layer only": changed(lambda t: t.update({KEY.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(32)})),
    "both layouts": save({**peft_tensors(), **tutorial_tensors()}),
    "B all zero": changed(lambda t: [v.zero_() for n, v in t.items() if "lora_B" in n]),
    "overflows float32": changed(lambda t: [v.mul_(3e37) for v in t.values()]),
}  # fmt: skip


def tar_of_one(change: Callable[[tarfile.TarInfo], Any], content: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("adapter_model.safetensors")
        change(info)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def many_entries(count: int, entry: str) -> bytes:
    """A header of `count` tensors, each with this entry."""
    text = ",".join(f'"a{i}":{entry}' for i in range(count))
    return raw_safetensors(f"{{{text}}}".encode(), b"\0" * 8)


def bomb_zip() -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("adapter_model.safetensors", "w", force_zip64=True) as file,
    ):
        for _ in range(300):
            file.write(bytes(1 << 20))
    return out.getvalue()


def bomb_gzip() -> bytes:
    info = tarfile.TarInfo("notes.txt")
    info.size = 600 << 20
    return gzip.compress(info.tobuf() + bytes(300 << 20), 9)


def tar_of_many(count: int) -> bytes:
    header = tarfile.TarInfo("x").tobuf()
    return header * count + bytes(1024)


EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
UPLOADS |= {
    "200,000 empty tensors": many_entries(200_000, EMPTY),
    "5,001 empty tensors": many_entries(5_001, EMPTY),
    "4,900 tensors that are one": many_entries(4_900, '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'),
    "4,900 unknown tensors": save({f"x{i}.weight": torch.ones(1, 1) for i in range(4_900)}),
    "a shape of 100,000 numbers": raw_safetensors({"x": entry(shape=[1] * 100_000 + [2])}, b"\0" * 8),
    "a shape that overflows": raw_safetensors({"x": entry(shape=[1 << 32, 1 << 32])}, b"\0" * 8),
    "a number of 5,000 digits": raw_safetensors(b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', b"\0" * 8),
    "no shape": raw_safetensors({"x": entry(shape=(), at=(0, 4))}, b"\0" * 4),
    "true for a number": raw_safetensors({"x": entry(shape=(True, 2))}, b"\0" * 8),
    "offsets backwards": raw_safetensors({"x": entry(at=(8, 0))}, b"\0" * 8),
    "three offsets": raw_safetensors({"x": entry(at=(0, 4, 8))}, b"\0" * 8),
    "overlap by half": raw_safetensors({"x": entry(), "y": entry(at=(4, 12))}, b"\0" * 12),
    "a gap before": raw_safetensors({"x": entry(at=(8, 16))}, b"\0" * 16),
    **{f"dtype {name}": raw_safetensors({"x": entry(name, (8 // size,))}, b"\0" * 8)
       for name, size in {"I64": 8, "I8": 1, "BOOL": 1, "U16": 2, "F8_E5M2": 1, "C64": 8, "f32": 4, "": 4}.items()},
    "NUL in a name": raw_safetensors({"a\0b.lora_A.weight": entry()}, b"\0" * 8),
    "../ in a name": raw_safetensors({"../../etc/x.lora_A.weight": entry()}, b"\0" * 8),
    "a name of a megabyte": raw_safetensors({"a." * (1 << 19) + "weight": entry()}, b"\0" * 8),
    "an empty name": raw_safetensors({"": entry()}, b"\0" * 8),
    "a header of maps in maps": raw_safetensors(b'{"x":' * 50_000 + b"1" + b"}" * 50_000),
    "a header in UTF-16": raw_safetensors('{"x":1}'.encode("utf-16")),
    "a header with bytes of no text": raw_safetensors(b'{"\xff":1}'),
    "a header of 9 MB": raw_safetensors(b'{"__metadata__":{"a":"' + b"x" * (9 << 20) + b'"}}'),
    "two headers": raw_safetensors({}) + peft_file(),
    "eight bytes": b"\0" * 8,
    "pickle, protocol 2": pickle.dumps({"a": [1]}, protocol=2),
    "pickle, protocol 5": pickle.dumps({"a": [1]}, protocol=5),
    "pickle, protocol 0": pickle.dumps({"a": [1]}, protocol=0),
    "a pickle under an adapter's name": zip_of("adapter_model.bin", pickle.dumps({"a": 1})),
    "an HTML page with a space": b"\n  <html><body>Not Found</body></html>",
    "a JSON error": b'{"error": "Repository not found"}',
    "a zip bomb": bomb_zip(),
    "a gzip bomb": bomb_gzip(),
    "a tar of 100,000 entries": tar_of_many(100_000),
    "a tar with an absolute path": tar_of_one(lambda t: setattr(t, "name", "/tmp/adapter_model.safetensors"), peft_file()),
    "a tar that climbs": tar_of_one(lambda t: setattr(t, "name", "a/../../adapter_model.safetensors"), peft_file()),
    "a tar with a hard link": tar_of_one(lambda t: (setattr(t, "type", tarfile.LNKTYPE), setattr(t, "linkname", "/etc/passwd"))),
    "a tar with a device": tar_of_one(lambda t: setattr(t, "type", tarfile.CHRTYPE)),
    "a tar with a fifo": tar_of_one(lambda t: setattr(t, "type", tarfile.FIFOTYPE)),
    "a zip with an absolute path": zip_of("/etc/adapter_model.safetensors", peft_file()),
    "a zip that climbs by backslashes": zip_of("..\\adapter_model.safetensors", peft_file()),
    "a zip of a git-lfs pointer": zip_of("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n"),
    "LoHa without a config": save({KEY.replace("lora_A.weight", f"hada_{w}"): torch.ones(32, 32) for w in ("w1_a", "w1_b", "w2_a", "w2_b")}),
    "prompt embeddings": save({"prompt_embeddings": torch.ones(8, 32)}),
    "LoRA of rank 20,000": save({KEY: torch.ones(20_000, 32), KEY.replace("lora_A", "lora_B"): torch.full((32, 20_000), float("inf"))}),
}  # fmt: skip
