"""numba's compiler for a level of processors, not for this very one, and with a place for its code.

numba's cache is keyed by the processor's name and features: an image compiled on one machine would
compile again on every other, at each start. Here the key is the processor's level of x86-64. Two
levels, compiled when the image is built, serve all (docs/decisions/0012). Knows processors and
folders; knows no mathematics.

    python -m app.model.compiled        compile every level into this installation
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llvmlite import binding
from numba import config, njit
from numba.core.caching import _CacheLocator

# What a processor needs beyond the level before, in LLVM's words. The last is no level of x86-64:
# kernel_int8 alone gains by it, and sums by one instruction instead of two.
LEVELS = {
    "x86-64-v3": ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "x86-64-v4+avx512vnni": ("avx512vnni",),
}
MODULES = (
    "app.model.kernel",
    "app.model.kernel_attention",
    "app.model.kernel_int8",
    "app.api.json_text",
)  # that have something to compile
PACKAGE = Path(__file__).parents[1]
# What writes machine code into functions of other files.
TILES = [
    hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest()
    for name in ("vectors.py", "vector_tiles.py")
]
NAMES = "__pycache__/*.nb?"  # beside the sources: an index for each function, and what it points to


def level_of(features: Mapping[str, bool]) -> str | None:
    """The highest level whose features, and those of all below, are there; None: not even one."""
    highest = None
    for level, needed in LEVELS.items():
        if not all(features.get(name) for name in needed):
            break
        highest = level
    return highest


def variables_of(level: str) -> dict[str, str]:
    """What tells numba to compile for it."""
    name, _, feature = level.partition("+")
    return {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": f"+{feature}" if feature else ""}


def lanes() -> int:
    """How many float32 a vector register of the processor that is compiled for has.

    At least 8: where it has fewer, LLVM takes several.
    """
    return 16 if os.environ.get("NUMBA_CPU_NAME", "").startswith("x86-64-v4") else 8


def _compile_for_a_level() -> None:
    """Unless the environment says for which processor; on others than x86-64-v3 numba decides."""
    if "NUMBA_CPU_NAME" in os.environ:
        return
    try:
        level = level_of(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM does not know this platform's
        return
    if level is not None:
        os.environ.update(variables_of(level))
        config.reload_config()


def _read_from_where_nobody_may_write(package: Path) -> Any:
    """Copy what was shipped to where numba may write: it takes no other folder, not to read either.

    package: the folder of the modules whose code it is. Returns the new folder as an object that
    removes it at its own end; None where there is nothing to copy, or no need to.
    """
    if config.CACHE_DIR or not (files := list(package.rglob(NAMES))):
        return None
    try:
        for folder in {file.parent for file in files}:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        try:
            copy = tempfile.TemporaryDirectory(prefix="bert-lora-numba-")
            for file in files:
                source = file.parents[1] / "any.py"  # numba names a place by the source's folder
                place = Path(copy.name, _CacheLocator.get_suitable_cache_subpath(str(source)))
                place.mkdir(exist_ok=True)
                shutil.copy(file, place)
        except OSError:  # nowhere at all: it is compiled at this start
            return None
        os.environ["NUMBA_CACHE_DIR"] = copy.name
        config.reload_config()
        return copy
    return None


_compile_for_a_level()
_copy = _read_from_where_nobody_may_write(PACKAGE)


def compiled(**options: Any) -> Callable[[Any], Any]:
    """numba's njit. Its code stays on disk, where one may write: seconds less at each start."""

    def decorate(function: Any) -> Any:
        try:
            return _stamped(njit(cache=True, error_model="numpy", **options)(function))
        except RuntimeError:  # a read-only installation without a home
            return njit(error_model="numpy", **options)(function)

    return decorate


def _stamped(function: Any) -> Any:
    """Whose code on disk is of these tiles: numba asks for the function's own file alone."""
    cached = getattr(getattr(function, "_cache", None), "_cache_file", None)  # none without JIT
    if cached is not None:
        cached._source_stamp = (cached._source_stamp, TILES)
    return function


def main() -> None:
    """Compile each level in a process of its own, as numba does one a process; run nothing."""
    compile_it = "".join(f"import {module}; {module}.compile_only()\n" for module in MODULES)
    for level in LEVELS:
        environ = {**os.environ, **variables_of(level)}
        subprocess.run([sys.executable, "-c", compile_it], env=environ, check=True)


if __name__ == "__main__":
    main()
