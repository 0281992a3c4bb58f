"""python -m benchmarks.load, as typed in a shell: against this server, and against stubs that
misbehave.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.load import sending
from benchmarks.load.__main__ import cli
from benchmarks.load.arrivals import Load, arrivals, made_texts
from benchmarks.load.percentiles import report, table
from benchmarks.load.sending import Outcome, Run, retry_after_s
from tests.conftest import Serve
from tests.kinds import make_kind
from tests.live import LiveServer
from tests.oracles import put
from tests.stub import Answer, Stub

RATE, SECONDS = 100, 0.3
SHORT = ("--rate", RATE, "--seconds", SECONDS)
TEXTS = ["my card is lost", "good film, my love", "where is the money"]
OK = "200 OK", ""
BUSY = "429 Too Many Requests", "retry-after-ms: 1\r\n"


Stubbed = Callable[..., Stub]


@pytest.fixture
def stub() -> Iterator[Stubbed]:
    """stub(answer, hold_until): no request is answered before so many have come."""
    running: list[Stub] = []

    def start(answer: Callable[[Stub, bytes], Answer], hold_until: int = 0) -> Stub:
        running.append(Stub(answer, hold_until))
        return running[-1]

    yield start
    for each in running:
        each.stop()


def run(*arguments: object) -> tuple[int, str]:
    """(exit code, everything printed)."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    return done.exit_code, done.output


def measured(*arguments: object) -> tuple[int, Any]:
    """(exit code, the JSON). Also says that nothing but JSON is printed without a terminal."""
    code, printed = run(*arguments, "--json")
    return code, json.loads(printed)


def expected(**more: Any) -> int:
    """How many arrivals SHORT makes."""
    return len(arrivals(Load("http://a", "ours", RATE, SECONDS, ["a"], **more)))


@pytest.fixture(scope="module")
def server(
    tiny_server: LiveServer, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> LiveServer:
    """The tiny BERT with two adapters that have heads."""
    folder = tmp_path_factory.mktemp("adapters")
    for i, name in enumerate(("one", "two")):
        made = make_kind("plain", "bert", tiny_bert, folder / name, seed=i, task="SEQ_CLS")
        put(tiny_server.client, name, made)
    return tiny_server


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n\n")
    return path


@pytest.mark.parametrize(
    "asked",
    [
        ("--adapter", "one", "--adapter", "two", "--adapter", "base"),
        ("--api", "tei"),
        ("--api", "openai", "--adapter", "one", "--adapter", "base"),
        ("--api", "classify", "--adapter", "two", "--inputs", 3),
    ],
)
def test_each_api_is_answered_and_every_arrival_is_accounted_for(
    server: LiveServer, asked: tuple[object, ...], texts: Path
) -> None:
    code, found = measured(server.url, *SHORT, "--texts", texts, *asked)
    assert code == 0
    assert found["answers"] == {"200": expected()}
    assert found["arrivals"] == found["succeeded"] == expected()
    assert list(found["server_timing_ms"]) == ["tokenize", "queue", "inference"]
    names = {asked[i + 1] for i, word in enumerate(asked) if word == "--adapter"}
    assert set(found["adapters"]) == (names if len(names) > 1 else set())
    assert found["texts_per_s"] == pytest.approx(
        found["requests_per_s"] * found["inputs"],
        abs=0.01,  # each is rounded
    )
    assert {"cpu", "cores", "python", "aiohttp"} <= set(found["machine"])


def test_the_requests_reach_the_adapters_they_name(serve: Serve, tiny_bert: Path) -> None:
    """A server without adapters knows none: half the requests are 404, the base's are not."""
    server = serve(model=str(tiny_bert))
    code, found = measured(server.url, *SHORT, "--adapter", "nobody", "--adapter", "base")
    assert code == 0
    assert set(found["answers"]) == {"200", "404"}
    assert sum(found["answers"].values()) == expected()
    assert found["succeeded"] == found["answers"]["200"]
    assert "adapter_not_found" in found["said"]["404"]
    code, printed = run(server.url, *SHORT, "--adapter", "nobody")
    assert code == 1
    assert "the first 404: {" in printed


def test_a_server_that_answers_nothing_does_not_hold_back_the_arrivals(stub: Stubbed) -> None:
    """The last request is sent while none before it has an answer: no closed loop could."""
    count = expected()
    slow = stub(lambda *_: OK, hold_until=count)
    code, found = measured(slow.url, *SHORT, "--timeout", 5)
    assert (code, found["answers"]) == (0, {"200": count})
    assert len(slow.bodies) == count


def test_what_is_never_answered_is_a_timeout_and_what_is_too_much_is_not_sent(
    stub: Stubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MOST_OPEN", 5)
    silent = stub(lambda *_: OK, hold_until=10**9)
    code, found = measured(silent.url, *SHORT, "--timeout", 0.7)
    assert code == 1
    assert found["answers"] == {"timeout": 5, "not sent": expected() - 5}
    assert found["latency_ms"] == {}


def test_a_429_is_sent_again_only_when_asked_to_and_what_became_of_it_is_counted(
    stub: Stubbed,
) -> None:
    def busy_at_first(server: Stub, body: bytes) -> Answer:
        return OK if body in server.bodies else BUSY

    count = expected()
    picky = stub(busy_at_first)
    code, found = measured(picky.url, *SHORT)
    refused = len(set(picky.bodies))
    assert found["retries"] is None
    assert found["answers"].get("429") == refused > 0
    picky = stub(busy_at_first)
    code, found = measured(picky.url, *SHORT, "--retry")
    assert (code, found["answers"]) == (0, {"200": count})
    assert found["retries"] == {"retried": refused, "succeeded": refused, "share": 1}
    assert len(picky.bodies) == count + refused
    always = stub(lambda *_: BUSY)
    code, found = measured(always.url, *SHORT, "--retry")
    assert (code, found["answers"]) == (1, {"429": count})
    assert found["retries"] == {"retried": count, "succeeded": 0, "share": 0}


def test_headers_and_bodies_go_out_as_asked(stub: Stubbed, texts: Path) -> None:
    seen = stub(lambda *_: OK)
    openai = ("--api", "openai", "--model", "some/base", "--inputs", 2, "--texts", texts)
    assert run(seen.url, *SHORT, *openai, "--header", "X-Client: me", "--header", "B:2")[0] == 0
    assert all("\r\nx-client: me\r\n" in head and "\r\nb: 2\r\n" in head for head in seen.heads)
    for body in map(json.loads, seen.bodies):
        assert body["model"] == "some/base"
        assert len(body["input"]) == 2
        assert set(body["input"]) <= set(TEXTS)


def test_the_warm_up_is_sent_and_not_counted(stub: Stubbed) -> None:
    seen = stub(lambda *_: OK)
    _, found = measured(seen.url, *SHORT, "--warmup", 0.3)
    assert len(seen.bodies) == expected(warmup_s=0.3)
    assert 0 < found["arrivals"] < len(seen.bodies)
    assert found["answers"] == {"200": found["arrivals"]}


def outcomes(*made: Outcome, **load: Any) -> Any:
    """The report of a made-up run."""
    asked = {"rate": 1, "seconds": 10, "texts": ["a"], "warmup_s": 5, **load}
    a_run = Run(Load("http://a", "ours", **asked), None, 0, 1)  # type: ignore[arg-type]
    a_run.outcomes.extend(made)
    return report(a_run)


def test_latency_counts_from_when_a_request_was_due_and_lag_until_it_left() -> None:
    found = outcomes(
        Outcome(1.0, 1.0, 1.5, "base", "200"),  # in the warm-up
        Outcome(4.0, 4.0, 6.0, "base", "200"),  # due in the warm-up, answered after
        Outcome(6.0, 6.25, 7.0, "base", "200", "tokenize;dur=1.50, queue;dur=2"),
        Outcome(7.0, 7.0, 7.001, "base", "500"),
        Outcome(14.0, 14.0, 18.0, "base", "200"),  # answered after the load's end
        inputs=3,
    )
    assert found["answers"] == {"200": 2, "500": 1}
    assert (found["latency_ms"]["p50"], found["latency_ms"]["max"]) == (2500, 4000)
    assert (found["generator_lag_ms"]["p50"], found["generator_lag_ms"]["max"]) == (0, 250)
    assert found["server_timing_ms"]["tokenize"]["p99"] == 1.5
    assert found["server_timing_ms"]["queue"]["p50"] == 2
    assert (found["requests_per_s"], found["texts_per_s"]) == (0.2, 0.6)


def test_the_table_says_when_the_generator_fell_behind() -> None:
    late = table(outcomes(Outcome(6.0, 6.5, 7.0, "base", "200")))
    assert "is the generator's own lag" in late
    assert ["generator", "lag", *["500.00"] * 5] in [line.split() for line in late.splitlines()]
    on_time = table(outcomes(Outcome(6.0, 6.001, 7.0, "base", "200")))
    assert "is the generator's own lag" not in on_time


def test_arrivals_are_the_seeds_and_as_many_as_the_rate_says() -> None:
    load = Load("http://a", "ours", 100, 100, ["a", "b"], ["x", "y"])
    due = [a.due_s for a in arrivals(load)]
    assert arrivals(load) == arrivals(load)
    assert due != [a.due_s for a in arrivals(Load("http://a", "ours", 100, 100, ["a"], seed=1))]
    assert due == sorted(due)
    assert abs(len(due) - 10_000) < 500  # five standard deviations
    gaps = [b - a for a, b in pairwise(due)]
    assert 0.33 < sum(g > 0.01 for g in gaps) / len(gaps) < 0.41  # exponential: 1/e of them
    assert {a.adapter for a in arrivals(load)} == {"x", "y"}


def test_the_built_in_texts_are_8_to_63_tokens_of_the_embedded_base(minilm: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    lengths = [len(e.ids) for e in tokenizer.encode_batch(made_texts(0), add_special_tokens=False)]
    assert (min(lengths), max(lengths)) == (8, 63)
    assert made_texts(0) == made_texts(0) != made_texts(1)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1),
        ({}, 1),
    ],
)
def test_a_retry_waits_as_long_as_the_answer_says(headers: Any, seconds: float) -> None:
    assert retry_after_s(headers) == seconds


def test_a_server_that_is_not_there_is_one_line_and_exit_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, printed = run(f"http://127.0.0.1:{port}", *SHORT)
    assert code == 1
    assert printed.startswith(f"benchmarks.load: cannot reach http://127.0.0.1:{port}: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("localhost:8080",), "is no address"),
        (("http://a:b",), "is no address"),
        (("http://a", "--api", "tei", "--adapter", "one"), "has no adapters"),
        (("http://a", "--header", "nothing"), "is not 'Name: value'"),
        (("http://a", "--texts", "/dev/null"), "no text"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(asked: tuple[str, ...], said: str) -> None:
    code, printed = run(*asked)
    assert (code, said in printed) == (2, True), printed


def test_the_command_starts_without_torch() -> None:
    """Seconds of import, on cores that the measured server may need."""
    script = "import sys, bert_lora.cli; assert 'aiohttp' not in sys.modules; import benchmarks.load.percentiles"
    script += "; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
