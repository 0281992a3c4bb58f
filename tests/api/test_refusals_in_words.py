"""A refusal says what the upload is, not what it fails to be."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save

from app.adapters.config.made_for import made_for_another
from tests.oracles import files_of

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
W, C = "adapter_model.safetensors", "adapter_config.json"


@pytest.mark.parametrize("name", [C, "config.json", "modules.json", "golden.jsonl"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (LFS, "is a git-lfs pointer"),
        (HTML, "is an HTML page"),
        (b"\xef\xbb\xbf  " + HTML, "is an HTML page"),
        (b" \n", "is empty"),
        (json.dumps({"r": 4}).encode("utf-16"), "is in UTF-16"),
    ],
)
def test_a_text_file_that_is_something_else_is_called_that(
    served: httpx.Client, folders: dict[str, Path], name: str, content: bytes, told: str
) -> None:
    files = files_of(folders["c"]) | {name: (name, content)}
    answer = served.put("/adapters/new", files=files)
    assert answer.status_code == 422
    assert f"{name} {told}" in answer.json()["error"]


def tar(folder: Path, mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name in (W, C):
            archive.add(folder / name, arcname=name)
    return out.getvalue()


def test_a_body_that_is_no_adapter_is_called_what_it_is(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    folder = folders["c"]
    bodies = {
        "an xz archive": [tar(folder, "w:xz"), lzma.compress(b"x")],
        "a bzip2 archive": [tar(folder, "w:bz2")],
        "a 7z archive": [b"7z\xbc\xaf\x27\x1c" + bytes(600)],
        "a rar archive": [b"Rar!\x1a\x07\x01\x00" + bytes(600)],
        "a zstd archive": [b"\x28\xb5\x2f\xfd" + bytes(600)],
        "an empty zip": [b"PK\x05\x06" + bytes(18)],
        "the gzip holds no tar": [gzip.compress((folder / W).read_bytes())],
        "this is JSON": [(folder / C).read_bytes(), b"[]"],
        "a git-lfs pointer": [LFS],
        "an HTML page": [HTML],
    }
    for told, contents in bodies.items():
        for content in contents:
            answer = served.put("/adapters/new", content=content)
            assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")
            assert told in answer.json()["error"], told
    assert "tar.gz or zip" in served.put("/adapters/new", content=bodies["a 7z archive"][0]).text


@pytest.mark.parametrize("printed", ["{'query', 'value'}", '["query", "value"]', "('query',)"])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_a_printed_set_is_not_called_too_long(
    served: httpx.Client, folders: dict[str, Path], printed: str, field: str
) -> None:
    files = files_of(folders["c"])
    config = json.loads(files[C][1]) | {field: printed}
    files[C] = (C, json.dumps(config).encode())
    answer = served.put("/adapters/new", files=files).json()
    assert "print of a Python set or list" in answer["error"]
    assert '["query"' in answer["error"]


def test_a_folder_without_weights_blames_no_state_of_a_trainer(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    config = (C, (folders["c"] / C).read_bytes())
    files = {C: config, "rng_state.pth": ("rng_state.pth", b"\x80\x02")}
    answer = served.put("/adapters/new", files=files).json()
    assert f"no {W} in the upload" in answer["error"]
    assert "pickle" not in answer["error"]


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_whole_checkpoint_is_pointed_to_extract(
    served: httpx.Client, tiny_bert: Path, prefix: str
) -> None:
    tensors = load_file(tiny_bert / "model.safetensors")
    body = save({prefix + name: tensor for name, tensor in tensors.items()})
    files = {"model.safetensors": ("model.safetensors", body)}
    for answer in (
        served.put("/adapters/new", content=body),
        served.put("/adapters/new?task=classify", files=files),
    ):
        assert answer.status_code == 422
        assert "bert-lora extract" in answer.json()["error"]


@pytest.mark.parametrize(
    ("made_for", "base", "folder", "warned"),
    [
        ("/home/me/out/run-7", "bert", "/models/bert", False),
        ("C:\\models\\mine", "bert", "/models/bert", False),
        ("../base", "bert", "/models/bert", False),
        ("tiny-base", "tinybert", "/models/tinybert", False),
        ("", "bert", "/models/bert", False),
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2", "/x", False),
        ("nreimers/MiniLM-L6-H384-uncased", "all-MiniLM-L6-v2", "/x", True),
        ("bert-base-uncased", "google-bert/bert-base-cased", "/x", True),
        ("/data/bert-base-uncased", "bert-base-cased", "/data/bert-base-cased", True),
        ("/data/bert-base-uncased", "bert-base-uncased", "/other/bert-base-uncased", False),
        (
            "/home/me/.cache/huggingface/hub/models--org--mine/snapshots/0123",
            "4567",
            "/root/.cache/huggingface/hub/models--org--mine/snapshots/4567",
            False,
        ),
        ("/c/models--org--mine/snapshots/0123", "org/other", "/x", True),
    ],
)
def test_another_base_is_warned_of_where_its_name_can_be_compared(
    made_for: str, base: str, folder: str, warned: bool
) -> None:
    assert bool(made_for_another(made_for, base, Path(folder))) == warned
