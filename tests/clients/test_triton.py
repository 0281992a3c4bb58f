"""tritonclient over HTTP: KServe's open inference protocol, with its binary bodies and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from conftest import TEXTS, Server, assert_close
from tritonclient.utils import InferenceServerException


@pytest.fixture
def client(open_server: Server) -> Any:
    client = triton.InferenceServerClient(open_server.url.removeprefix("http://"))
    yield client
    client.close()


def texts_input(*, binary: bool) -> triton.InferInput:
    given = triton.InferInput("text", [len(TEXTS)], "BYTES")
    given.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary)
    return given


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize(
    ("model", "adapter"), [("sentiment", "sentiment"), ("all-MiniLM-L6-v2", "base")]
)
def test_infer(
    client: Any, open_server: Server, model: str, adapter: str, binary_in: bool, binary_out: bool
) -> None:
    wanted = [triton.InferRequestedOutput("embedding", binary_data=binary_out)]
    answer = client.infer(model, [texts_input(binary=binary_in)], outputs=wanted)
    got = answer.as_numpy("embedding")
    assert (got.dtype, got.shape) == (np.float32, (len(TEXTS), 384))
    assert_close(got.tolist(), open_server.vectors(adapter=adapter))


def test_metadata_and_readiness(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sentiment")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"]
    for model, outputs in (("base", {"embedding"}), ("sentiment", {"scores", "labels"})):
        metadata = client.get_model_metadata(model)
        assert {one["name"] for one in metadata["outputs"]} == outputs


def test_errors(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="nobody"):
        client.infer("nobody", [texts_input(binary=False)])
