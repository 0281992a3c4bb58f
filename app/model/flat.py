"""A base's forward as one flat list of calls, with our own layers in it.

What transformers' modules compute was written down operator by operator (written.py). Our layers
take the place of theirs, and Linears that read the same rows become one product. What runs for a
request has no modules, no hooks and no branches (docs/decisions/0027).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from app.model import placeholders
from app.model.forward_pass import Pass
from app.model.int8 import Int8Linear
from app.model.linears import Linears
from app.model.lora import EmbeddingWithLoRA, LinearWithLoRA, NormWithLoRA
from app.model.written import Written

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


def flatten(
    written: Written,
    model: nn.Module,
    linears: Mapping[str, LinearWithLoRA],
    attention: Attention,
    joins: Joins,
) -> Flat:
    """Put our layers in the place of the placeholders. model: it holds them (lora.insert_lora).
    joins: whether a Linear becomes one product with those that read the same rows.
    """
    graph = copy.deepcopy(written.graph)
    products = _ours(graph, model, linears, attention, joins)
    graph.eliminate_dead_code()
    short = copy.deepcopy(graph)
    (output,) = short.find_nodes(op="output")
    output.args = (output.args[0][:1],)
    short.eliminate_dead_code()
    return Flat(products, _compiled(written, short), _compiled(written, graph))


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


def _compiled(written: Written, graph: fx.Graph) -> Callable[..., tuple[Tensor, ...]]:
    module = fx.GraphModule(dict(written.constants), graph)
    forward: Callable[..., tuple[Tensor, ...]] = module.forward
    return forward
