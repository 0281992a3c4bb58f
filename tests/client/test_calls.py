"""The client's answers are the native routes', in the texts' order, however a call is split."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bert_lora import (
    AsyncClient,
    BadRequest,
    BertLoraError,
    Client,
    MixedVersions,
    NotFound,
    NotPermitted,
    Unreachable,
    WrongText,
)
from bert_lora.options import Labels
from bert_lora.splitting import pieces
from tests.client.conftest import Served
from tests.conftest import Serve
from tests.oracles import sentences

TEXTS = sentences(70)


def native(served: Served, path: str, texts: list[str], **body: object) -> list[object]:
    """The route's own JSON, a text a request."""
    return [served.live.post(path, inputs=[text], **body)[0] for text in texts]


def assert_alike(labels: list[Labels], wanted: list[object]) -> None:
    """A head's last bits depend on what else is in its batch, as an embedding's do not."""
    assert len(labels) == len(wanted)
    for answer, other in zip(labels, wanted, strict=True):
        names, scores = zip(*((each["label"], each["score"]) for each in answer), strict=True)
        assert [(n, pytest.approx(s, abs=1e-6)) for n, s in zip(names, scores, strict=True)] == [
            (each["label"], each["score"]) for each in other
        ]


def test_vectors_are_the_native_routes_in_order(served: Served) -> None:
    vectors = served.client.embed(TEXTS, adapter="tuned")
    wanted = native(served, "/embed?adapter=tuned", TEXTS)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, np.array(wanted, np.float32))


def test_what_is_asked_beside_the_texts_is_sent(served: Served) -> None:
    asked = {"pooling": "cls", "normalize": False, "dimensions": 8, "prompt": "query: "}
    vectors = served.client.embed(TEXTS[:3], **asked)
    wanted = native(served, "/embed", TEXTS[:3], **asked)
    assert np.array_equal(vectors, np.array(wanted, np.float32))


def test_each_text_may_have_its_own_adapter(served: Served) -> None:
    adapters = ["tuned", None, "base", "labels"] * 10
    vectors = served.client.embed(TEXTS[:40], adapter=adapters)
    for i, adapter in enumerate(adapters):
        alone = served.client.embed(TEXTS[i], adapter=adapter or "base")
        assert np.array_equal(vectors[i], alone), i


def test_pairs_and_token_ids_are_read_as_the_server_reads_them(served: Served) -> None:
    inputs = [("good film", "bad film"), [2, 11, 12, 3]]
    vectors = served.client.embed(inputs)
    wanted = served.live.post("/embed", inputs=[["good film", "bad film"], [2, 11, 12, 3]])
    assert np.array_equal(vectors, np.array(wanted, np.float32))


def test_one_text_has_one_vector_and_none_has_an_empty_array(served: Served) -> None:
    assert served.client.embed("good").shape == (32,)
    assert served.client.embed([]).shape == (0, 32)
    assert served.client.classify([], adapter="labels") == []
    assert served.client.rerank("good", [], adapter="rank") == []


def test_labels_are_the_native_routes_in_order(served: Served) -> None:
    labels = served.client.classify(TEXTS, adapter="labels", top_k=1)
    assert_alike(labels, native(served, "/classify?adapter=labels", TEXTS, top_k=1))
    assert_alike([served.client.classify(TEXTS[0], adapter="labels", top_k=1)], labels[:1])


def test_a_ranking_of_many_texts_is_one_ranking(served: Served) -> None:
    ranking = served.client.rerank("my card", TEXTS, adapter="rank", raw_scores=True)
    assert sorted(place["index"] for place in ranking) == list(range(70))
    scores = [place["score"] for place in ranking]
    assert scores == sorted(scores, reverse=True)
    for place in ranking:
        body = {"query": "my card", "texts": [TEXTS[place["index"]]], "raw_scores": True}
        alone = served.live.post("/rerank?adapter=rank", **body)
        assert alone[0]["score"] == pytest.approx(place["score"], abs=1e-6)
    best = served.client.rerank("my card", TEXTS, adapter="rank", raw_scores=True, top_n=2)
    assert [place["index"] for place in best] == [place["index"] for place in ranking[:2]]


def test_the_client_may_have_an_adapter_and_a_call_another(served: Served) -> None:
    with Client(served.live.url, adapter="tuned") as client:
        own, base = client.embed("good"), client.embed("good", adapter="base")
    assert np.array_equal(own, served.client.embed("good", adapter="tuned"))
    assert np.array_equal(base, served.client.embed("good"))
    assert not np.array_equal(own, base)


def test_a_stream_is_read_no_further_than_requests_may_be_under_way(served: Served) -> None:
    read = 0

    def texts() -> object:
        nonlocal read
        for text in TEXTS * 8:
            read += 1
            yield text

    answered: list[np.ndarray] = []
    with Client(served.live.url, at_once=2) as client:
        for some, vectors in client.embed_each(texts()):
            assert read <= sum(map(len, answered)) + 16 * (2 * 2 + 1)
            assert len(some) == len(vectors)
            answered.append(vectors)
    assert np.array_equal(np.concatenate(answered), np.tile(served.client.embed(TEXTS), (8, 1)))


def test_labels_stream_as_they_come_at_once(served: Served) -> None:
    streamed = served.client.classify_each(iter(TEXTS), adapter="labels")
    labels = [label for _, some in streamed for label in some]
    assert_alike(labels, served.client.classify(TEXTS, adapter="labels"))


def test_threads_and_async_code_get_the_same(served: Served) -> None:
    wanted = served.client.embed(TEXTS)

    async def both() -> list[np.ndarray]:
        async with AsyncClient(served.live.url) as client:
            return await asyncio.gather(client.embed(TEXTS), client.embed(TEXTS))

    with ThreadPoolExecutor(4) as threads:
        answers = [*threads.map(served.client.embed, [TEXTS] * 4), *asyncio.run(both())]
    for vectors in answers:
        assert np.array_equal(vectors, wanted)


@pytest.mark.parametrize(
    ("wrong", "index"), [("", 40), (None, 40), (3, 40), ("half \ud800", 40), ([9999999], 40)]
)
def test_a_wrong_text_is_named_by_its_place_in_the_call(
    served: Served, wrong: object, index: int
) -> None:
    with pytest.raises((BadRequest, WrongText)) as caught:
        served.client.embed([*TEXTS[:index], wrong, *TEXTS])  # type: ignore[list-item]
    assert caught.value.index == index
    assert f"[{index}]" in str(caught.value)


def test_errors_have_our_codes_and_what_the_server_says(served: Served) -> None:
    with pytest.raises(NotFound) as caught:
        served.client.embed("good", adapter="tunde")
    assert (caught.value.status, caught.value.code) == (404, "adapter_not_found")
    assert caught.value.details["nearest"] == ["tuned"]
    assert caught.value.request_id
    with pytest.raises(BadRequest) as refusal:
        served.client.classify("good", adapter="tuned")
    assert refusal.value.code == "no_head"
    with pytest.raises(BadRequest, match="normalise"):
        served.client.embed("good", normalise=True)  # type: ignore[call-arg]
    assert issubclass(NotFound, BertLoraError)


def test_a_key_is_sent_and_one_too_little_is_told(serve: Serve, tiny_bert: object) -> None:
    server = serve(model=str(tiny_bert), api_keys="one", admin_keys="all")
    with Client(server.url, api_key="one") as client:
        assert client.embed("good").shape == (32,)
        with pytest.raises(NotPermitted) as caught:
            client.delete("any")
    assert caught.value.code == "forbidden"
    with Client(server.url) as client, pytest.raises(NotPermitted):
        client.info()


def test_where_no_server_is_the_client_says_so_at_once() -> None:
    began = time.monotonic()
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"),
    ):
        client.embed("good")
    assert time.monotonic() - began < 60  # its patience is 300
    with pytest.raises(Unreachable, match="is no address"):
        Client("localhost 8080")


def test_answers_of_two_versions_are_not_mixed(served: Served) -> None:
    first = served.client.put("moving", served.folders["tuned"])
    staged = served.client.put("moving", served.folders["other"], stage=True)
    served.client.canary("moving", staged["version"], 50)
    with pytest.raises(MixedVersions):
        served.client.embed(TEXTS * 4, adapter="moving")
    pinned = served.client.embed(TEXTS, adapter=f"moving@{first['version']}")
    assert np.array_equal(pinned, served.client.embed(TEXTS, adapter="tuned"))
    served.client.delete("moving")


def test_the_import_is_light() -> None:
    code = (
        "import sys, bert_lora\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'numpy', 'httpx2'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "bert_lora.Client, bert_lora.AsyncClient, bert_lora.NotFound\n"
        "print(sorted(heavy - {'httpx2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "[]"
    assert not {"'torch'", "'transformers'"} & set(second.strip("[]").split(", "))


def test_pieces_hold_every_text_once_in_order() -> None:
    texts = [*sentences(300), "x" * 300_000, *sentences(300, 1)]
    made = list(pieces(texts, 100))
    assert [text for piece in made for text in piece.texts] == texts
    assert [piece.start for piece in made] == [
        sum(len(before.texts) for before in made[:i]) for i in range(len(made))
    ]
    assert max(len(piece.texts) for piece in made) == 100
