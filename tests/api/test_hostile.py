"""Bad input: the error of API.md, nothing changed, no 500."""

from __future__ import annotations

import errno
import io
import json
import socket
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load, save

from tests.adapters.hostile import UPLOADS, zip_of
from tests.adapters.made import peft_tensors
from tests.live import LiveServer
from tests.oracles import files_of, put


def state(client: httpx.Client) -> tuple[Any, Any]:
    return client.get("/adapters").json(), client.post("/embed", json={"inputs": "good"}).json()


@pytest.mark.parametrize("what", UPLOADS)
def test_a_hostile_upload_is_refused_and_leaves_no_trace(
    tiny_server: LiveServer, served: httpx.Client, what: str
) -> None:
    before = state(served)
    store = tiny_server.app.state.serving.installer.store.root
    files = sorted(store.rglob("*"))
    for name in ("new", "a"):
        answer = served.put(f"/adapters/{name}?alpha=16", content=UPLOADS[what])
        assert answer.status_code == 422, answer.text
        assert answer.json()["error_type"] == "adapter_rejected"
        assert len(answer.json()["error"]) > 15
    assert state(served) == before
    assert sorted(store.rglob("*")) == files


def test_every_problem_is_listed_by_tensor_name(served: httpx.Client) -> None:
    tensors = peft_tensors()
    names = sorted(tensors)
    tensors[names[0]] = torch.ones(4, 48)
    tensors["who.knows"] = torch.ones(3)
    tensors["classifier.weight"] = torch.ones(3, 99)
    del tensors[names[3]]
    answer = served.put("/adapters/new?alpha=16", content=save(tensors)).json()
    listed = {p.get("tensor") for p in answer["problems"]}
    assert {names[0], names[2], "who.knows", "classifier.weight"} <= listed


CONFIGS: dict[str, dict[str, Any]] = {
    "DoRA without its magnitudes": {"use_dora": True},
    "another method": {"peft_type": "IA3"},
    "an unknown field": {"flux_capacitor": 3},
    "trained biases": {"bias": "all"},
    "an initialisation that edits the base": {"init_lora_weights": "pissa_niter_4"},
    "alpha a text": {"lora_alpha": "many"},
    "another rank": {"r": 5},
    "a pattern that never ends": {"rank_pattern": {"((.|..)+)+[A-Z]": 3}},
    "a pattern that is none": {"alpha_pattern": {"((": 3}},
    "labels that don't count": {"id2label": {"0": "x", "7": "y"}},
    "a target that the file lacks": {"target_modules": ["query", "value", "key"]},
    "all-linear, and the file lacks most": {"target_modules": "all-linear"},
    "an expression with layers that the file lacks": {"target_modules": r".*\.(query|key|value)"},
    "a target expression that is none": {"target_modules": "(("},
    "layers that the config does not target": {"target_modules": ["query"]},
    "layers that the config excludes": {"exclude_modules": ["value"]},
    "layers that the config does not transform": {"layers_to_transform": [0]},
    "layers outside of the config's pattern": {
        "layers_to_transform": [0, 1],
        "layers_pattern": "blocks",
    },
    "a whole module that the file lacks": {"modules_to_save": ["classifier", "LayerNorm"]},
    "an adapted module that the config saves whole": {"modules_to_save": ["classifier", "query"]},
    "a bias on lora_B that the file lacks": {"lora_bias": True},
    "KaSA without its diagonal": {"kasa_config": {"beta": 1e-4}},
    "biases of the targets that the file lacks": {"bias": "lora_only"},
    "a family of another name": {"base_model_name_or_path": "roberta-base", "auto_mapping": None},
    "a class of another family": {
        "auto_mapping": {
            "base_model_class": "RobertaModel",
            "parent_library": "transformers.models.roberta.modeling_roberta",
        }
    },
    "AdaLoRA without lora_E": {"peft_type": "ADALORA", "init_r": 12},
    "prompt tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8},
    "a peft_type that is a list": {"peft_type": ["LORA"]},
    "targets of another type": {"target_modules": {"query": 1}},
    "layers of another type": {"layers_to_transform": ["first"]},
    "no label for a class": {"id2label": {"0": "x", "1": "y"}},
    "an unknown problem": {"problem_type": "guessing"},
    "a task of generation": {"task_type": "CAUSAL_LM"},
    "a question's answer": {"task_type": "QUESTION_ANS"},
    "an unknown pooling": {"pooling": "median"},
    "a pattern that is dear to compile": {"rank_pattern": {"(a?){1000000}": 8}},
    "a target that is dear to compile": {"target_modules": "(a?){1000000}"},
    "alpha beyond any float": {"lora_alpha": 10**400},
    "a pattern's number beyond any float": {"alpha_pattern": {"query": 10**400}},
    "no room for a text": {"max_length": 1},
    "a label of half a surrogate": {"labels": ["a", "b", "\ud800"]},
    "alpha infinite": {"lora_alpha": float("inf")},
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_that_would_be_served_wrong_is_refused(
    served: httpx.Client, folders: dict[str, Path], what: str
) -> None:
    config = json.loads((folders["c"] / "adapter_config.json").read_text()) | CONFIGS[what]
    files = files_of(folders["c"])
    files["adapter_config.json"] = ("adapter_config.json", json.dumps(config).encode())
    answer = served.put("/adapters/new", files=files)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")


@pytest.mark.parametrize(
    "config", [b"{", b"[]", b"\xff\xfe", b"[" * 200_000, b"{}" + b" " * (2 << 20)]
)
def test_a_config_that_is_no_json_object_is_refused(
    served: httpx.Client, folders: dict[str, Path], config: bytes
) -> None:
    files = files_of(folders["a"])
    files["adapter_config.json"] = ("adapter_config.json", config)
    answer = served.put("/adapters/new", files=files)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")


def test_text_fields_of_a_form_are_refused_not_ignored(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    answer = served.put("/adapters/new", files=files_of(folders["a"]), data={"alpha": "99"})
    assert answer.status_code == 422
    assert "?alpha=16" in answer.json()["error"]


@pytest.mark.parametrize("kind", ["text/html", "image/png", "audio/wav"])
def test_a_media_type_no_adapter_comes_in_is_415(served: httpx.Client, kind: str) -> None:
    answer = served.put("/adapters/new", content=b"{}", headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error_type"]) == (415, "unsupported_media_type")


JSON = {"content-type": "application/json"}
BODIES: dict[str, tuple[bytes, int, str]] = {
    "not json": (b"{inputs", 400, "malformed"),
    "no body": (b"", 400, "malformed"),
    "a list": (b"[]", 422, "validation"),
    "no inputs": (b"{}", 422, "validation"),
    "an empty list": (b'{"inputs": []}', 400, "validation"),
    "an empty text": (b'{"inputs": ""}', 400, "validation"),
    "an empty text among others": (b'{"inputs": ["a", ""]}', 400, "validation"),
    "a number": (b'{"inputs": 3}', 422, "validation"),
    "null": (b'{"inputs": null}', 422, "validation"),
    "a mixed pair": (b'{"inputs": [["a", 3]]}', 422, "validation"),
    "a triple": (b'{"inputs": [["a", "b", "c"]]}', 422, "validation"),
    "half a surrogate": (b'{"inputs": "\\ud800"}', 422, "validation"),
    "an id too large": (b'{"inputs": [99999999]}', 422, "validation"),
    "an id enormous": (b'{"inputs": [1' + b"0" * 400 + b"]}", 422, "validation"),
    "a negative id": (b'{"inputs": [-1]}', 422, "validation"),
    "booleans": (b'{"inputs": [true]}', 422, "validation"),
    "an empty id list": (b'{"inputs": [[]]}', 400, "validation"),
    "unknown member": (b'{"inputs": "a", "normalise": true}', 422, "validation"),
    "wrong type": (b'{"inputs": "a", "normalize": "yes"}', 422, "validation"),
    "dimensions zero": (b'{"inputs": "a", "dimensions": 0}', 422, "validation"),
    "dimensions too many": (b'{"inputs": "a", "dimensions": 33}', 422, "validation"),
    "dimensions enormous": (b'{"inputs": "a", "dimensions": 1' + b"0" * 400 + b"}", 422, "validation"),
    "an unknown prompt": (b'{"inputs": "a", "prompt_name": "query"}', 422, "validation"),
    "deep": (b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "malformed"),
    "not utf-8": (b'{"inputs": "\xff"}', 400, "malformed"),
    "NaN": (b'{"inputs": "a", "dimensions": NaN}', 422, "validation"),
    "a prompt of half a surrogate": (b'{"inputs": "a", "prompt": "\\ud800"}', 422, "validation"),
    "an adapter of half a surrogate": (b'{"inputs": "a", "adapters": ["\\ud800"]}', 422, "validation"),
    "a member of half a surrogate": (b'{"inputs": "a", "\\ud800": 1}', 422, "validation"),
}  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
def test_a_bad_body_gets_its_error(served: httpx.Client, what: str) -> None:
    body, status, kind = BODIES[what]
    answer = served.post("/embed", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (status, kind), answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_text_of_100_000_characters_is_cut_or_refused(served: httpx.Client) -> None:
    for text in ("a" * 100_000, "good film " * 10_000, "é" * 100_000):
        cut = served.post("/embed", json={"inputs": text})
        assert cut.status_code == 200
        refused = served.post("/embed", json={"inputs": ["x", text * 2], "truncate": False})
        if text.startswith("good"):
            assert refused.json()["code"] == "validation"
            assert refused.json()["problems"][0]["field"] == "inputs[1]"


def test_json_without_its_content_type_is_415_and_says_how(served: httpx.Client) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = served.post("/embed", content=b'{"inputs": "a"}', headers=form)
    assert (answer.status_code, answer.json()["error_type"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in answer.json()["error"]


def test_caps_answer_413(serve: Any, tiny_bert: Path, folders: dict[str, Path]) -> None:
    server = serve(
        model=str(tiny_bert), max_body_bytes=2000, max_adapter_bytes=20_000, max_client_batch=4
    )
    client = server.client
    for body in (json.dumps({"inputs": "a" * 3000}), "x" * 3000):
        answer = client.post("/embed", content=body, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    many = client.post("/embed", json={"inputs": ["a"] * 5})
    assert (many.status_code, many.json()["code"]) == (413, "too_many_inputs")
    bomb = zip_of("adapter_model.safetensors", b"\0" * (10 << 20))
    assert len(bomb) < 20_000
    for upload in (bomb, b"\0" * 30_000):
        answer = client.put("/adapters/big", content=upload)
        assert (answer.status_code, answer.json()["error_type"]) == (413, "payload_too_large")

    def stream() -> Any:
        yield from [b"\0" * 10_000] * 3

    answer = client.put("/adapters/big", content=stream())
    assert answer.status_code == 413
    assert client.get("/adapters").json() == []
    assert not list((server.app.state.serving.installer.store.root / "tmp").iterdir())


def test_a_full_queue_answers_429_with_when_to_come_back(serve: Any, tiny_bert: Path) -> None:
    server = serve(model=str(tiny_bert), max_queue_tokens=400, max_batch_tokens=80)
    texts = ["good film money card " * 15] * 200
    answers: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            answers.append(client.post("/embed", json={"inputs": texts}))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [a for a in answers if a.status_code == 429]
    assert refused
    assert {a.status_code for a in answers} == {200, 429}
    for answer in refused:
        assert answer.json()["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1


def test_a_full_disk_answers_507_and_leaves_nothing(
    serve: Any, tiny_bert: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(model=str(tiny_bert))
    put(server.client, "a", folders["a"])
    before = state(server.client)

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    answer = server.client.put("/adapters/b", files=files_of(folders["b"]))
    assert (answer.status_code, answer.json()["error_type"]) == (507, "store_full")
    monkeypatch.undo()
    assert state(server.client) == before
    assert not list((server.app.state.serving.installer.store.root / "tmp").iterdir())


def test_a_file_for_another_architecture_of_the_same_width_is_refused(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    files = files_of(folders["a"])
    files["config.json"] = ("config.json", b'{"model_type": "roberta"}')
    answer = served.put("/adapters/new", files=files)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")
    assert "roberta" in answer.json()["error"]


def test_a_file_that_lost_some_layers_is_refused_by_their_names(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    files = files_of(folders["a"])
    tensors = load(files["adapter_model.safetensors"][1])
    kept = {n: t for n, t in tensors.items() if "layer.1.attention.self.query" not in n}
    files["adapter_model.safetensors"] = ("adapter_model.safetensors", save(kept))
    answer = served.put("/adapters/new", files=files)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")
    lost = [p["tensor"] for p in answer.json()["problems"]]
    assert lost == ["encoder.layer.1.attention.self.query"]


def test_a_damaged_or_shortened_packing_is_refused(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    whole = httpx.Request("PUT", "http://x", files=files_of(folders["c"]))
    form, kind = whole.read(), {"content-type": whole.headers["content-type"]}
    plain, gzipped = tar_of(folders["c"], "w"), bytearray(tar_of(folders["c"], "w:gz"))
    assert served.put("/adapters/new?dry_run=true", content=plain).status_code == 200
    assert served.put("/adapters/new?dry_run=true", content=bytes(gzipped)).status_code == 200
    gzipped[-6] ^= 1  # in the checksum
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        cut = archive.getmembers()[-1].offset
    bad: list[tuple[bytes, dict[str, str]]] = [
        (form[:-20], kind),
        (bytes(gzipped), {}),
        (bytes(gzipped)[:-100], {}),
        (plain[:cut], {}),
        (plain[: cut + 100], {}),
    ]
    for body, headers in bad:
        answer = served.put("/adapters/new?dry_run=true", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")


def tar_of(folder: Path, mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
            archive.add(folder / name, arcname=name)
    return out.getvalue()


Q = "encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("a", {Q: torch.ones(8, 32)}),
        ("c", {"classifier.weight": torch.ones(3, 32)}),
        ("a", {"pooler.dense.weight": torch.ones(32, 32)}),
        (
            "a",
            {
                f"{p}pooler.dense.{n}": t
                for p in ("", "bert.")
                for n, t in {"weight": torch.ones(32, 32), "bias": torch.ones(32)}.items()
            },
        ),
        (
            "c",
            {"base_model.model.classifier.weight": torch.full((3, 32), 1e300, dtype=torch.double)},
        ),
        ("c", {"base_model.model.classifier.weight": torch.full((3, 32), 3e38)}),
    ],
)
def test_tensors_that_collide_lack_a_bias_or_overflow_are_refused(
    served: httpx.Client, folders: dict[str, Path], file: str, more: dict[str, torch.Tensor]
) -> None:
    files = files_of(folders[file])
    tensors = load(files["adapter_model.safetensors"][1])
    files["adapter_model.safetensors"] = ("adapter_model.safetensors", save({**tensors, **more}))
    answer = served.put("/adapters/new", files=files)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected"), more


def test_files_left_aside_are_named_in_the_warnings(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    files = files_of(folders["a"]) | {"optimizer.pt": ("optimizer.pt", b"x")}
    for query in ("?dry_run=true", ""):
        answer = served.put(f"/adapters/new{query}", files=files).json()
        assert any("optimizer.pt" in w for w in answer["warnings"]), query


def test_what_the_query_says_of_a_head_must_fit_the_file(
    served: httpx.Client, folders: dict[str, Path]
) -> None:
    for name, query in (("a", "labels=x,y"), ("c", "task=embed"), ("a", "task=classify")):
        answer = served.put(f"/adapters/new?{query}", files=files_of(folders[name]))
        assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")


def test_an_upload_that_the_client_leaves_is_no_servers_error(tiny_server: LiveServer) -> None:
    host, port = tiny_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"PUT /adapters/new HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
        )
        time.sleep(0.2)
    time.sleep(0.3)
    metrics = tiny_server.client.get("/metrics").text
    assert 'status="500"' not in metrics
    assert 'route="/adapters/{name}",status="499"' in metrics
