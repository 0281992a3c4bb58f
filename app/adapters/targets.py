"""What the config says was trained, against what the file holds: neither is served in part.

PEFT saves every layer that it targets, so one that is missing means half a file; and PEFT ignores
tensors of layers that it does not target, so serving them would be another model than the trained
one. Only layers inside the encoder's stack must be there: a model trained for classification may
have had no pooler.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

from app.adapters.base import Base
from app.adapters.layouts import BASE_LAYER, Parts
from app.adapters.methods.table import METHODS, WHOLE
from app.adapters.recipe import Recipe
from app.adapters.refusals import Problems

IN_STACK = re.compile(r"(^|\.)\d+\.")
ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."
WHOLE_PARTS = WHOLE | {"tokens"}  # what may stand beside what PEFT's method trains


def check_targets(
    recipe: Recipe, base: Base, parts: Parts, targets: Mapping[str, str], problems: Problems
) -> None:
    """A problem for each layer that is targeted and missing, or there and not targeted.

    targets: a module's path in the file -> in the base. Raises AdapterRejected for an expression
    that is none, or takes too long.
    """
    if recipe.configured:
        _Check(recipe, base, parts, targets, problems).run()


def is_target(recipe: Recipe, base: Base, target: str, path: str) -> bool:
    """Does the config target the layer? target: the base's path; path: as the file spells it.

    Raises AdapterRejected, as check_targets does.
    Source: peft.tuners.tuners_utils.check_target_module_exists.
    """
    targeting = recipe.targeting
    names = targeting.target_modules
    if isinstance(names, str) and names.lower() == "all-linear":
        hit = target in base.linears or target not in {*base.embeddings, *base.norms}
    else:
        hit = _matches(recipe, names, path)
    if not hit or _matches(recipe, targeting.exclude_modules, path):
        return False
    if _is_saved_whole(recipe, path):
        return False
    if targeting.layers_to_transform is None or isinstance(names, str):
        return True
    above_layers = path in (names or ())
    return above_layers or _layer_of(recipe, path) in targeting.layers_to_transform


def lost_biases(recipe: Recipe, parts: Parts) -> bool:
    """Was bias=lora_only trained, and saved PEFT none of them, as it did before 0.21?"""
    adapted = [module for module in parts.modules.values() if module.keys() - WHOLE_PARTS]
    saved = recipe.biases_saved or any("bias" in module for module in adapted)
    return recipe.bias == "lora_only" and not saved


@dataclass(frozen=True, eq=False)
class _Check:
    """One file against its config; see check_targets."""

    recipe: Recipe
    base: Base
    parts: Parts
    targets: Mapping[str, str]
    problems: Problems

    def run(self) -> None:
        """All of it."""
        self._missing_whole()
        if not lost_biases(self.recipe, self.parts):
            self._missing_biases()
        self._missing_tokens()
        adapted = {path for path in self.parts.modules if self._is_adapted(path)}
        plain = self.parts.layout == "peft"
        if plain:
            self._out_of_place(adapted)
        if self.recipe.targeting.target_modules is not None:
            self._targets(adapted)
        elif plain:
            reason = "the config does not say target_modules: PEFT would choose its own"
            self.problems.add(reason)

    def _targets(self, adapted: Collection[str]) -> None:
        """The layers that the config targets are those that the file adapts."""
        prefixed = [path.startswith(f"{self.base.prefix}.") for path in self.targets]
        if self.parts.layout == "peft" and any(prefixed) and not all(prefixed):
            reason = "some layers are spelled with the model's prefix, some without"
            self.problems.add(f"{reason}: PEFT would leave one kind out")
        present = {self.targets[path] for path in adapted if path in self.targets}
        for path in self._targetable():
            spelled = self.base.spellings(path)[any(prefixed)]
            if path not in present and is_target(self.recipe, self.base, path, spelled):
                reason = "is targeted by the config, but has no tensors in the file"
                self.problems.add(reason, path)
        for path in sorted(adapted):
            if not is_target(self.recipe, self.base, self.targets.get(path, path), path):
                reason = "is not among the layers that the config targets: PEFT would leave it out"
                self.problems.add(reason, self.parts.name(path))

    def _is_adapted(self, path: str) -> bool:
        """Has the file what PEFT's method itself trains of this layer, and not only the whole?"""
        method, module = METHODS[self.recipe.kind], self.parts.modules[path]
        if method.wrapper is not None:
            return any(self.parts.wrappers.get((path, p)) == method.wrapper for p in module)
        return not method.parts.isdisjoint(module)

    def _targetable(self) -> Iterator[str]:
        """Layers that this method changes and every model has; a pooler is not one of them."""
        method = METHODS[self.recipe.kind]
        if method.wrapper is not None:
            yield from (path for path in self.base.norms if IN_STACK.search(path))
        if method.embedding:
            yield from self.base.embeddings
        if method.linear:
            yield from (path for path in self.base.linears if not path.startswith("pooler"))

    def _out_of_place(self, adapted: Collection[str]) -> None:
        """Whole weights and biases under a name that PEFT does not look up, and leaves out."""
        for (path, part), wrapper in self.parts.wrappers.items():
            if part not in WHOLE:
                continue
            wrapped = path in adapted or self.parts.has(path, "tokens")
            in_place = {
                "": not wrapped,
                BASE_LAYER: wrapped,
                "modules_to_save": _is_saved_whole(self.recipe, path),
            }
            if not in_place.get(wrapper, wrapper == METHODS[self.recipe.kind].wrapper):
                reason = "is not where the config puts this layer's: PEFT would leave it out"
                self.problems.add(reason, self.parts.name(path, part))

    def _missing_tokens(self) -> None:
        """Token ids without their rows."""
        ids = self.recipe.tokens
        if ids is None:
            return
        with_rows = [path for path in self.parts.modules if self.parts.has(path, "tokens")]
        for name in ids if isinstance(ids, Mapping) else [""]:
            if not any(path.endswith(name) for path in with_rows):
                reason = "the config names token ids, and their rows are not in the file"
                self.problems.add(reason, name or None)

    def _missing_whole(self) -> None:
        """Layers in modules_to_save that the file does not bring whole."""
        whole = self._with_part("weight")
        for path in [*self.base.linears, *self.base.embeddings, *self.base.norms]:
            saved = _is_saved_whole(self.recipe, path) and not path.startswith("pooler")
            if saved and path not in whole:
                reason = "is in the config's modules_to_save, but not in the file"
                self.problems.add(reason, path)

    def _missing_biases(self) -> None:
        """Biases that the config says were trained. lora_only: the targets'; all: every one."""
        bias, there = self.recipe.bias, self._with_part("bias")
        with_bias = [
            p for p in (*self.base.linears, *self.base.norms) if self.base.bias(p) is not None
        ]
        match bias:
            case "none":
                return
            case "lora_only":
                modules = self.parts.modules.items()
                adapted = {self.targets.get(path) for path, m in modules if m.keys() - WHOLE_PARTS}
                trained = [path for path in with_bias if path in adapted]
            case "all":
                trained = [path for path in with_bias if IN_STACK.search(path)]
            case _:
                assert_never(bias)
        for path in trained:
            if path not in there:
                self.problems.add(f"bias={bias}, but its bias is not in the file", f"{path}.bias")

    def _with_part(self, part: str) -> set[str | None]:
        """The base's paths of layers that have this part in the file."""
        return {self.targets.get(p) for p in self.parts.modules if self.parts.has(p, part)}


def _matches(recipe: Recipe, names: str | Collection[str] | None, path: str) -> bool:
    if names is None:
        return False
    if isinstance(names, str):
        return recipe.patterns.match(names, path, whole=True) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _layer_of(recipe: Recipe, path: str) -> int | None:
    """The layer's number: the first one, or the first behind one of layers_pattern."""
    patterns = recipe.targeting.layers_pattern
    for pattern in [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in patterns] or [ANY_LAYER]:
        if match := recipe.patterns.match(pattern, path):
            return int(match["idx"])
    return None


def _is_saved_whole(recipe: Recipe, path: str) -> bool:
    """Is the module one of the config's modules_to_save, or inside of one?"""
    return any(f".{name}." in f".{path}." for name in recipe.targeting.modules_to_save)
