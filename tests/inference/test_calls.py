"""embed, classify and score called from Python give what PEFT gives; what cannot be answered says
why.
"""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from app.catalog.registry import UnknownAdapter
from app.engine.failures import ForwardFailed
from app.engine.tokenizer import InputRefused
from app.inference.caller import Caller, Key
from app.inference.choose import Selection
from app.inference.classify import LabelWish, classify, score
from app.inference.embed import EmbedWish, embed
from app.inference.errors import Ambiguous, Forbidden, Invalid, NoHead, TooManyInputs
from app.inference.quota import QuotaExceeded
from app.inference.read import Texts
from app.model.encoder import Encoder
from app.model.sequence import Sequence
from tests.inference.conftest import Script
from tests.oracles import FP32, SENTENCES, peft_embeddings, peft_logits, plain_embeddings

TEXTS = SENTENCES[:4]
SENTIMENT, RANK = Selection(["sentiment"]), Selection(["rank"])


def key(name: str = "k", **more: object) -> Caller:
    """A caller with a key."""
    return Caller(Key(name, b"", admin=False, **more))  # type: ignore[arg-type]


def test_a_script_gets_pefts_vectors(script: Script) -> None:
    embedded = script.call(embed, Caller(), Texts(TEXTS), SENTIMENT)
    wanted = peft_embeddings(script.base, script.folders["sentiment"], TEXTS)
    torch.testing.assert_close(torch.stack(embedded.ran.lines[0]), wanted, **FP32)


def test_one_call_mixes_adapters_and_the_base(script: Script) -> None:
    mixed = Selection(per_input=["sentiment", None, "base", "sentiment"])
    rows = script.call(embed, Caller(), Texts(TEXTS), mixed).ran.lines[0]
    plain = plain_embeddings(script.base, TEXTS)
    tuned = peft_embeddings(script.base, script.folders["sentiment"], TEXTS)
    wanted = torch.stack([tuned[0], plain[1], plain[2], tuned[3]])
    torch.testing.assert_close(torch.stack(rows), wanted, **FP32)


def test_several_adapters_are_a_line_each(script: Script) -> None:
    embedded = script.call(embed, Caller(), Texts(TEXTS), Selection(["base", "sentiment"]))
    assert [len(line) for line in embedded.ran.lines] == [4, 4]
    assert embedded.ran.choice.fan_out
    assert len(set(embedded.spaces)) == 2


def test_scores_are_the_heads_logits_through_a_sigmoid(script: Script) -> None:
    wanted = peft_logits(script.base, script.folders["rank"], 1, TEXTS)[:, 0]
    raw = script.call(score, Caller(), Texts(TEXTS), RANK, raw_scores=True).scores
    torch.testing.assert_close(torch.tensor(raw), wanted, **FP32)
    scores = script.call(score, Caller(), Texts(TEXTS), RANK).scores
    torch.testing.assert_close(torch.tensor(scores), torch.sigmoid(wanted), **FP32)


def test_labels_under_the_threshold_are_left_out(script: Script) -> None:
    every = script.call(classify, Caller(), Texts(TEXTS), RANK).answers[0]
    best = max(answer[0]["score"] for answer in every)
    wish = LabelWish(threshold=best)
    kept = script.call(classify, Caller(), Texts(TEXTS), RANK, wish).answers[0]
    assert [len(answer) for answer in kept].count(1) == 1


def test_the_trace_knows_the_adapters_of_a_call_that_fails(script: Script) -> None:
    caller = key("in debt", tokens_per_s=1)
    script.call(embed, caller, Texts(TEXTS))
    with pytest.raises(QuotaExceeded):
        script.call(embed, caller, Texts(TEXTS), SENTIMENT)
    assert caller.trace.adapters == ["sentiment"]


def test_a_call_that_is_too_large_is_refused_before_any_adapter_is_looked_up(
    script: Script,
) -> None:
    with pytest.raises(TooManyInputs):
        script.call(embed, Caller(), Texts(TEXTS), Selection(["base", "nobody", "nowhere"]))


@pytest.mark.parametrize(
    ("selection", "wish", "error"),
    [
        (Selection(["sentimant"]), EmbedWish(), UnknownAdapter),
        (Selection(per_input=["sentiment"]), EmbedWish(), Invalid),
        (Selection(["rank"], ["sentiment"] * 4), EmbedWish(), Ambiguous),
        (SENTIMENT, EmbedWish(dimensions=10_000), Invalid),
        (SENTIMENT, EmbedWish(prompt="a", prompt_name="b"), Invalid),
        (SENTIMENT, EmbedWish(prompt_name="nowhere"), Invalid),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    script: Script, selection: Selection, wish: EmbedWish, error: type[Exception]
) -> None:
    with pytest.raises(error):
        script.call(embed, Caller(), Texts(TEXTS), selection, wish)


def test_a_key_meets_the_adapters_that_it_may_use_and_no_others(script: Script) -> None:
    narrow = key(adapters=("rank",))
    assert script.call(score, narrow, Texts(TEXTS), RANK).scores
    assert script.call(embed, narrow, Texts(TEXTS)).ran.lines
    with pytest.raises(Forbidden):
        script.call(embed, narrow, Texts(TEXTS), SENTIMENT)
    with pytest.raises(NoHead) as refused:
        script.call(classify, key(adapters=("sentiment",)), Texts(TEXTS), SENTIMENT)
    assert refused.value.adapters == []


def test_where_nothing_is_chosen_a_key_gets_the_only_adapter_of_its_own_that_reranks(
    script: Script,
) -> None:
    chosen = script.call(score, key(adapters=("r*",)), Texts(TEXTS)).ran.choice.distinct
    assert [c.name for c in chosen] == ["rank"]
    with pytest.raises(NoHead) as refused:
        script.call(score, key(adapters=("sentiment",)), Texts(TEXTS))
    assert refused.value.adapters == []


def test_a_key_is_told_no_ranker_that_it_may_not_use(script: Script) -> None:
    for adapters, told in ((("x", "sentiment"), []), (("x", "rank"), ["rank"])):
        with pytest.raises(UnknownAdapter) as refused:
            script.call(score, key(adapters=adapters), Texts(TEXTS), Selection(["x"]))
        assert refused.value.nearest == told


def test_a_key_over_its_rate_is_refused_before_its_texts_are_read(script: Script) -> None:
    slow = key("slow", tokens_per_s=1)
    script.call(embed, slow, Texts(TEXTS))
    with pytest.raises(QuotaExceeded):
        script.call(embed, slow, Texts(["x" * 9], truncate=False))


def test_an_input_that_is_too_long_is_named(script: Script) -> None:
    texts = Texts(["short", "word " * 900], truncate=False)
    with pytest.raises(InputRefused) as refused:
        script.call(embed, Caller(), texts, SENTIMENT)
    assert refused.value.index == 1


def test_a_call_that_is_cancelled_leaves_nothing_waiting(script: Script) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await embed(script.runtime, Caller(), Texts(["word " * 50_000] * 8), SENTIMENT)

    script.run(give_up())
    assert script.runtime.engine.admission.tokens == 0


def test_a_loop_that_is_closed_meanwhile_stops_nobody_else(script: Script) -> None:
    release = threading.Event()

    async def ask_and_leave() -> None:
        call = script.runtime.engine.call(lambda: release.wait(30))
        asking = asyncio.ensure_future(call)
        await asyncio.wait({asking}, timeout=0.1)

    for _ in range(2):  # each of the model's threads may have been ended
        asyncio.run(ask_and_leave())
        release.set()
    assert script.call(embed, Caller(), Texts(TEXTS)).ran.lines
    assert script.runtime.engine.turning


def test_an_input_that_fails_through_the_second_adapter_is_named_by_its_own_place(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, run = script.runtime.engine.base, Encoder.run

    def failing(self: Encoder, sequences: list[Sequence], between: object) -> list[torch.Tensor]:
        if any(sequence.version is not base for sequence in sequences):
            raise RuntimeError("a fault that was asked for")
        return run(self, sequences)

    monkeypatch.setattr(Encoder, "run", failing)
    with pytest.raises(ForwardFailed) as failed:
        script.call(embed, Caller(), Texts(TEXTS), Selection(["base", "sentiment"]))
    assert failed.value.index in range(len(TEXTS))
