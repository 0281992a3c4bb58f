"""A base's forward, written down from transformers' own modules, for every architecture alike.

They run twice over tensors without values, of two lengths, while torch.fx writes down each
operator: what differs between the two lists must be the number of rows, or the base is refused. In
the place of each layer, and of the attention, stands a placeholder (docs/decisions/0027).
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from app.model.base_files import BaseRefused

SHORT = 3  # tokens; the other list is of the longest text


@dataclass(frozen=True, eq=False)
class Written:
    """graph: of running, rows, ids, token_types, positions -> the last hidden states [1, T, H], and
    those before the first layer and after each. constants: what it reads besides, by name.
    """

    graph: fx.Graph
    constants: Mapping[str, Tensor]


def takes_types(model: nn.Module) -> bool:
    """Whether transformers' forward reads token types."""
    return "token_type_ids" in inspect.signature(type(model).forward).parameters


def write_down(model: nn.Module, longest: int, device: torch.device) -> Written:
    """model: transformers', with placeholders in it (lora.insert_lora). longest: tokens of a text.

    Raises BaseRefused where it computes otherwise for texts of another length, and whatever torch
    does where its forward cannot be written down.
    """
    root, other = (_written(model, rows, device) for rows in (SHORT, longest))
    graph = _by_length(root, other, (SHORT, longest))
    names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return Written(graph, {name: operator.attrgetter(name)(root) for name in names})


def _written(model: nn.Module, rows: int, device: torch.device) -> fx.GraphModule:
    """transformers' forward of one text of so many tokens, operator by operator."""
    from torch.fx.experimental.proxy_tensor import make_fx  # half a second, where it is not needed

    types = takes_types(model)

    def forward(ids: Tensor, token_types: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        more = {"token_type_ids": token_types} if types else {}
        out = model(input_ids=ids, position_ids=positions, output_hidden_states=True, **more)
        return out.last_hidden_state, *out.hidden_states

    ids = [torch.zeros(1, rows, dtype=torch.long, device=device) for _ in range(3)]
    with torch.no_grad():
        return make_fx(forward, tracing_mode="fake", _allow_non_fake_inputs=True)(*ids)


def _by_length(root: fx.GraphModule, longer: fx.GraphModule, lengths: tuple[int, int]) -> fx.Graph:
    """One list for all lengths from those of two. Two arguments come before the others: the pass,
    and the number of rows, which stands wherever the two have their own length."""
    graph = root.graph
    own, others = list(graph.nodes), list(longer.graph.nodes)
    with graph.inserting_before(own[0]):
        graph.placeholder("running")
        rows = graph.placeholder("rows")
    if [node.target for node in own] != [node.target for node in others]:
        raise _by_its_length("has other operators")
    for node, other in zip(own, others, strict=True):
        if node.op == "get_attr" and not torch.equal(*(_tensor(m, node) for m in (root, longer))):
            raise _by_its_length("computes with another tensor")
        flat, spec = pytree.tree_flatten((node.args, node.kwargs))
        theirs, their_spec = pytree.tree_flatten((other.args, other.kwargs))
        if spec != their_spec:
            raise _by_its_length(f"calls {node.target} in two ways")
        joined = [_same(a, b, lengths, rows) for a, b in zip(flat, theirs, strict=True)]
        node.args, node.kwargs = pytree.tree_unflatten(joined, spec)
    return graph


def _tensor(module: nn.Module, node: fx.Node) -> Tensor:
    tensor: Tensor = operator.attrgetter(str(node.target))(module)
    return tensor


def _same(a: Any, b: Any, lengths: tuple[int, int], rows: fx.Node) -> Any:
    if isinstance(a, fx.Node) and isinstance(b, fx.Node) and a.name == b.name:
        return a  # nodes are named in their order
    if not isinstance(a, fx.Node) and a == b:
        return a
    if (a, b) == lengths:
        return rows
    raise _by_its_length(f"computes with {a} or {b}")


def _by_its_length(what: str) -> BaseRefused:
    return BaseRefused(f"its forward {what} by the length of a text: it would be served wrong")
