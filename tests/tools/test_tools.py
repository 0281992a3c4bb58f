"""bert-lora check, certify and extract, as typed in a shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from bert_lora.cli import cli
from tests.adapters.made import tutorial_file
from tests.conftest import Serve
from tests.kinds import make_kind, peft_answers
from tests.oracles import FP32, encode, files_of, put

TEXTS = ["my card is lost", "good film, my love", "where is the money"]


def run(*arguments: object) -> tuple[int, str]:
    """(exit code, everything printed)."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    return done.exit_code, done.output


def test_check_gives_the_report_of_an_upload(serve: Serve, tiny_bert: Path, tmp_path: Path) -> None:
    folder = make_kind("dora", "bert", tiny_bert, tmp_path / "a")
    code, printed = run("check", folder, "--model", tiny_bert, "--json")
    assert code == 0
    uploaded = put(serve(model=str(tiny_bert)).client, "a", folder)
    mine = json.loads(printed)
    for name in set(mine) - {"delta", "name"}:
        assert mine[name] == uploaded[name], name
    assert mine["delta"]["relative"] == pytest.approx(uploaded["delta"]["relative"])
    code, printed = run("check", folder, "--model", tiny_bert)
    assert code == 0
    assert "would be served on tiny-bert (32-wide, 2-layer bert)" in printed
    assert "attention.self.query   |" in printed


def test_check_names_every_problem_and_says_the_wrong_base_in_words(
    minilm: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a")
    code, printed = run("check", folder, "--model", minilm)
    assert code == 1
    assert "made for tiny/bert (32-wide, 2-layer); this base is 384-wide, 6-layer bert" in printed
    assert printed.count("lora_A.weight") >= 4
    code, printed = run("check", folder, "--model", minilm, "--json")
    assert json.loads(printed)["error_type"] == "adapter_rejected"


def test_check_reads_a_bare_file_with_what_the_flags_say(tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "tutorial.safetensors"
    path.write_bytes(tutorial_file())
    code, printed = run("check", path, "--model", tiny_bert, "--alpha", 8)
    assert (code, "(tutorial), rank 4, scale 2" in printed) == (0, True)
    assert run("check", path, "--model", tiny_bert)[0] == 1
    assert path.exists()


def test_a_certificate_of_pefts_answers_is_checked_at_upload_and_at_start(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    folders = {
        name: make_kind(kind, "bert", tiny_bert, tmp_path / name, seed=i, task=task)
        for i, (name, kind, task) in enumerate(
            [("old", "plain", None), ("new", "dora", None), ("head", "bias all", "SEQ_CLS"),
             ("words", "plain", "TOKEN_CLS")]
        )
    }  # fmt: skip
    for folder in folders.values():
        code, printed = run("certify", folder, "--model", tiny_bert)
        assert code == 0, printed
        assert len((folder / "golden.jsonl").read_text().splitlines()) == 5
    server = serve(model=str(tiny_bert))
    for name in ("old", "new"):
        report = put(server.client, "a", folders[name])
        assert report["certified"] == 5
    for name in ("head", "words"):
        assert put(server.client, name, folders[name])["certified"] == 5
    lines = (folders["new"] / "golden.jsonl").read_text().splitlines()
    wrong = json.loads(lines[2])
    wrong["embedding"][0] += 0.01
    (folders["new"] / "golden.jsonl").write_text("\n".join([*lines[:2], json.dumps(wrong)]))
    answer = server.client.put("/adapters/a", files=files_of(folders["new"]))
    assert answer.status_code == 422
    assert "1 of 3 answers of its certificate do not hold" in answer.json()["error"]
    assert answer.json()["problems"][0]["tensor"] == "line 3"
    versions = [v["version"] for v in server.client.get("/adapters/a/versions").json()]
    assert server.client.get("/adapters/a").json()["version"] == versions[1]


def test_a_name_whose_version_no_longer_holds_is_not_served_until_it_is_rolled_back(
    serve: Serve, tiny_bert: Path, tmp_path: Path
) -> None:
    """The base is exchanged under the store: certified versions fall, uncertified ones load."""
    plain = make_kind("plain", "bert", tiny_bert, tmp_path / "plain")
    dora = make_kind("dora", "bert", tiny_bert, tmp_path / "dora")
    assert run("certify", dora, "--model", tiny_bert)[0] == 0
    first = serve(model=str(tiny_bert))
    old = put(first.client, "a", plain)["version"]
    new = put(first.client, "a", dora)["version"]
    put(first.client, "only", dora)
    first.stop()
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_bert.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    second = serve(model=str(other))
    broken = second.client.get("/readyz").json()["broken"]
    for name in ("a", "only"):
        assert "certificate do not hold" in broken[name]
        answer = second.client.get(f"/adapters/{name}")
        assert answer.status_code == 404
        assert "certificate do not hold" in answer.json()["error"]
    shown = second.client.get("/adapters/a/versions").json()
    assert [v["current"] for v in shown] == [False, True]
    held = {"If-Match": f'"{new}"'}
    back = second.client.post("/adapters/a/rollback", json={"version": old}, headers=held)
    assert (back.status_code, back.json()["version"]) == (200, old)
    assert second.client.get("/readyz").json()["broken"].keys() == {"only"}
    second.stop()
    third = serve(model=str(tiny_bert))
    assert third.client.get("/adapters/a").json()["version"] == old
    assert third.client.get("/adapters/only").json()["version"] == new


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'{"input": "a"}', b'{"input": 3, "embedding": [1]}', b"\xff\xfe", b"",
     b'{"input": "a", "embedding": "x"}', b'{"input": "a", "embedding": [NaN]}',
     b'{"input": ["a"], "embedding": [1.0]}', b'{"input": "a", "logits": [1.0, 2.0]}',
     b'{"input": "a", "embedding": [1.0], "tolerance": 5}', b'{"input": "a", "embedding": [[[1]]]}',
     b'{"input": "a", "embedding": [1.0]}', b"[" * 100_000, b'{"input": "\\ud800", "embedding": [1.0]}',
     b'{"input": "a", "embedding": [1' + b"0" * 400 + b"]}", b'{"input": ["a", "b", "c"], "embedding": [1.0]}',
     b'{"input": "a", "embedding": [1.0], "tolerance": ' + b"9" * 400 + b"}",
     b'{"input": "a", "embedding": [1.0], "tolerance": null}', b'{"input": "a", "embedding": [1.0]}\n' * 65,
     b'{"input": "' + b"a " * 60_000 + b'", "embedding": [1.0]}'],
)  # fmt: skip
def test_a_certificate_that_is_none_refuses_the_upload(
    serve: Serve, tiny_bert: Path, tmp_path: Path, line: bytes
) -> None:
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a")
    (folder / "golden.jsonl").write_bytes(line)
    client = serve(model=str(tiny_bert)).client
    answer = client.put("/adapters/a", files=files_of(folder))
    assert (answer.status_code, answer.json()["error_type"]) == (422, "adapter_rejected")


@pytest.fixture(scope="module")
def finetuned(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of which every weight has moved, as after full fine-tuning."""
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    model.config.id2label = {0: "bad", 1: "so", 2: "good"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("finetuned")
    model.save_pretrained(folder)
    return folder


def test_extract_at_full_rank_is_the_checkpoint_and_at_low_rank_says_what_is_left(
    serve: Serve, tiny_bert: Path, finetuned: Path, tmp_path: Path
) -> None:
    client = serve(model=str(tiny_bert)).client
    model = AutoModelForSequenceClassification.from_pretrained(finetuned).eval()
    with torch.inference_mode():
        wanted = torch.stack([model(**encode(tiny_bert, t, 80)).logits[0] for t in TEXTS])
    off = {}
    for rank in (2, 64):
        out = tmp_path / f"rank{rank}"
        code, printed = run("extract", finetuned, out, "--rank", rank, "--model", tiny_bert)
        assert code == 0, printed
        assert "encoder.layer.0.attention.self.query" in printed
        report = put(client, "x", out)
        assert (report["labels"], report["task"]) == (["bad", "so", "good"], "classify")
        body = {"inputs": TEXTS, "raw_scores": True}
        found = client.post("/classify?adapter=x", json=body).json()
        got = torch.tensor(
            [[{e["label"]: e["score"] for e in a}[n] for n in report["labels"]] for a in found]
        )
        peft = peft_answers(
            tiny_bert, out, [encode(tiny_bert, t, 80) for t in TEXTS], task="SEQ_CLS"
        )
        assert_close(got, torch.stack(peft), **FP32)
        off[rank] = float((got - wanted).abs().max())
    assert off[64] < 2e-5 < off[2]


def test_extract_refuses_what_is_no_checkpoint_of_this_base(
    minilm: Path, tiny_bert: Path, finetuned: Path, tmp_path: Path
) -> None:
    code, printed = run("extract", finetuned, tmp_path / "o", "--model", minilm)
    assert (code, "no checkpoint of this base" in printed) == (1, True)
    code, printed = run("extract", finetuned, finetuned, "--model", tiny_bert)
    assert (code, "not empty" in printed) == (1, True)
    code, printed = run("extract", tiny_bert, tmp_path / "o", "--model", tiny_bert)
    assert (code, "differs" in printed) == (1, True)
    assert not (tmp_path / "o").exists()


def test_what_a_tool_cannot_do_is_one_line_and_exit_code_1(
    tiny_bert: Path, finetuned: Path, tmp_path: Path
) -> None:
    folder = make_kind("plain", "bert", tiny_bert, tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "adapter_model.bin").write_bytes(b"x")
    (tmp_path / "blank").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    model = ("--model", tiny_bert)
    for arguments, word in [
        (("check", tmp_path / "nowhere", *model), "does not exist"),
        (("check", tmp_path / "empty", *model), "holds no files"),
        (("check", tmp_path / "pickle", *model), "is a pickle"),
        (("check", folder, "--model", "./nowhere"), "does not exist"),
        (("certify", folder, "--inputs", tmp_path / "nowhere", *model), "No such file"),
        (("certify", folder, "--inputs", tmp_path / "blank", *model), "0 inputs"),
        (("certify", folder, "--inputs", tmp_path / "binary", *model), "utf-8"),
        (("certify", tmp_path / "empty", *model), "no adapter_config.json"),
        (("extract", tmp_path / "broken", tmp_path / "o", *model), "is not JSON"),
        (("extract", tmp_path / "empty", tmp_path / "o", *model), "no config.json"),
    ]:
        code, printed = run(*arguments)
        assert (code, word in printed) == (1, True), (arguments, printed)
    assert run("check", folder, "--task", "foo", *model)[0] == 2
