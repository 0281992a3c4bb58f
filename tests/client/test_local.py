"""bert_lora.load gives the same answers and errors as a server, without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import bert_lora
from bert_lora import BertLoraError, Local, Refused, Unreadable
from tests.client.conftest import Served
from tests.client.test_calls import TEXTS, assert_alike


@pytest.fixture(scope="module")
def local(tiny_bert: Path, folders: dict[str, Path]) -> Iterator[Local]:
    os.environ["BERT_LORA_PORT"] = "no number"  # a server's settings are not ours
    threads = torch.get_num_threads()
    with bert_lora.load(str(tiny_bert), adapters=folders) as loaded:
        assert torch.get_num_threads() == threads
        yield loaded
    del os.environ["BERT_LORA_PORT"]


def test_vectors_are_the_servers_bit_for_bit(served: Served, local: Local) -> None:
    summed = {"adapter": "tuned:0.5+other:-0.3"}
    for options in ({}, {"adapter": "tuned"}, {"adapter": "tuned", "pooling": "max"}, summed):
        ours, theirs = local.embed(TEXTS, **options), served.client.embed(TEXTS, **options)
        assert np.array_equal(ours, theirs), options
    adapters = ["tuned", None] * 35
    assert np.array_equal(
        local.embed(TEXTS, adapter=adapters), served.client.embed(TEXTS, adapter=adapters)
    )


def test_labels_and_rankings_are_the_servers(served: Served, local: Local) -> None:
    assert_alike(
        local.classify(TEXTS, adapter="labels"), served.client.classify(TEXTS, adapter="labels")
    )
    ours, theirs = (
        calls.rerank("my card", TEXTS, adapter="rank") for calls in (local, served.client)
    )
    assert [place["index"] for place in ours] == [place["index"] for place in theirs]
    assert [place["score"] for place in ours] == pytest.approx(
        [place["score"] for place in theirs], abs=1e-6
    )


@pytest.mark.parametrize(
    ("call", "arguments", "options"),
    [
        ("embed", (["good"] * 40 + [""],), {}),
        ("embed", ("good",), {"adapter": "tunde"}),
        ("embed", ("good",), {"pooling": "sum"}),
        ("embed", ("good " * 900,), {"truncate": False}),
        ("classify", ("good",), {"adapter": "tuned"}),
        ("rerank", ("good", [""]), {"adapter": "rank"}),
        ("put", ("UPPER", "tuned"), {}),
        ("put", ("noop", "tuned"), {"alpha": 3}),
        ("delete", ("nobody",), {}),
    ],
)
def test_errors_are_the_servers(
    served: Served, local: Local, call: str, arguments: tuple, options: dict
) -> None:
    if call == "put":
        arguments = (arguments[0], served.folders[arguments[1]])
    told = []
    for calls in (local, served.client):
        with pytest.raises(Refused) as caught:
            getattr(calls, call)(*arguments, **options)
        error = caught.value
        told.append((type(error), error.status, error.code, error.type, error.index))
    assert told[0] == told[1]


def test_adapters_come_and_go(local: Local, folders: dict[str, Path]) -> None:
    before = [adapter["name"] for adapter in local.list()]
    adapter = local.put("more", folders["labels"], labels=["no", "yes"])
    assert adapter["labels"] == ["no", "yes"]
    assert [a["name"] for a in local.list()] == sorted([*before, "more"])
    assert local.classify("good", adapter="more")[0]["label"] in ("no", "yes")
    local.delete("more")
    assert [a["name"] for a in local.list()] == before


def test_a_base_that_cannot_be_loaded_is_said_in_one_line() -> None:
    with pytest.raises(Unreadable, match="does not exist"):
        bert_lora.load("./nowhere")
    with pytest.raises(BertLoraError, match="device"):
        bert_lora.load(device="tpu")


def test_a_folder_of_adapters_is_loaded_whole(tiny_bert: Path, folders: dict[str, Path]) -> None:
    with bert_lora.load(str(tiny_bert), adapters=folders["tuned"].parent) as loaded:
        assert folders["tuned"].name in {adapter["name"] for adapter in loaded.list()}
