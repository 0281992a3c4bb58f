"""Who sits where in a batch: the base first, versions together, equal lengths side by side."""

from __future__ import annotations

import torch

from app.adapters.values import Adapter
from app.model.batch import Batch, pack, runs_of, segments
from app.model.delta import BASE_LAYERS, Layers
from app.model.linear import FrozenLinear
from app.model.sequence import Sequence, Want
from app.model.version import Version

ADAPTER = Adapter({}, "peft")
BASE = Version("base", ADAPTER, BASE_LAYERS)
A, B = (Version(name, ADAPTER, Layers()) for name in "ab")
MERGED = Version("merged", ADAPTER, Layers(own={"query": FrozenLinear(torch.ones(2, 2), None)}))


def sequence(version: Version, *ids: int) -> Sequence:
    return Sequence(list(ids), [0] * len(ids), Want("embedding"), version)


def versions(batch: Batch) -> list[str]:
    return [each.version.digest for each in batch.sequences]


def test_the_base_comes_first_then_each_version_and_merged_ones_last() -> None:
    order = [MERGED, A, BASE, B, A, BASE, MERGED]
    batch = pack([sequence(version, 1) for version in order])
    assert versions(batch) == ["base", "base", "a", "a", "b", "merged", "merged"]


def test_each_version_is_one_segment_over_its_rows() -> None:
    batch = pack([sequence(A, 1, 2), sequence(BASE, 3), sequence(A, 4)])
    spans = [(s.rows.start, s.rows.stop, s.layers) for s in batch.segments]
    assert spans == [(0, 1, BASE.layers), (1, 4, A.layers)]


def test_order_says_where_each_packed_sequence_was_given() -> None:
    batch = pack([sequence(B, 7, 8), sequence(BASE, 9), sequence(B, 5)])
    assert batch.order == [1, 2, 0]
    assert batch.numbers[0].tolist() == [9, 5, 7, 8]
    assert (batch.starts, batch.lengths) == ([0, 1, 2], [1, 1, 2])
    assert batch.ends() == [0, 1, 2, 4]


def test_equal_lengths_stand_together_and_are_one_run() -> None:
    batch = pack([sequence(BASE, *range(1, n + 1)) for n in (3, 1, 3, 2)])
    assert batch.lengths == [1, 2, 3, 3]
    assert [(r.rows.start, r.rows.stop, r.count, r.length) for r in batch.runs] == [
        (0, 1, 1, 1),
        (1, 3, 1, 2),
        (3, 9, 2, 3),
    ]


def test_equal_lengths_of_two_versions_are_one_run_too() -> None:
    assert [run.count for run in runs_of([2, 2, 2, 1])] == [3, 1]
    pair = [sequence(A, 1, 2), sequence(B, 3, 4)]
    assert [s.rows for s in segments(pair, [2, 2])] == [slice(0, 2), slice(2, 4)]
    assert [s.rows for s in segments([pair[0]] * 2, [1, 1])] == [slice(0, 2)]


def test_positions_begin_anew_with_every_sequence() -> None:
    batch = pack([sequence(BASE, 5, 6), sequence(BASE, 7, 8, 9)])
    assert batch.numbers[2].tolist() == [0, 1, 0, 1, 2]


def test_a_padding_id_inside_of_a_text_takes_no_position() -> None:
    batch = pack([sequence(BASE, 5, 1, 6)], padding=1)
    assert batch.numbers[2].tolist() == [0, -1, 1]


def test_a_sequence_runs_through_its_versions_layers_and_head() -> None:
    one = sequence(A, 1)
    assert (one.layers, one.head) == (A.layers, None)
    assert (one.request, one.row) == (None, None)
