"""Tasks that a deployment names, each an adapter, a prompt and a pooling, for clients to ask by.

Knows names and values; loads no adapter and embeds nothing (embed.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.adapters.sentence import MAX_PROMPT_LENGTH, Pooling
from app.catalog.pointer import valid_name
from app.inference.caller import Caller
from app.inference.errors import Invalid

LONGEST_SHOWN = 100  # characters of a name that nobody knows


class TasksRefused(Exception):
    """The tasks' file is not one, with the reason."""


def _adapter_name(name: str) -> str:
    if not valid_name(name):
        raise ValueError(f"{name!r} is no adapter name (a-z 0-9 . _ -)")
    return name


class Task(BaseModel):
    """adapter: None: the one that the call chooses. prompt, pooling: None: as the adapter says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    adapter: Annotated[str, AfterValidator(_adapter_name)] | None = None
    prompt: str | None = Field(None, max_length=MAX_PROMPT_LENGTH)
    pooling: Pooling | None = None

    def fits(self, adapters: Collection[str]) -> bool:
        """Is none of the adapters that a call chooses another one than the task's?"""
        return self.adapter is None or all(name == self.adapter for name in adapters)


Tasks = Mapping[str, Task]
_FILE = TypeAdapter(dict[str, Task])


def read_tasks(path: Path) -> Tasks:
    """A JSON file: an object of tasks by name. Raises TasksRefused, naming what is wrong."""
    try:
        return _FILE.validate_json(path.read_bytes())
    except OSError as error:
        raise TasksRefused(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        faults = (": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors())
        raise TasksRefused(f"{path}: {'; '.join(faults)}") from None


def usable_tasks(tasks: Tasks, caller: Caller) -> Tasks:
    """Those whose adapter the caller may use, by name, sorted."""
    return {
        name: task
        for name, task in sorted(tasks.items())
        if task.adapter is None or caller.may_use(task.adapter)
    }


def find_task(tasks: Tasks, name: str | None, caller: Caller) -> Task:
    """The task of this name; for None one that changes nothing. Raises Invalid for an unknown."""
    if name is None:
        return Task()
    if name in tasks:
        return tasks[name]
    known = ", ".join(usable_tasks(tasks, caller)) or "none (BERT_LORA_TASKS_FILE is to name them)"
    raise Invalid("task", f"is {name[:LONGEST_SHOWN]!r}; this server names {known}")
