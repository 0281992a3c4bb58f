"""Bodies of every shape: refused or answered at a bounded cost, in time, in memory and in words."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api import json_text
from app.api.body import most_of
from app.api.json_text import Most, TooMany, parse_json
from tests.api.floods import FLOODS, MAX
from tests.live import LiveServer
from tests.process import Process, start

MANY = Most(10_000, 10_000, 10_000)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def alone(tiny_bert: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server in a process of its own, whose memory is its own."""
    process = start(tmp_path_factory.mktemp("bodies"), model=str(tiny_bert))
    yield process
    process.end()


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_is_answered_and_others_are_too(alone: Process, what: str) -> None:
    path, body = FLOODS[what]
    stop, begun = threading.Event(), threading.Event()
    refused = 0

    def beat() -> None:
        nonlocal refused
        with httpx.Client(base_url=alone.url) as client:
            while not stop.is_set():
                refused += client.get("/livez").status_code != 200
                begun.set()

    neighbour = threading.Thread(target=beat)
    neighbour.start()
    assert begun.wait(10)
    answer = alone.client.post(path, content=body, headers=JSON, timeout=30)
    stop.set()
    neighbour.join()
    assert answer.status_code in (200, 400, 404, 413, 422, 424), answer.text[:300]
    assert answer.status_code == 200 or len(answer.content) <= 64 << 10
    assert not refused


@pytest.mark.slow
def test_floods_leave_no_memory_behind(alone: Process) -> None:
    def resident() -> int:
        metrics = alone.client.get("/metrics").text
        line = next(x for x in metrics.splitlines() if x.startswith("process_resident"))
        return int(float(line.split()[1]))

    for path, body in FLOODS.values():
        alone.client.post(path, content=body, headers=JSON, timeout=30)
    before = resident()
    for path, body in FLOODS.values():
        alone.client.post(path, content=body, headers=JSON, timeout=30)
    assert resident() - before < 2 * MAX


def test_at_most_20_problems_are_told_and_how_many_there_are(tiny_server: LiveServer) -> None:
    body = {"inputs": "a", **{f"member{i}": 1 for i in range(500)}}
    answer = tiny_server.client.post("/embed", json=body)
    assert answer.status_code == 422
    assert len(answer.json()["problems"]) == 20
    assert answer.json()["problem_count"] == 500


@pytest.mark.parametrize(
    ("media", "before"),
    [
        ("application/vnd.api+json", b""),
        ("Application/JSON; charset=utf-8", b""),
        ("application/json", b"\xef\xbb\xbf"),
    ],
)
def test_json_is_read_by_any_of_its_names_and_behind_a_byte_order_mark(
    tiny_server: LiveServer, media: str, before: bytes
) -> None:
    body, headers = before + b'{"inputs": "a"}', {"Content-Type": media}
    assert tiny_server.client.post("/embed", content=body, headers=headers).status_code == 200


def test_a_body_may_hold_all_that_its_inputs_may() -> None:
    most = most_of(1_000, 8, strings=1_000)
    for whole in ([[7] * 16] * 1_000, ["a"] * 5_000):
        assert parse_json(bytearray(json.dumps(whole).encode()), most).value == whole
    for more in ([[7] * 17] * 1_000, [[]] * 1_300, ["a"] * 5_300):
        with pytest.raises(TooMany):
            parse_json(bytearray(json.dumps(more).encode()), most)


def test_the_member_that_was_meant_is_named(tiny_server: LiveServer) -> None:
    for wrong, meant in {
        "input": "inputs",
        "adapter": "adapters",
        "normalise": "normalize",
    }.items():
        answer = tiny_server.client.post("/embed", json={"inputs": "a", wrong: "a"})
        told = next(p for p in answer.json()["problems"] if p["field"] == wrong)
        assert f"did you mean {meant}" in told["reason"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=60),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=30), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(value=VALUES, plain=st.booleans())
def test_lifting_strings_out_changes_nothing(value: object, plain: bool) -> None:
    raw = json.dumps(value, ensure_ascii=not plain).encode("utf-8", "surrogatepass")
    lifted = json_text.LIFTED_BYTES
    json_text.LIFTED_BYTES = 5  # so that nearly all are
    try:
        parsed = parse_json(bytearray(raw), MANY)
    except ValueError as error:
        assert "surrogate" in str(error) or "hex escape" in str(error) or "nested" in str(error)
        return
    finally:
        json_text.LIFTED_BYTES = lifted
    assert parsed.value == value
    assert not parsed.shortened


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pieces=st.lists(
        st.sampled_from(["a", " ", '"', "\\", "\n", "é", "好", "😀", "\U0010ffff", "\u0001"]),
        min_size=1,
        max_size=9,
    ),
    times=st.integers(40, 90),
    plain=st.booleans(),
)
def test_a_very_long_string_keeps_its_ends_whole(
    monkeypatch: pytest.MonkeyPatch, pieces: list[str], times: int, plain: bool
) -> None:
    text, end = "".join(pieces) * times, 60
    raw = bytearray(json.dumps([text, "b"], ensure_ascii=not plain).encode())
    with monkeypatch.context() as patched:
        patched.setattr(json_text, "END_BYTES", end)
        patched.setattr(json_text, "PIECE_BYTES", 20)
        patched.setattr(json_text, "LIFTED_BYTES", 5)
        parsed = parse_json(raw, MANY)
    got, other = parsed.value
    assert other == "b"
    if parsed.shortened:
        assert len(got) < len(text)
        assert text.startswith(got[: end // 12])  # a character has up to 12 bytes
        assert text.endswith(got[-end // 12 :])
    else:
        assert got == text
        assert len(raw) < 2 * end + 100


BAD = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\n", b"\0", b"\\x", b"\\uZZZZ", b"\\ud800", b"\\q"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("size", [10, 20_000, 3_000_000])
def test_what_is_no_json_is_told_wherever_in_a_long_string_it_is(bad: bytes, size: int) -> None:
    half = b"a " * (size // 4)
    with pytest.raises(ValueError, match=r"character|escape|code point|utf|UTF|string"):
        parse_json(bytearray(b'{"inputs":"' + half + bad + half + b'"}'), MANY)


def test_no_place_is_told_that_would_be_that_of_a_piece() -> None:
    with pytest.raises(ValueError, match="control character") as refused:
        parse_json(bytearray(b'{"inputs":"' + b"a " * 20_000 + b'\n"}'), MANY)
    assert "line" not in str(refused.value)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_gives_one_vector_however_json_spells_it(tiny_server: LiveServer, side: str) -> None:
    face = "\U0001f600"
    text = "hello " + face * 40_000 + " the good film " + face * 120_000 + " goodbye friend"
    text = text if side == "right" else text[::-1]
    body = {"inputs": text, "truncation_direction": side}
    spelled = [json.dumps(body, ensure_ascii=ascii_only).encode() for ascii_only in (True, False)]
    answers = [tiny_server.client.post("/embed", content=raw, headers=JSON) for raw in spelled]
    assert answers[0].status_code == answers[1].status_code == 200
    assert answers[0].json() == answers[1].json()


def test_a_number_of_endless_digits_is_no_number() -> None:
    with pytest.raises(ValueError, match="4,000 digits"):
        parse_json(bytearray(b"[" + b"9" * 4000 + b",1]"), MANY)
    assert parse_json(bytearray(b"9" * json_text.DIGITS), MANY).value == int("9" * 450)
    with pytest.raises(ValueError, match="451 digits, over 450"):
        parse_json(bytearray(b"9" * 451), MANY)


def test_lists_are_nested_sixteen_deep_and_stand_side_by_side_at_will() -> None:
    beside = "[" + ",".join(["[]"] * 40) + "]"
    for fits in ("[" * 16 + "]" * 16, beside):
        assert parse_json(bytearray(fits.encode()), MANY).value == json.loads(fits)
    with pytest.raises(ValueError, match="nested 17 deep"):
        parse_json(bytearray(b"[" * 17 + b"]" * 17), MANY)


def test_what_is_too_many_is_counted_before_it_is_parsed() -> None:
    most = Most(strings=3, scalars=3, lists=3)
    for text in ('["a","b","c","d"]', "[1,2,3,4]", "[[],[],[]]", "[null,true,false,-1.5e+3]"):
        with pytest.raises(TooMany):
            parse_json(bytearray(text.encode()), most)
    fits = ["[1.5e-3,true,null]", '["[[[[1,2,3,4", "\\"1,2,3,4", "a"]', '{"a":["b"]}']
    for text in fits:
        assert parse_json(bytearray(text.encode()), most).value == json.loads(text)
