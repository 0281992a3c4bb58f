"""Where a tokenizer puts its special tokens around a text or a pair, learned once from itself.

The tokenizer's own post-processor is not used for texts: it keeps the pieces that truncation
removes, for a pair in every combination. Knows a fast tokenizer; knows no client's texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tokenizers import Tokenizer

PROBES = ("a", "b")


@dataclass(frozen=True)
class Template:
    """around: the special ids before, between and behind the texts: two places, for a pair three.

    around_types: their token_type_ids. own_types: each text's own.
    """

    around: tuple[tuple[int, ...], ...]
    around_types: tuple[tuple[int, ...], ...]
    own_types: tuple[int, ...]

    @property
    def specials(self) -> int:
        """How many special tokens it adds."""
        return sum(map(len, self.around))

    def ids(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """The whole sequence of one text's or two texts' ids."""
        ids = list(self.around[0])
        for own, special in zip(texts, self.around[1:], strict=True):
            ids += [*own, *special]
        return ids

    def types(self, lengths: Sequence[int]) -> list[int]:
        """token_type_ids of texts with so many tokens."""
        types = list(self.around_types[0])
        following = zip(lengths, self.own_types, self.around_types[1:], strict=True)
        for length, own, special in following:
            types += [own] * length + list(special)
        return types


def learn_template(backend: Tokenizer, count: int) -> Template:
    """Learn it from two probes. count: 1 for a text, 2 for a pair.

    Raises ValueError for a tokenizer that has no such template.
    """
    probes = backend.encode_batch(list(PROBES[:count]), add_special_tokens=False)
    lengths = [len(probe) for probe in probes]
    whole = backend.post_process(probes[0], probes[1] if count > 1 else None)
    rows = zip(whole.ids, whole.type_ids, whole.special_tokens_mask, strict=True)
    around: list[list[tuple[int, int]]] = [[]]
    own_types: list[int] = []
    for special, members in groupby(rows, key=lambda row: row[2]):
        group = [(token, type_) for token, type_, _ in members]
        if special:
            around[-1] += group
        else:
            own_types.append(group[0][1])
            around.append([])
    template = Template(
        tuple(tuple(token for token, _ in part) for part in around),
        tuple(tuple(type_ for _, type_ in part) for part in around),
        tuple(own_types),
    )
    if len(around) != count + 1 or (
        template.ids([probe.ids for probe in probes]),
        template.types(lengths),
    ) != (whole.ids, whole.type_ids):
        raise ValueError("its special tokens do not stand around its texts")
    return template
