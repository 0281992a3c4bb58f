"""Token states, cosines and tokens from Python: PEFT's and the tokenizer's own, under their bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModel

from app.adapters.values import Adapter, Head
from app.engine.tokenizer import InputRefused
from app.inference import states
from app.inference.caller import Caller
from app.inference.choose import Selection
from app.inference.errors import Invalid, TooManyInputs
from app.inference.kinds import kind_of
from app.inference.read import Texts
from app.inference.similarity import compare
from app.inference.states import token_states
from app.inference.tokens import MOST, texts_of, tokens_of
from app.model.sequence import Sequence, Want
from tests.inference.conftest import Script
from tests.oracles import FP32, SENTENCES, encode, peft_embeddings

TEXTS = SENTENCES[:4]
SENTIMENT = Selection(["sentiment"])


@pytest.fixture
def prompted(script: Script, monkeypatch: pytest.MonkeyPatch) -> str:
    """The base has a prompt of this text, which it puts before what names none."""
    files = script.runtime.engine.encoder.files
    sentence = replace(files.sentence, prompts={"find": "find "}, default_prompt="find")
    monkeypatch.setattr(script.runtime.engine.encoder, "files", replace(files, sentence=sentence))
    return "find "


def test_token_states_are_pefts_last_hidden_states(script: Script) -> None:
    ran = script.call(token_states, Caller(), Texts(TEXTS), SENTIMENT)
    base = AutoModel.from_pretrained(script.base)
    tuned = PeftModel.from_pretrained(base, script.folders["sentiment"]).eval()
    for text, got in zip(TEXTS, ran.lines[0], strict=True):
        with torch.inference_mode():
            wanted = tuned(**encode(script.base, text, 80)).last_hidden_state[0]
        torch.testing.assert_close(got, wanted, **FP32)


def test_token_states_of_more_tokens_than_an_answer_may_hold_are_refused(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "MOST_NUMBERS", 32 * 5)
    assert script.call(token_states, Caller(), Texts(["a b c"])).lines
    with pytest.raises(TooManyInputs, match="6 tokens, over the 5"):
        script.call(token_states, Caller(), Texts(["a b c d"]))


def test_cosines_are_those_of_pefts_vectors(script: Script) -> None:
    vectors = peft_embeddings(script.base, script.folders["sentiment"], TEXTS)
    got = script.call(compare, Caller(), Texts(TEXTS), SENTIMENT).cosines
    torch.testing.assert_close(torch.tensor(got), vectors[1:] @ vectors[0], **FP32)


def test_tokens_are_the_tokenizers_and_decode_to_the_text(script: Script) -> None:
    tokenizer = Tokenizer.from_file(str(script.base / "tokenizer.json"))
    rows = script.call(tokens_of, Caller(), Texts(TEXTS), SENTIMENT)
    ids = [[token.id for token in row] for row in rows]
    assert ids == [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]
    assert script.call(texts_of, Caller(), ids, SENTIMENT) == tokenizer.decode_batch(ids)


def test_tokens_are_those_of_the_prompt_too_and_places_count_from_it(
    script: Script, prompted: str
) -> None:
    wanted = Tokenizer.from_file(str(script.base / "tokenizer.json")).encode(prompted + "good")
    for name in (None, "find"):
        (row,) = script.call(tokens_of, Caller(), Texts(["good"]), prompt_name=name)
        assert [token.id for token in row] == wanted.ids
        assert (row[-2].text, row[-2].start, row[-2].stop) == ("good", 5, 9)
    with pytest.raises(Invalid):
        script.call(tokens_of, Caller(), Texts(["good"]), prompt_name="nowhere")


def test_a_call_of_more_than_may_be_read_is_refused_whole(script: Script) -> None:
    assert script.call(tokens_of, Caller(), Texts(["a" * MOST]))
    for texts in (Texts(["a" * MOST, "a"]), Texts(["a"], shortened=True)):
        with pytest.raises(TooManyInputs):
            script.call(tokens_of, Caller(), texts)
    with pytest.raises(TooManyInputs):
        script.call(texts_of, Caller(), [[2] * MOST, [2]])
    with pytest.raises(InputRefused) as refused:
        script.call(texts_of, Caller(), [[2], [2, 85]])
    assert refused.value.index == 1


def test_what_an_adapter_is_for_shows_its_head(script: Script) -> None:
    names = script.runtime.registry.names
    kinds = {}
    for name in ("sentiment", "rank"):
        version = script.run(script.runtime.fetcher.ready(names[name]))
        kinds[name] = kind_of(version.adapter)
    assert kinds == {"sentiment": "embedding", "rank": "reranker"}
    head = version.adapter.head
    assert isinstance(head, Head)
    for task, labels, kind in (
        ("classify", ("a", "b"), "classifier"),
        ("tokens", ("a", "b"), "classifier"),
        ("tokens", ("a",), "classifier"),
        ("classify", ("a",), "reranker"),
    ):
        adapter = Adapter({}, layout="peft", task=task, labels=labels, head=head)  # type: ignore[arg-type]
        assert kind_of(adapter) == kind


def test_states_beside_vectors_in_one_batch_are_each_as_alone(script: Script) -> None:
    engine, ids = script.runtime.engine, [2, 70, 71, 3]

    def rows(*wants: Want) -> list[torch.Tensor]:
        sequences = [Sequence(ids, [0] * 4, want, engine.base) for want in wants]
        return script.run(engine.run(sequences)).rows

    wants = [Want("states"), Want("embedding"), Want("embedding", pooling="pooler")]
    together = rows(*wants)
    assert [row.shape for row in together] == [(4, 32), (32,), (32,)]
    for row, want in zip(together, wants, strict=True):
        torch.testing.assert_close(row, rows(want)[0], rtol=0, atol=0)
