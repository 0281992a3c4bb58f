"""Random legal LoRA configs, made and saved by PEFT: served with PEFT's numbers, whatever is
combined.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch.testing import assert_close

from tests.kinds import NAMES, Names, make_kind, peft_answers
from tests.live import LiveServer, live_server
from tests.oracles import FP32, encode, files_of
from tests.tiny import save_tiny_base

TEXTS = ["the card is lost", "how good is my money film?"]
COUNT = itertools.count()
REFUSED_BY_PEFT = (ValueError, TypeError, KeyError, AttributeError, RuntimeError)


def configs(n: Names) -> st.SearchStrategy[dict[str, Any]]:
    """Fields of LoraConfig; what is left out is PEFT's default."""
    module = st.sampled_from([n.q, n.v, n.up, n.down])
    patterns = st.one_of(
        module, module.map(lambda m: rf".*\d\..*{m}"), module.map(lambda m: f"({m}|x)")
    )
    targets = st.one_of(
        st.lists(st.one_of(module, st.just(n.words)), min_size=1, max_size=4, unique=True),
        st.just("all-linear"),
        module.map(lambda m: rf".*[01]\..*({m}|{n.q})"),
    )
    return st.fixed_dictionaries(
        {"target_modules": targets, "r": st.integers(1, 9)},
        optional={
            "lora_alpha": st.sampled_from([1, 3, 16, 0.5]),
            "use_rslora": st.booleans(),
            "use_dora": st.booleans(),
            "lora_bias": st.booleans(),
            "rank_pattern": st.dictionaries(patterns, st.integers(1, 6), max_size=2),
            "alpha_pattern": st.dictionaries(patterns, st.sampled_from([2, 20, 0.3]), max_size=2),
            "bias": st.sampled_from(["none", "all", "lora_only"]),
            "modules_to_save": st.lists(st.sampled_from([n.norm, n.words, n.up]), max_size=2, unique=True),
            "trainable_token_indices": st.lists(st.integers(0, 84), min_size=1, max_size=4, unique=True),
            "init_lora_weights": st.sampled_from([True, "pissa", "olora", "gaussian"]),
            "exclude_modules": st.one_of(st.lists(module, max_size=1), module.map(lambda m: rf".*1.*{m}")),
        },
    )  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "distilbert", "modernbert"])
def arch(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, LiveServer, Path]]:
    root = tmp_path_factory.mktemp(f"differential-{request.param}")
    base = save_tiny_base(request.param, root / "base")
    server = live_server(model=str(base), store=root / "store", adapters_dir=root / "none")
    yield request.param, base, server, root
    server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_config_that_peft_takes_is_served_as_peft_does(
    arch: tuple[str, Path, LiveServer, Path],
) -> None:
    name, base, server, root = arch
    inputs = [encode(base, text, 80) for text in TEXTS]
    served = 0

    @settings(
        max_examples=60, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(fields=configs(NAMES[name]))
    def try_it(fields: dict[str, Any]) -> None:
        nonlocal served
        folder = root / f"a{next(COUNT)}"
        try:
            make_kind("", name, base, folder, config=LoraConfig(**fields))
            wanted = torch.stack(peft_answers(base, folder, inputs))
        except REFUSED_BY_PEFT:
            return
        answer = server.client.put("/adapters/x?allow_noop=true", files=files_of(folder))
        assert answer.status_code in (200, 201), answer.text
        body = {"inputs": TEXTS, "normalize": False}
        for step in ("merge", "unmerge"):
            got = torch.tensor(server.client.post("/embed?adapter=x", json=body).json())
            assert_close(got, wanted, **FP32)
            server.client.post(f"/adapters/x/{step}")
        shutil.rmtree(folder)
        served += 1

    try_it()
    assert served > 20
