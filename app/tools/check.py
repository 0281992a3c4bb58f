"""`bert-lora check`: the report that an upload would get, with no server, and a picture of the
change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from app.adapters.changes import weight_changes
from app.adapters.recipe import Options
from app.adapters.refusals import AdapterRejected, UploadTooLarge
from app.catalog.stored_version import StoredVersion
from app.tools.workbench import Workbench, adapter_folder, workbench

SHADES = " ░▒▓█"
WHOLE_AT = 0.2  # a change of a fifth of the weight fills the shade
BAR = 30  # characters
NUMBERED = re.compile(r"(?P<before>.*?\.)(?P<layer>\d+)\.(?P<module>.+)")


def check(source: Path, model: str | None, options: Options, *, as_json: bool) -> tuple[str, bool]:
    """(what to print, whether the adapter would be served). Raises BaseRefused,
    EmbeddedBaseMissing.
    """
    with workbench(model) as bench:
        try:
            with adapter_folder(source) as folder:
                version = bench.load(folder, options)
        except AdapterRejected as error:
            return (_refusal_json if as_json else _refusal)(error), False
        except UploadTooLarge as error:
            return str(error), False
        if as_json:
            return json.dumps({"name": source.stem, **version.report.to_json()}, indent=2), True
        return _report(source, version, bench), True


def _refusal(error: AdapterRejected) -> str:
    lines = [f"would be refused: {error.message}"]
    lines += [f"  {p.tensor or 'the upload'}: {p.reason}" for p in error.problems]
    return "\n".join(lines)


def _refusal_json(error: AdapterRejected) -> str:
    problems = [
        {"reason": p.reason, **({"tensor": p.tensor} if p.tensor else {})} for p in error.problems
    ]
    refusal = {"error": error.message, "error_type": "adapter_rejected", "problems": problems}
    return json.dumps(refusal, indent=2)


def _report(source: Path, version: StoredVersion, bench: Workbench) -> str:
    report = version.report
    base = bench.encoder.base
    scale = "several scales" if report.scale is None else f"scale {report.scale:g}"
    targets = ", ".join(f"{name} × {count}" for name, count in report.targets.items())
    labels = f", labels {', '.join(report.labels[:6])}" if report.labels else ""
    more = f" and {len(report.labels) - 6} more" if len(report.labels) > 6 else ""
    tensors = report.tensors
    lines = [
        f"{source.name}: would be served on {bench.encoder.files.id} ({base.described})",
        f"  {report.kind} ({report.layout}), rank {report.rank}, {scale}; {targets}",
        f"  task {report.task}{labels}{more}; pooling {report.pooling}, "
        f"up to {report.max_length} tokens",
        f"  {tensors.in_file} tensors, {tensors.used} used, "
        f"{len(tensors.ignored)} that repeat what others say; {report.bytes:,} bytes",
        f"  certificate: {report.certified} answers hold" if report.certified else "",
        *(f"  warning: {warning}" for warning in report.warnings),
        f"  the output moves by {100 * report.delta.relative:.1f} % on the probe text",
        "",
        "hidden states moved, layer by layer",
        *_bars(report.delta.layers),
        "",
        *_grid(weight_changes(version.adapter, base)),
    ]
    return "\n".join(line for i, line in enumerate(lines) if line or i > 4)


def _bars(moved: Sequence[float]) -> list[str]:
    most = max([*moved, 1e-12])
    return [
        f"  layer {i:2} {'█' * round(BAR * share / most):{BAR}} {100 * share:5.1f} %"
        for i, share in enumerate(moved)
    ]


def _grid(changes: dict[str, float]) -> list[str]:
    """A row per module, a column per layer; darker is more. What is in no layer stands below."""
    rows: dict[str, dict[int, float]] = {}
    single: dict[str, float] = {}
    for path, share in changes.items():
        match = NUMBERED.fullmatch(path)
        if match:
            rows.setdefault(match["module"], {})[int(match["layer"])] = share
        else:
            single[path] = share
    columns = 1 + max((layer for row in rows.values() for layer in row), default=-1)
    width = max((len(name) for name in [*rows, *single]), default=0)
    lines = [f"weights changed, a column per layer (█ from {100 * WHOLE_AT:.0f} %)"]
    for name, row in rows.items():
        cells = "".join(_shade(row.get(layer)) for layer in range(columns))
        lines.append(f"  {name:{width}} |{cells}| {_range(list(row.values()))}")
    lines += [
        f"  {name:{width}} {_shade(share)} {_range([share])}" for name, share in single.items()
    ]
    return lines


def _shade(share: float | None) -> str:
    if not share:
        return SHADES[0]
    return SHADES[min(len(SHADES) - 1, 1 + int(share / WHOLE_AT * (len(SHADES) - 1)))]


def _range(shares: list[float]) -> str:
    least, most = 100 * min(shares), 100 * max(shares)
    return f"{most:.1f} %" if least == most else f"{least:.1f} to {most:.1f} %"
