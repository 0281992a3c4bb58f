"""Where a command's answers come from, a server or this process; what its failures are called.

Exit codes: 0 done; 1 refused, or an input that cannot be read; 2 a wrong command line; 3 no server
answered, or it stayed busy, so that the same command may work later; 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bert_lora.errors import BertLoraError, Unavailable, Unreachable

if TYPE_CHECKING:
    from bert_lora.calls import Calls
    from bert_lora.client import Client

REFUSED, WRONG_USE, NO_ANSWER, INTERRUPTED = 1, 2, 3, 130
HERE = "adapter"  # the name of the one that --local loads

Url = Annotated[
    str, typer.Option("--url", envvar="BERT_LORA_URL", help="The server's.", show_envvar=True)
]
Key = Annotated[
    str | None,
    typer.Option("--api-key", envvar="BERT_LORA_API_KEY", help="Of the server.", show_envvar=True),
]
AdapterName = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="NAME, NAME@VERSION or a sum, a:0.7+b:0.3; with --local a PEFT folder or a file.",
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Run the model here, without a server.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="With --local: a folder or hub id. [default: the embedded one]"),
]
Patience = Annotated[
    float,
    typer.Option(min=0, help="Seconds that a request may wait for a server that is full or away."),
]
URL, PATIENCE_S = "http://127.0.0.1:8080", 300.0


class WrongUse(Exception):
    """Options that do not go together, or not with this file."""


class BadInput(Exception):
    """A file that cannot be read as it was said to be, with the row."""


@dataclass(frozen=True)
class Place:
    """Where the answers come from. adapter: as the user spelled it."""

    url: str
    api_key: str | None
    adapter: str | None
    local: bool
    model: str | None
    patience_s: float

    @contextmanager
    def calls(self) -> Iterator[Calls]:
        """The calls, with the adapter. Raises WrongUse, BertLoraError."""
        if self.model and not self.local:
            raise WrongUse("--model is for --local; a server has its own")
        with self._local() if self.local else self._server() as calls:
            yield calls

    def _server(self) -> Calls:
        from bert_lora.client import Client

        return Client(
            self.url, api_key=self.api_key, adapter=self.adapter, patience=self.patience_s
        )

    def _local(self) -> Calls:
        import transformers

        from bert_lora.local import load

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        adapters = {} if self.adapter is None else {HERE: Path(self.adapter)}
        return load(self.model, adapters, adapter=HERE if adapters else None)

    @property
    def told(self) -> dict[str, str | None]:
        """What a run that is resumed must have in common with the one before."""
        return {"adapter": self.adapter, "model": self.model}


@contextmanager
def server(url: str, api_key: str | None) -> Iterator[Client]:
    """A client for a short command; failures are told."""
    from bert_lora.client import Client

    with told(), Client(url, api_key=api_key, patience=30) as client:
        yield client


@contextmanager
def told() -> Iterator[None]:
    """Failures become a line on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        code, reason = INTERRUPTED, "interrupted"
    except WrongUse as error:
        code, reason = WRONG_USE, str(error)
    except (Unreachable, Unavailable) as error:
        code, reason = NO_ANSWER, str(error)
    except (BertLoraError, BadInput) as error:
        code, reason = REFUSED, str(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        code, reason = REFUSED, str(error)
    else:
        return
    typer.echo(f"bert-lora: {reason}", err=True)
    raise typer.Exit(code)
