"""A base in half precision, or in int8, serves the adapters that come along, and still refuses a wrong one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.oracles import files_of

ADAPTERS = Path(__file__).parent.parent.parent / "adapters"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_certificates_of_float32_hold_as_far_as_the_dtype_can(
    serve: Serve, tmp_path: Path, dtype: str
) -> None:
    server = serve(dtype=dtype, adapters_dir=ADAPTERS)
    served = {adapter["name"] for adapter in server.client.get("/adapters").json()}
    assert served == {path.name for path in ADAPTERS.iterdir() if path.is_dir()}
    wrong = tmp_path / "wrong"
    shutil.copytree(ADAPTERS / "sentiment", wrong)
    config = json.loads((wrong / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (wrong / "adapter_config.json").write_text(json.dumps(config))
    answer = server.client.put("/adapters/wrong", files=files_of(wrong))
    assert answer.status_code == 422
    assert "certificate" in answer.json()["error"]
