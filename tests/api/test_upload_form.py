"""A form's parts become files of the upload's own folder, by starlette's parser under bounds."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.adapters.receiving.received import MAX_FILES, Received
from app.adapters.refusals import AdapterRejected
from app.api.upload_body import SourceMalformed, UnsupportedMedia, opened
from app.api.upload_form import unpack_form

W, C = "adapter_model.safetensors", "adapter_config.json"
KIND = "multipart/form-data; boundary=x"
Parts = list[tuple[str, tuple[str, bytes]]]


def form(parts: Parts) -> bytes:
    request = httpx.Request("PUT", "http://x", files=parts, headers={"content-type": KIND})
    return request.read()


def unpacked(tmp: Path, body: bytes, content_type: str = KIND) -> dict[str, bytes]:
    """The adapter's files, by name."""
    (tmp / "body").write_bytes(body)
    received = Received(tmp / "received")
    unpack_form(tmp / "body", content_type, received)
    (tmp / "adapter").mkdir()
    received.settle(tmp / "adapter", None)
    return {p.name: p.read_bytes() for p in (tmp / "adapter").iterdir()}


@contextmanager
def few_descriptors() -> Iterator[None]:
    opened_now = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened_now + 20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "parts",
    [
        [(W, (W, b"w")), (C, (C, b"{}"))],
        [("file", (W, b"w")), ("file", (C, b"{}"))],
        [("files", (f"m/{W}", b"w")), ("files", (f"m/{C}", b"{}"))],
        [(W, ("blob", b"w")), (C, ("blob2", b"{}"))],
        [("f", (f"C:\\m\\{W}", b"w")), ("f", (f"C:\\m\\{C}", b"{}")), ("f", ("README.md", b"#"))],
        [("f", (f"../../m/{W}", b"w")), ("f", (f"../../m/{C}", b"{}"))],
    ],
)
def test_a_part_is_taken_by_its_name_or_its_file_name(tmp_path: Path, parts: Parts) -> None:
    assert unpacked(tmp_path, form(parts)) == {W: b"w", C: b"{}"}


def test_a_part_larger_than_a_chunk_arrives_whole(tmp_path: Path) -> None:
    weights = bytes(range(256)) * (3 << 12) + b"\r\n--x-" * 1000
    assert unpacked(tmp_path, form([(W, (W, weights))])) == {W: weights}


def test_a_form_of_many_files_holds_few_open(tmp_path: Path) -> None:
    parts = [("f", (f"m{i}/{C}", b"x" * 2048)) for i in range(900)]
    with few_descriptors():
        assert unpacked(tmp_path, form([*parts, ("f", (W, b"w"))])) == {W: b"w"}


WHOLE = form([(W, (W, b"w" * 100))])
LONG = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n'


@pytest.mark.parametrize(
    ("body", "content_type", "told"),
    [
        (WHOLE[:-6], KIND, "cut short"),
        (WHOLE[:80], KIND, "cut short"),
        (b"", KIND, "cut short"),
        (b"what is this", KIND, "cannot be read"),
        (WHOLE, "multipart/form-data", "boundary"),
        (WHOLE, f"multipart/form-data; boundary={'x' * 5000}", "cannot be read"),
        (WHOLE, f"{KIND}; charset=undefined", "cannot be read"),
        (LONG + b"X: " + b"a" * 100_000, KIND, "cannot be read"),
        (LONG + b"X: a\r\n" * 100, KIND, "cannot be read"),
        (b'--x\r\nContent-Disposition: form-data; name="alpha"\r\n\r\n9\r\n--x--', KIND, "'alpha'"),
        (form([(W, (W, b"w")), (W, (W, b"w"))]), KIND, "twice"),
        (form([(f"{i}", (f"{i}", b"")) for i in range(MAX_FILES + 1)]), KIND, f"{MAX_FILES}"),
    ],
)
def test_a_form_that_is_none_is_refused_in_words(
    tmp_path: Path, body: bytes, content_type: str, told: str
) -> None:
    with pytest.raises(AdapterRejected, match=told):
        unpacked(tmp_path, body, content_type)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200), start=st.sampled_from([b"", b"--x\r\n", LONG, WHOLE]))
def test_random_forms_are_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    tmp = tmp_path_factory.mktemp("u")
    (tmp / "body").write_bytes(start + data)
    try:
        unpack_form(tmp / "body", KIND, Received(tmp / "received"))
    except AdapterRejected as refused:
        assert refused.message


@pytest.mark.parametrize(
    ("body", "content_type", "refusal"),
    [
        (b"{", "application/json", SourceMalformed),
        (b'{"source": "' + b"x" * (64 << 10) + b'"}', "application/json", SourceMalformed),
        (b'{"source": 1}', "application/json", AdapterRejected),
        (b'{"source": "/a", "b": 1}', "Application/JSON; charset=utf-8", AdapterRejected),
        (b"x", "text/html; charset=utf-8", UnsupportedMedia),
        (b"x", "IMAGE/png", UnsupportedMedia),
    ],
)
def test_a_body_of_another_type_is_refused(
    tmp_path: Path, body: bytes, content_type: str, refusal: type[Exception]
) -> None:
    (tmp_path / "body").write_bytes(body)
    with pytest.raises(refusal):
        opened(tmp_path / "body", content_type)


def test_json_names_a_source_and_anything_else_is_the_file_itself(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_text('{"source": "hf:org/repo"}')
    assert opened(body, "application/json") == "hf:org/repo"
    for content_type in ("", "application/zip", "application/octet-stream", "odd"):
        assert opened(body, content_type) == body


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"--YY\r\n", "boundary"),
        (b"--XX\r\n" + b"X: " + b"y" * 5000 + b"\r\n\r\n", "header size"),
        (b"--XX\r\n" + b"X: y\r\n" * 9 + b"\r\n", "header count"),
    ],
)
def test_what_is_wrong_with_a_form_is_told(tmp_path: Path, body: bytes, reason: str) -> None:
    (tmp_path / "body").write_bytes(body)
    received = Received(tmp_path / "received")
    with pytest.raises(AdapterRejected, match=reason):
        unpack_form(tmp_path / "body", "multipart/form-data; boundary=XX", received)
