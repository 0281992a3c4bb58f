"""The CPU's kernel is compiled for levels of processors, and read where nobody may write."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding

import app
from app.model.compiled import LEVELS, level_of, variables_of

V3 = dict.fromkeys(LEVELS["x86-64-v3"], True)
V4 = V3 | dict.fromkeys(LEVELS["x86-64-v4"], True)
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24  # linux/capability.h, linux/prctl.h
START = """
from app.api import json_text
from app.model import kernel, kernel_attention, kernel_int8
for module in (kernel, json_text):
    module.prepare()
assert kernel.why_not() is None
assert kernel_attention.why_not() is None
assert kernel_int8.why_not() is None
stats = [kernel.add_updates.stats, kernel_attention.attend.stats]
stats += [kernel_int8.multiply.stats, json_text._scan.stats]
print(sum(sum(s.cache_hits.values()) for s in stats), sum(sum(s.cache_misses.values()) for s in stats))
"""
LOAD = "".join(line for line in START.splitlines(True) if not line.startswith("assert"))
LOAD = LOAD.replace("(kernel, json_text)", "(kernel, kernel_attention, kernel_int8, json_text)")
LOAD = LOAD.replace("prepare()", "compile_only()")


def test_a_processor_has_the_level_whose_features_are_all_there() -> None:
    assert level_of(V4) == "x86-64-v4"
    assert level_of(V3) == "x86-64-v3"
    assert level_of(V4 | {"avx512vnni": True}) == "x86-64-v4+avx512vnni"
    assert level_of(V3 | {"avx512vnni": True}) == "x86-64-v3"
    assert level_of(V4 | {"avx512vl": False}) == "x86-64-v3"  # Knights Landing
    assert level_of(V4 | {"fma": False}) is None
    assert level_of({"sse4.2": True}) is None
    assert level_of({"neon": True, "fp-armv8": True}) is None  # aarch64: numba decides


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, compiled for every level as the image's build does it."""
    folder = tmp_path_factory.mktemp("installation")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(app.__file__).parent, folder / "app", ignore=ignored)
    run(folder, "-m", "app.model.compiled")
    return folder


def run(folder: Path, *arguments: str, **environ: str) -> str:
    """A Python with this installation alone, no home, and no way around a folder's permissions."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(folder), "HOME": "/proc", **environ},
        preexec_fn=_as_anybody,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def _as_anybody() -> None:
    """Root may write everywhere, but for what it gives up before exec."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or level_of(binding.get_host_cpu_features()) is None,
    reason="needs a processor of one of the levels, and Linux's permissions",
)
def test_a_read_only_installation_compiles_nothing_at_its_start(
    installation: Path, tmp_path: Path
) -> None:
    shipped = [installation / "app" / room / "__pycache__" for room in ("model", "api")]
    before = {file: file.read_bytes() for folder in shipped for file in folder.glob("*.nb?")}
    for folder in shipped:
        folder.chmod(0o555)
    try:
        assert run(installation, "-c", START, TMPDIR=str(tmp_path)) == "4 0\n"
        for level in LEVELS:
            asked = {**variables_of(level), "TMPDIR": str(tmp_path)}
            assert run(installation, "-c", LOAD, **asked) == "4 0\n", level
        assert list(tmp_path.iterdir()) == []  # and leaves nothing behind
    finally:
        for folder in shipped:
            folder.chmod(0o755)
    assert before == {
        file: file.read_bytes() for folder in shipped for file in folder.glob("*.nb?")
    }
    assert {file.parent for file in before} == set(shipped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "instruction"), [*zip(LEVELS, ["vpmaddwd", "vpmaddwd", "vpdpwssd"], strict=True)]
)
def test_a_product_in_int8_sums_pairs_by_the_levels_own_instruction(
    level: str, instruction: str, tmp_path: Path
) -> None:
    assembly = run(
        Path(app.__file__).parents[1],
        "-c",
        "from app.model import kernel_int8 as kernel\nkernel.compile_only()\n"
        "print(*kernel.multiply.inspect_asm().values())",
        **variables_of(level),
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    found = {name: assembly.count(name) for name in ("vpmaddwd", "vpdpwssd", "vpmulld")}
    assert found[instruction] >= 6 and sum(found.values()) == found[instruction], found


def test_code_that_is_of_other_tiles_is_compiled_anew(tmp_path: Path) -> None:
    """numba looks at the file of a function alone."""
    package = tmp_path / "app"
    shutil.copytree(
        Path(app.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    asked = "from app.model import kernel_attention as k\nassert k.why_not() is None\n"
    asked += "print(sum(k.attend.stats.cache_hits.values()))"

    def hits() -> str:
        return run(tmp_path, "-c", asked, NUMBA_CACHE_DIR=str(tmp_path / "cache")).strip()

    assert [hits(), hits()] == ["0", "1"]
    for tiles in ("vectors.py", "vector_tiles.py"):
        (package / "model" / tiles).write_text((package / "model" / tiles).read_text() + "# other")
        assert hits() == "0"


@pytest.mark.slow
@pytest.mark.parametrize("level", list(LEVELS))
def test_what_is_compiled_for_a_level_is_right(level: str, tmp_path: Path) -> None:
    """Those that this processor has: the vectors of a level are as wide as its registers."""
    here = level_of(binding.get_host_cpu_features())
    if here is None or list(LEVELS).index(level) > list(LEVELS).index(here):
        pytest.skip("this processor has not that level")
    files = [f"tests/model/test_{name}.py" for name in ("delta", "attention", "fast_paths")]
    environ = {**os.environ, **variables_of(level), "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-o", "addopts=", *files]
    done = subprocess.run(
        [*command, "--import-mode=importlib"],
        cwd=Path(app.__file__).parents[1],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
