"""embed, classify and rerank of files: each format gives what the client gives, and a run that was
cut off ends in the same bytes as one that was not.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import Run
from tests.client.conftest import Served
from tests.client.test_pacing import INFO, Peer
from tests.oracles import sentences

TEXTS = ['he said "no"', "one, two", "two\nlines", "\tö 漢字 🙂", *sentences(40)]
BAD_ROW = (422, {}, b'{"error": "inputs[1] is odd", "error_type": "validation"}')
LINES = [text.replace("\n", " ") for text in TEXTS]


def written(folder: Path, ending: str, texts: list[str]) -> Path:
    """A file of that format."""
    path = folder / f"texts{ending}"
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    if ending in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, ["id", "text"], delimiter="\t" if ending == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    elif ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join(texts))  # without a line's end after the last one
    return path


@pytest.mark.parametrize("ending", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_each_format_is_read(run: Run, served: Served, tmp_path: Path, ending: str) -> None:
    texts = LINES if ending == ".txt" else TEXTS
    done = run("embed", written(tmp_path, ending, texts), "-o", tmp_path / "out.npy")
    assert done.code == 0, done.err
    assert np.array_equal(np.load(tmp_path / "out.npy"), served.client.embed(texts))


@pytest.mark.parametrize("ending", [".npy", ".jsonl", ".parquet"])
def test_each_format_is_written(run: Run, served: Served, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"out{ending}"
    done = run("embed", written(tmp_path, ".csv", TEXTS), "-o", out, "--adapter", "tuned")
    assert done.code == 0, done.err
    assert list(tmp_path.glob("out*")) == [out]
    if ending == ".npy":
        vectors = np.load(out)
    else:
        rows = pq.read_table(out).to_pylist() if ending == ".parquet" else _objects(out)
        assert [row["text"] for row in rows] == TEXTS
        vectors = np.array([row["embedding"] for row in rows], np.float32)
    assert np.array_equal(vectors, served.client.embed(TEXTS, adapter="tuned"))


def _objects(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_stdin_gives_lines_on_stdout(run: Run, served: Served) -> None:
    done = run("embed", "--dimensions", 4, "--no-normalize", stdin="good film\r\nbad film\n")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["text"] for row in rows] == ["good film", "bad film"]
    wanted = served.client.embed(["good film", "bad film"], dimensions=4, normalize=False)
    assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), wanted)
    done = run("embed", "--format", "jsonl", stdin='"good film"\n{"text": "bad film"}\n')
    assert len(done.out.splitlines()) == 2


def test_labels_are_a_row_for_each_text(run: Run, served: Served, tmp_path: Path) -> None:
    wanted = served.client.classify(LINES, adapter="labels")
    scores = sorted(each["score"] for labels in wanted for each in labels)
    options = ("--adapter", "labels", "--threshold", (scores[-6] + scores[-5]) / 2)
    for ending in (".jsonl", ".parquet"):
        out = tmp_path / f"out{ending}"
        done = run("classify", written(tmp_path, ".txt", LINES), "-o", out, *options)
        assert done.code == 0, done.err
        rows = pq.read_table(out).to_pylist() if ending == ".parquet" else _objects(out)
        assert [row["text"] for row in rows] == LINES
        assert sum(len(row["labels"]) for row in rows) == 5
        for row, labels in zip(rows, wanted, strict=True):
            assert {each["label"] for each in row["labels"]} <= {each["label"] for each in labels}


def test_a_ranking_is_best_first_and_cut_to_top_n(run: Run, served: Served, tmp_path: Path) -> None:
    wanted = served.client.rerank("my card", LINES, adapter="rank")
    out = tmp_path / "out.jsonl"
    options = ("--query", "my card", "--adapter", "rank")
    assert run("rerank", written(tmp_path, ".txt", LINES), "-o", out, *options).code == 0
    rows = _objects(out)
    assert [row["index"] for row in rows] == [place["index"] for place in wanted]
    assert [LINES[row["index"]] for row in rows] == [row["text"] for row in rows]
    done = run("rerank", "--top-n", 2, *options, stdin="\n".join(LINES))
    assert [json.loads(line)["index"] for line in done.out.splitlines()] == [
        place["index"] for place in wanted[:2]
    ]


def test_without_a_server_the_answers_are_the_same(
    run: Run, served: Served, tiny_bert: Path, tmp_path: Path
) -> None:
    out, here = tmp_path / "out.npy", ("--local", "--model", tiny_bert)
    folder = served.folders["tuned"]
    done = run("embed", written(tmp_path, ".txt", LINES), "-o", out, "--adapter", folder, *here)
    assert done.code == 0, done.err
    assert np.array_equal(np.load(out), served.client.embed(LINES, adapter="tuned"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "good\n\nfilm\n", "a.txt, line 2 is empty"),
        ("a.txt", b"good\nf\xfflm\n", "a.txt, line 2 is not UTF-8"),
        ("a.txt", "", "a.txt holds no text"),
        ("a.csv", 'text,n\n"good\nfilm",1\n,2\n', "a.csv, row 2 is empty"),
        ("a.csv", 'text,n\ngood,1\n"film,2\n', "a.csv, line 3: unexpected end of data"),
        ("a.csv", "n,text\n1\n", "a.csv, row 1 is empty"),
        ("a.jsonl", '{"text": "good"}\n{"text": 3}\n', "a.jsonl, line 2 is no text: 3"),
        ("a.jsonl", '{"text": "good"}\n{"text": \n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", '{"txt": "good"}\n', "a.jsonl, line 1 has no member 'text', but txt"),
    ],
)
def test_a_row_that_is_none_is_named(
    run: Run, tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    done = run("embed", path, "-o", tmp_path / "out.npy")
    assert done.code == 1
    assert said in done.err
    assert not (tmp_path / "out.npy").exists()


def test_what_the_server_refuses_ends_with_1_and_its_words(run: Run) -> None:
    done = run("classify", "--adapter", "tuned", stdin="good\n")
    assert (done.code, "no classification head" in done.err) == (1, True)
    with Peer(INFO, BAD_ROW) as peer:
        done = run("classify", "--url", peer.url, stdin="good\nbad\nfilm\n")
    assert done.code == 1
    assert "stdin, line 2: inputs[1] is odd" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("embed", "{csv}", "--column", "txt"), "it has id, text"),
        (("embed", "{csv}", "-o", "out.txt"), "the ending says the format"),
        (("classify", "{csv}", "-o", "out.npy"), ".npy holds vectors"),
        (("embed", "{csv}", "--resume"), "--resume needs an output file"),
        (("embed", "{csv}", "--model", "x"), "--model is for --local"),
        (("embed", "-", "--format", "parquet"), "not from stdin"),
        (("embed", "-", "--column", "x"), "--column is for"),
        (("rerank", "{csv}"), "--query"),
        (("embed", "{csv}", "--pooling", "sum"), "--pooling"),
    ],
)
def test_a_wrong_use_ends_with_2(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    path = written(tmp_path, ".csv", TEXTS)
    done = run(*(a.format(csv=path) for a in arguments))
    assert done.code == 2
    assert said in done.err


def test_where_no_server_answers_the_code_is_3(run: Run) -> None:
    done = run("embed", "--url", "http://127.0.0.1:9", stdin="good\n")
    assert (done.code, "127.0.0.1:9" in done.err) == (3, True)


def test_parquet_without_pyarrow_names_the_extra(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    done = run("embed", "-o", tmp_path / "out.parquet", stdin="good\n")
    assert (done.code, "bert-lora-server[parquet]" in done.err) == (2, True)


@pytest.mark.parametrize("ending", [".npy", ".jsonl", ".parquet"])
def test_a_run_that_is_taken_up_again_ends_in_the_same_bytes(
    run: Run, tmp_path: Path, ending: str
) -> None:
    texts = [f"{text[:30]} {i}" for i, text in enumerate(sentences(200))]
    source, out, whole = (tmp_path / name for name in ("a.txt", f"out{ending}", f"whole{ending}"))
    source.write_text("\n".join([*texts[:120], "", *texts[120:]]))
    out.write_bytes(b"an older one")
    assert run("embed", source, "-o", out).code == 1
    assert out.read_bytes() == b"an older one"
    source.write_text("\n".join(texts))
    done = run("embed", source, "-o", out, "--resume")
    assert done.code == 0, done.err
    before = int(done.err.split(" from before")[0].split(", ")[-1])
    assert 0 < before <= 120
    assert run("embed", source, "-o", whole).code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part*"))
    done = run("embed", source, "-o", out, "--resume")
    assert (done.code, "is there already" in done.err) == (0, True)


def test_a_run_that_is_killed_goes_on_where_it_was(served: Served, tmp_path: Path) -> None:
    texts = [f"{text[:40]} {i}" for i, text in enumerate(sentences(9000))]
    source, out = tmp_path / "a.txt", tmp_path / "out.npy"
    source.write_text("\n".join(texts))
    command = [sys.executable, "-m", "bert_lora", "embed", str(source), "-o", str(out), "--resume"]
    env = {**os.environ, "BERT_LORA_URL": served.live.url}
    child = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
    note = tmp_path / "out.npy.part.json"
    while not note.exists():
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.communicate()
    assert not out.exists()
    assert 0 < json.loads(note.read_bytes())["rows"] < 9000
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "from before" in done.stderr
    vectors = np.load(out)
    assert vectors.shape == (9000, 32)
    assert np.array_equal(vectors, served.client.embed(texts))


def test_what_is_resumed_must_be_the_same_run(run: Run, served: Served, tmp_path: Path) -> None:
    source, out = tmp_path / "a.txt", tmp_path / "out.npy"
    served.client.put("moved", served.folders["tuned"])
    source.write_text("\n".join([*LINES, "", "good"]))
    asked = ("embed", source, "-o", out, "--adapter", "moved")
    assert run(*asked).code == 1
    source.write_text("\n".join([*LINES, "good"]))
    other = run(*asked, "--resume", "--pooling", "cls")
    assert (other.code, "other options" in other.err) == (1, True)
    served.client.put("moved", served.folders["other"])
    moved = run(*asked, "--resume")
    assert (moved.code, "changed during the call" in moved.err) == (1, True)
    served.client.rollback("moved")
    source.write_text("\n".join(["another", *LINES[1:], "good"]))
    others = run(*asked, "--resume")
    assert (others.code, "are not those" in others.err) == (1, True)
    source.write_text("\n".join([*LINES, "good"]))
    assert run(*asked, "--resume").code == 0
    assert len(np.load(out)) == len(LINES) + 1
    served.client.delete("moved")


def test_the_bar_is_on_stderr_and_knows_how_many_there_are(run: Run, tmp_path: Path) -> None:
    for ending in (".txt", ".csv", ".parquet"):
        source = written(tmp_path, ending, LINES)
        done = run("embed", source, "-o", tmp_path / "out.npy", "--progress")
        assert f"/{len(LINES)}" in done.err.replace(".0", "")
        assert done.out == ""
