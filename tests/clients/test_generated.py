"""A client that openapi-python-client makes from the server's own document."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import ROOT, TEXTS, Server, assert_close

PACKAGE = "bert_lora_server_client"
SENTIMENT = ROOT / "adapters" / "sentiment"


@pytest.fixture(scope="session")
def made(open_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The generated package's modules."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_bytes(httpx.get(f"{open_server.url}/openapi.json").content)
    generator = Path(sys.executable).with_name("openapi-python-client")
    subprocess.run(  # it warns of tars and zips, for which it has no word
        [generator, "generate", "--path", "openapi.json", "--output-path", "out"],
        cwd=folder,
        check=True,
    )
    sys.path.insert(0, str(folder / "out"))
    load = importlib.import_module
    calls = {
        name: load(f"{PACKAGE}.api.{name}")
        for name in ("inference.embed_inputs", "inference.classify_inputs", "openai.embeddings")
    }
    calls |= {
        f"adapters.{name}": load(f"{PACKAGE}.api.adapters.{name}")
        for name in ("put", "get", "list_all", "versions", "rollback", "merge", "unmerge", "delete")
    }
    return SimpleNamespace(
        models=load(f"{PACKAGE}.models"),
        types=load(f"{PACKAGE}.types"),
        package=load(PACKAGE),
        calls=calls,
    )


@pytest.fixture
def ask(made: Any, open_server: Server) -> Any:
    client = made.package.Client(base_url=open_server.url)
    return lambda call, *names, **more: made.calls[call].sync(*names, client=client, **more)


def test_embed_classify_and_openais_embeddings(made: Any, ask: Any, open_server: Server) -> None:
    body = made.models.EmbedBody.from_dict({"inputs": TEXTS})
    assert_close(
        ask("inference.embed_inputs", body=body, adapter=["sentiment"]),
        open_server.vectors(adapter="sentiment"),
    )
    body = made.models.ClassifyBody.from_dict({"inputs": TEXTS[0]})
    labels = ask("inference.classify_inputs", body=body, adapter=["sentiment"])
    expected = open_server.native("/classify?adapter=sentiment", {"inputs": TEXTS[0]})
    assert [one.to_dict() for one in labels] == expected
    body = made.models.OpenAIEmbeddingBody.from_dict({"model": "sentiment", "input": TEXTS})
    answer = ask("openai.embeddings", body=body)
    assert_close([one.embedding for one in answer.data], open_server.vectors(adapter="sentiment"))


def test_every_call_of_the_document_is_made(made: Any, open_server: Server) -> None:
    paths = httpx.get(f"{open_server.url}/openapi.json").json()["paths"]
    calls = sum(len(methods) for methods in paths.values())
    api = Path(made.package.__file__).parent / "api"
    assert len([file for file in api.glob("*/*.py") if file.name != "__init__.py"]) == calls


@pytest.mark.skipif(
    version("openapi-python-client") < "0.28", reason="sent forms without their boundary"
)
def test_an_adapters_life(made: Any, ask: Any, open_server: Server) -> None:
    file = made.types.File

    def part(name: str) -> Any:
        return file(payload=BytesIO((SENTIMENT / name).read_bytes()), file_name=name)

    folder = made.models.AdapterFiles(
        adapter_model_safetensors=part("adapter_model.safetensors"),
        adapter_config_json=part("adapter_config.json"),
        config_json=part("config.json"),
    )
    first = ask("adapters.put", "generated", body=folder)
    assert (first.labels, first.scale, first.targets.additional_properties) == (
        ["negative", "positive"],
        2.0,
        ask("adapters.get", "sentiment").targets.additional_properties,
    )
    bare = file(payload=BytesIO((SENTIMENT / "adapter_model.safetensors").read_bytes()))
    second = ask("adapters.put", "generated", body=bare, alpha=8.0)
    assert second.scale == 1.0
    history = ask("adapters.versions", "generated")
    assert [entry.version for entry in history] == [first.version, second.version]
    assert [entry.current for entry in history] == [False, True]
    back = made.models.RollbackBody.from_dict({"version": first.version})
    assert ask("adapters.rollback", "generated", body=back).version == first.version
    assert ask("adapters.merge", "generated").merged
    assert not ask("adapters.unmerge", "generated").merged
    assert "generated" in [one.name for one in ask("adapters.list_all")]
    ask("adapters.delete", "generated")
    refused = ask("adapters.get", "generated")
    assert refused.error_type == "adapter_not_found"
