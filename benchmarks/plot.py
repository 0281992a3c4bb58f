"""What the benchmarks measured, as pictures: JSON last lines -> SVG, and the Markdown that shows
them.

    python -m benchmarks.plot docs/plots/data/*.json [--out docs/plots]

Each file is a benchmark's output (its last line is read) or that line alone: an object with `runs`,
or one run. A run with `ms`, or with `ratios` alone, becomes bars; runs with ratios named `4
adapters / packed` become one picture of what adapters cost over the plain base. The command is the
object's `command`, or else the benchmark of the file's name. Everything is drawn on a white card,
so that it reads the same on a dark page.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, EDGE, ROW, LETTER = 760, 20, 28, 6.9  # px; of 12 px letters, on average
OURS = re.compile(r"(ours|engine|packed)\b")
ADAPTERS = re.compile(r"(\d+) adapters / packed")
BLUE, PALE_BLUE, GREY, INK, FAINT = "#1f6feb", "#7fb0f7", "#a3acb9", "#1f2328", "#d8dee4"
# Okabe and Ito's, which colour-blind people tell apart.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
PLOT_HEIGHT = 260


@dataclass(frozen=True)
class Picture:
    """name: its file's, without .svg. rows: a table of the same, its head first."""

    name: str
    title: str
    svg: str
    rows: Sequence[Sequence[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/plots"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for file in args.result:
        result = read(file)
        found = list(pictures(file.stem, result))
        if not found:
            parser.error(f"{file} has no ms and no ratios")
        if len({picture.name for picture in found}) < len(found):
            parser.error(f"{file} has two runs of one title, base, dtype and cores")
        for picture in found:
            (args.out / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
            print(markdown(picture, said(file.stem, result)))


def read(file: Path) -> dict[str, Any]:
    """The file's last line that says something."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return dict(json.loads(lines[-1]))


def said(stem: str, result: Mapping[str, Any]) -> tuple[str, str]:
    """(command, machine and versions)."""
    machine = result.get("machine", {})
    parts = [
        str(machine.get("cpu", "unknown machine")),
        f"a machine of {machine.get('cores', '?')} cores",
    ]
    versions = result.get("versions", {})
    parts += [f"{name} {v}" for name, v in versions.items() if isinstance(v, str)]
    if "infinity-emb" in versions:
        parts.append(f"infinity-emb {versions['infinity-emb'].get('infinity-emb')}")
    return str(result.get("command", f"python -m benchmarks.{stem}")), ", ".join(parts)


def pictures(stem: str, result: Mapping[str, Any]) -> Iterable[Picture]:
    runs = [run for run in result.get("runs", [result]) if run.get("ms") or run.get("ratios")]
    note, rounds = said(stem, result), result.get("rounds")
    for run in runs:
        yield bars(stem, run, note, rounds)
    costs = {_title(stem, run): _costs(run) for run in runs}
    if any(costs.values()):
        yield lines(stem, {title: points for title, points in costs.items() if points}, note)


def _title(stem: str, run: Mapping[str, Any]) -> str:
    if "title" in run:
        return str(run["title"])
    cores = run.get("cores", run.get("threads"))
    known = [
        run.get("base"),
        run.get("dtype"),
        run.get("texts") and f"{run['texts']} texts",
        cores and f"{cores} core{'s' * (cores > 1)}",
    ]
    return ", ".join(str(part) for part in known if part) or stem


def _costs(run: Mapping[str, Any]) -> dict[int, float]:
    """Adapters -> percent over the plain base."""
    found = ((ADAPTERS.fullmatch(name), value) for name, value in run.get("ratios", {}).items())
    return {int(m[1]): 100 * (value - 1) for m, value in found if m}


def bars(stem: str, run: Mapping[str, Any], note: tuple[str, str], rounds: int | None) -> Picture:
    """One bar a name; behind it the value, and how many times ours it is where the run says so."""
    title, timed = _title(stem, run), bool(run.get("ms"))
    values: dict[str, float] = dict(run["ms"] if timed else run["ratios"])
    unit = "ms" if timed else "times"
    times = _times_ours(run) if timed else {}
    left = EDGE + LETTER * max(map(len, values)) + 10
    labels = {name: f"{_number(v)} {unit}{times.get(name, '')}" for name, v in values.items()}
    room = WIDTH - left - EDGE - LETTER * max(map(len, labels.values())) - 10
    ticks = _ticks(max(values.values()))
    top, height = 48, ROW * len(values)
    drawn = []
    for tick in ticks:
        x = left + room * tick / ticks[-1]
        drawn += [
            _line(x, top, x, top + height, FAINT),
            _text(x, top + height + 16, _number(tick), "middle"),
        ]
    for i, (name, value) in enumerate(values.items()):
        y, wide = top + ROW * i, room * value / ticks[-1]
        drawn.append(_text(left - 8, y + 19, name, "end"))
        drawn.append(
            f'<rect x="{left:.1f}" y="{y + 5}" width="{wide:.1f}" height="18" rx="2" fill="{_colour(name)}"/>'
        )
        drawn.append(_text(left + wide + 6, y + 19, labels[name]))
    counted = f", median of {rounds} rounds" if rounds else ", median of the rounds"
    axis = f"{'milliseconds' if timed else 'times'}{counted}; less is better" if timed else "times"
    drawn.append(_text(left + room / 2, top + height + 36, axis, "middle"))
    rows = [["", unit, "times ours"] if times else ["", unit]]
    rows += [
        [name, _number(v), times.get(name, "").removeprefix(", ").removesuffix(" ours")][
            : len(rows[0])
        ]
        for name, v in values.items()
    ]
    return Picture(_slug(stem, title), title, _card(title, drawn, top + height + 50, note), rows)


def _times_ours(run: Mapping[str, Any]) -> dict[str, str]:
    """name -> ', 1.95 × ours': by the run's own ratios, which are not the medians' ratios."""
    names = list(run["ms"])
    found: dict[str, str] = {}
    for pair, value in run.get("ratios", {}).items():
        above, _, below = pair.partition(" / ")
        if above in names and OURS.match(below):
            found.setdefault(above, f", {value:.2f} × {below}")
    return found


def lines(stem: str, costs: Mapping[str, Mapping[int, float]], note: tuple[str, str]) -> Picture:
    """What mixing n adapters in one request costs over the plain base; n doubles from left to
    right.
    """
    title = "What adapters in one request cost over the plain base"
    counts = sorted({n for points in costs.values() for n in points})
    ticks = _ticks(max(max(points.values()) for points in costs.values()), least=5.0)
    low = min(0.0, *(min(points.values()) for points in costs.values()))
    left, top, right = EDGE + 52, 48, WIDTH - EDGE - 10
    span = math.log2(counts[-1] / counts[0]) or 1.0

    def place(n: int, percent: float) -> tuple[float, float]:
        x = left + 14 + (right - left - 28) * math.log2(n / counts[0]) / span
        return x, top + PLOT_HEIGHT * (1 - (percent - low) / (ticks[-1] - low))

    drawn = []
    for tick in ticks:
        y = place(counts[0], tick)[1]
        drawn += [_line(left, y, right, y, FAINT), _text(left - 8, y + 4, f"{tick:g} %", "end")]
    for n in counts:
        drawn.append(_text(place(n, low)[0], top + PLOT_HEIGHT + 18, f"{n:,}", "middle"))
    below = top + PLOT_HEIGHT
    drawn.append(_text((left + right) / 2, below + 38, "adapters in the request", "middle"))
    drawn.append(_upright(EDGE + 2, top + PLOT_HEIGHT / 2, "cost over the plain base, %"))
    for i, (name, points) in enumerate(costs.items()):
        colour, legend = LINES[i % len(LINES)], below + 60 + 18 * i
        at = [place(n, points[n]) for n in sorted(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in at]
        drawn.append(f'<rect x="{left}" y="{legend - 9}" width="18" height="4" fill="{colour}"/>')
        drawn.append(_text(left + 26, legend - 2, name))
    rows = [["", *(f"{n:,}" for n in counts)]]
    for name, points in costs.items():
        rows.append([name, *(f"{points[n]:+.1f} %" if n in points else "" for n in counts)])
    height = below + 60 + 18 * len(costs)
    return Picture(_slug(stem, "adapters"), title, _card(title, drawn, height, note), rows)


def _card(title: str, drawn: Sequence[str], height: float, note: tuple[str, str]) -> str:
    """On white, with its title above and the command and machine below."""
    command, machine = note
    wide = int((WIDTH - 2 * EDGE) / (0.92 * LETTER))
    words = [*textwrap.wrap(f"$ {command}", wide), *textwrap.wrap(machine, wide)]
    notes = [
        _text(EDGE, height + 16 + 15 * i, line, size=11, fill="#59636e")
        for i, line in enumerate(words)
    ]
    total = round(height + 16 + 15 * len(words) + 4)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {total}" '
        f'width="{WIDTH}" height="{total}" font-family="system-ui, -apple-system, Segoe UI, sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{total - 1}" rx="6" fill="#ffffff" stroke="{FAINT}"/>',
        _text(EDGE, 30, title, size=15, weight="600"),
        *drawn,
        *notes,
        "</svg>\n",
    ])  # fmt: skip


def markdown(picture: Picture, note: tuple[str, str]) -> str:
    """The picture, its command and machine, and its numbers as a table."""
    head, *rows = picture.rows
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    table += [f"| {' | '.join(row)} |" for row in rows]
    shown = f"![{picture.title}](plots/{picture.name}.svg)"
    return "\n".join([shown, "", f"`{note[0]}` on {note[1]}", "", *table, ""])


def _ticks(largest: float, least: float = 0.0) -> list[float]:
    """From 0 to at least `largest`, four to seven of them, at round numbers."""
    largest = max(largest, least) or 1.0
    rough = largest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]


def _number(value: float) -> str:
    """Three or four digits are enough of a measurement."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _colour(name: str) -> str:
    if not OURS.match(name):
        return GREY
    return PALE_BLUE if "," in name else BLUE


def _slug(stem: str, title: str) -> str:
    return f"{stem}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float, y: float, words: str, anchor: str = "start", *, size: int = 12, fill: str = INK, weight: str = "400"
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{fill}">{escape(words)}</text>'
    )


def _upright(x: float, y: float, words: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="12" fill="{INK}" '
        f'transform="rotate(-90 {x:.1f} {y:.1f})" dominant-baseline="hanging">{escape(words)}</text>'
    )


if __name__ == "__main__":
    main()
