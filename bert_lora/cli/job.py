"""One run over many texts: from a source, through a server or this process, to an output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from bert_lora.async_calls import AskPiece
from bert_lora.calls import Calls
from bert_lora.cli import outputs
from bert_lora.cli.connection import BadInput, Place, WrongUse, told
from bert_lora.cli.outputs import Order, Row
from bert_lora.cli.part import Part
from bert_lora.cli.sources import Source
from bert_lora.errors import Refused, WrongText
from bert_lora.progress import Bar

Ask = Callable[[Calls], AskPiece]


@dataclass(frozen=True)
class Job:
    """output: None is stdout. progress: None: where stderr is a terminal. command, options: what a
    run that is resumed has in common with the one before.

    row: (index, text, answer) -> a line. order: of all lines. vectors: whether answers are arrays.
    """

    place: Place
    source: Source
    output: Path | None
    resume: bool
    progress: bool | None
    command: str
    options: Mapping[str, Any]
    ask: Ask
    row: Callable[[int, str, Any], Row]
    order: Order | None = None
    vectors: bool = False

    def run(self) -> None:
        """Do it; failures end the command, with what is done so far kept."""
        with told():
            if self.output is None and self.resume:
                raise WrongUse("--resume needs an output file: --output")
            if self.output is None:
                self._print()
            else:
                self._write(self.output)

    def _print(self) -> None:
        rows = []
        with self.place.calls() as calls, self._bar(0) as bar:
            done = 0
            for texts, answers in self._answers(calls, self.source.texts(), set(), 0):
                made = self._rows(done, texts, answers)
                done += len(made)
                bar.add(len(made))
                if self.order is None:
                    outputs.to_stdout(made)
                else:
                    rows += made
        if done == 0:
            raise BadInput(f"{self.source.name} holds no text")
        if self.order is not None:
            outputs.to_stdout(self.order(rows))

    def _write(self, output: Path) -> None:
        kind = outputs.kind_of(output, vectors=self.vectors)
        asked = {"command": self.command, **self.options, **self.place.told}
        if self.resume and output.exists() and not Part.begun(output):
            typer.echo(
                f"bert-lora: {output} is there already, and no run of it was cut off", err=True
            )
            return
        began = time.monotonic()
        asked = {name: value for name, value in asked.items() if value is not None}
        with Part(output, asked, resume=self.resume) as part:
            before = part.rows
            with self.place.calls() as calls, self._bar(before) as bar:
                self._fill(part, kind, calls, bar)
            if part.rows == 0:
                raise BadInput(f"{self.source.name} holds no text")
            outputs.finish(part, output, kind, self.order)
        seconds = time.monotonic() - began
        done = f"{part.rows - before:,} texts in {seconds:.1f} s"
        more = f", {before:,} from before" if before else ""
        typer.echo(f"{done}{more}: {output}", err=True)

    def _fill(self, part: Part, kind: outputs.Kind, calls: Calls, bar: Bar) -> None:
        remaining = part.behind(self.source.texts())
        for texts, answers in self._answers(calls, remaining, part.stamps, part.rows):
            if kind == "npy":
                content = outputs.vector_bytes(answers, first=part.rows == 0)
            else:
                content = outputs.lines(self._rows(part.rows, texts, answers))
            part.write(texts, content)
            bar.add(len(texts))

    def _answers(
        self, calls: Calls, texts: Iterator[str], stamps: set[str], done: int
    ) -> Iterator[tuple[Sequence[Any], Any]]:
        """As Calls.each; a text that is refused is named by its row. Raises BadInput."""
        try:
            yield from calls.each(texts, self.ask(calls), stamps)
        except (Refused, WrongText) as error:
            if error.index is None:
                raise
            raise BadInput(f"{self.source.place(done + error.index)}: {error}") from None

    def _rows(self, start: int, texts: Sequence[Any], answers: Any) -> list[Row]:
        pairs = zip(texts, answers, strict=True)
        return [self.row(start + i, text, answer) for i, (text, answer) in enumerate(pairs)]

    def _bar(self, done: int) -> Bar:
        shown = sys.stderr.isatty() if self.progress is None else self.progress
        return Bar(self.source.count() if shown else None, shown=shown, done=done)
