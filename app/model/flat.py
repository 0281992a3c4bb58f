"""A base's forward as one flat list of calls, written down at load from transformers' own modules.

transformers' modules say what is computed, for every architecture that is served. They run twice
over tensors without values, of two lengths, while torch.fx writes down each operator: what differs
between the two lists must be the number of rows, or the base is refused. Then our own layers take
the place of theirs, and Linears that read the same rows become one product. What runs for a request
has no modules, no hooks and no branches (docs/decisions/0027).
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from app.model import placeholders
from app.model.base_files import BaseRefused
from app.model.forward_pass import Pass
from app.model.int8 import Int8Linear
from app.model.linears import Linears
from app.model.lora import EmbeddingWithLoRA, LinearWithLoRA, NormWithLoRA

SHORT = 3  # tokens; the other list is of the longest text
Attention = Callable[..., Tensor]
Joins = Callable[[nn.Linear | Int8Linear], bool]


@dataclass(frozen=True, eq=False)
class Flat:
    """One base's forward, and the products that are in it."""

    products: list[Linears]
    _last: Callable[..., tuple[Tensor, ...]]
    _all: Callable[..., tuple[Tensor, ...]]

    def last(self, running: Pass) -> Tensor:
        """The last hidden states [1, T, H]."""
        return self._last(*_arguments(running))[0]

    def all(self, running: Pass) -> tuple[Tensor, ...]:
        """The last hidden states, and those before the first layer and after each."""
        return self._all(*_arguments(running))


def _arguments(running: Pass) -> tuple[Any, ...]:
    inputs = running.inputs
    ids = inputs.input_ids
    return running, ids.shape[1], ids, inputs.token_type_ids, inputs.position_ids


def takes_types(model: nn.Module) -> bool:
    """Whether its forward reads token types."""
    return "token_type_ids" in inspect.signature(type(model).forward).parameters


def flatten(
    model: nn.Module,
    linears: Mapping[str, LinearWithLoRA],
    attention: Attention,
    longest: int,
    device: torch.device,
    joins: Joins,
) -> Flat:
    """Write the forward down. model: with placeholders in it (lora.insert_lora). longest: tokens
    of a text. joins: whether a Linear becomes one product with those that read the same rows.
    Raises BaseRefused where it computes otherwise for texts of another length.
    """
    root, other = (_written(model, rows, device) for rows in (SHORT, longest))
    graph = _by_length(root, other, (SHORT, longest))
    products = _ours(graph, model, linears, attention, joins)
    graph.eliminate_dead_code()
    short = copy.deepcopy(graph)
    (output,) = short.find_nodes(op="output")
    output.args = (output.args[0][:1],)
    short.eliminate_dead_code()
    return Flat(products, _compiled(root, short), _compiled(root, graph))


def _written(model: nn.Module, rows: int, device: torch.device) -> fx.GraphModule:
    """transformers' forward of one text of so many tokens, operator by operator."""
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


def _ours(
    graph: fx.Graph,
    model: nn.Module,
    linears: Mapping[str, LinearWithLoRA],
    attention: Attention,
    joins: Joins,
) -> list[Linears]:
    """Our layers in the place of the placeholders."""
    running = next(iter(graph.nodes))
    products: dict[tuple[str, ...], Linears] = {}
    for nodes in _that_read_the_same(graph, linears, joins):
        paths = tuple(str(node.args[1]) for node in nodes)
        if paths not in products:
            products[paths] = Linears([linears[path] for path in paths])
        _multiply(graph, running, nodes, products[paths])
    for node in graph.nodes:
        if node.target in (placeholders.norm, placeholders.embedding):
            layer = model.get_submodule(node.args[1])
            assert isinstance(layer, NormWithLoRA | EmbeddingWithLoRA)
            node.target, node.args = layer.rows, (running, node.args[0])
        elif node.target is placeholders.attention:
            node.target, node.args = attention, (running, *node.args)
    return list(products.values())


def _that_read_the_same(
    graph: fx.Graph, linears: Mapping[str, LinearWithLoRA], joins: Joins
) -> list[list[fx.Node]]:
    """The Linears' nodes; in one list where one product may serve them."""
    found: dict[Any, list[fx.Node]] = {}
    for node in graph.find_nodes(op="call_function", target=placeholders.linear):
        linear = linears[str(node.args[1])].linear
        key = node.args[0], linear.bias is not None, linear.out_features
        found.setdefault(key if joins(linear) else node, []).append(node)
    return list(found.values())


def _multiply(
    graph: fx.Graph, running: fx.Node, nodes: Sequence[fx.Node], product: Linears
) -> None:
    first = nodes[0]
    with graph.inserting_before(first):
        every = graph.call_function(product.rows, (running, first.args[0]))
        for i, node in enumerate(nodes):
            one = graph.call_function(operator.getitem, (every, i)) if len(nodes) > 1 else every
            node.replace_all_uses_with(one)
    for node in nodes:
        graph.erase_node(node)


def _compiled(root: nn.Module, graph: fx.Graph) -> Callable[..., tuple[Tensor, ...]]:
    module = fx.GraphModule(root, graph)
    forward: Callable[..., tuple[Tensor, ...]] = module.forward
    return forward
