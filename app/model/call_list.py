"""A forward that was written down, as JSON and back: operators by name, with their arguments.

Only operators of torch's own library and our placeholders have a name here. Knows graphs; knows no
files and no layers.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from app.model import placeholders

LIBRARIES = ("aten", placeholders.LIBRARY)
GETITEM = "getitem"
NODE, DEVICE, TORCH = "node:", "device:", "torch:"  # no operator has an argument of such a name
OF_TORCH = (torch.dtype, torch.layout, torch.memory_format)


def to_json(graph: fx.Graph) -> list[Any]:
    """Raises TypeError for what has no place in it."""
    return [
        [node.op, node.name, _name(node), _plain(list(node.args)), _plain(dict(node.kwargs))]
        for node in graph.nodes
    ]


def from_json(calls: list[Any]) -> fx.Graph:
    """Raises TypeError, ValueError, LookupError and AttributeError for what to_json has not
    written.
    """
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs in calls:
        called = _function(target) if op == "call_function" else target
        nodes[name] = graph.create_node(
            op, called, tuple(_value(args, nodes)), _value(kwargs, nodes), name
        )
    return graph


def _name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return GETITEM
    name = str(node.target)
    if node.op == "call_function" and name.partition(".")[0] not in LIBRARIES:
        raise TypeError(f"{name} is no operator of {', '.join(LIBRARIES)}")
    return name


def _function(name: str) -> Any:
    if name == GETITEM:
        return operator.getitem
    library, operation, overload = name.split(".")
    if library not in LIBRARIES:
        raise ValueError(f"{library} is none of {', '.join(LIBRARIES)}")
    return getattr(getattr(getattr(torch.ops, library), operation), overload)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, fx.Node):
        return {NODE: value.name}
    if isinstance(value, torch.device):
        return {DEVICE: str(value)}
    if isinstance(value, OF_TORCH):
        return {TORCH: str(value).removeprefix("torch.")}
    raise TypeError(f"{type(value).__name__} has no place in a list of calls")


def _value(plain: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(plain, list):
        return [_value(one, nodes) for one in plain]
    if not isinstance(plain, dict):
        return plain
    if NODE in plain:
        return nodes[plain[NODE]]
    if DEVICE in plain:
        return torch.device(plain[DEVICE])
    if TORCH in plain:
        return getattr(torch, plain[TORCH])
    return {key: _value(one, nodes) for key, one in plain.items()}
