"""What a CUDA graph of the same forward would take: the floor under its launches.

The server has no graphs (docs/decisions/0009). This captures one forward of one batch, as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from app.model.batch import pack
from app.model.encoder import Encoder
from app.model.sequence import Sequence


@torch.inference_mode()
def captured(encoder: Encoder, sequences: list[Sequence]) -> Callable[[], object]:
    """A run of the graph, without packing and pooling. Raises whatever a capture raises."""
    batch = pack(sequences, encoder.device)
    more: dict[str, Any] = {"ends": batch.ends()} if encoder._varlen else {}

    def forward() -> Any:
        return encoder.model(
            input_ids=batch.input_ids,
            token_type_ids=batch.token_type_ids,
            position_ids=batch.position_ids,
            runs=batch.runs,
            **more,
        )

    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with encoder.route.run(batch.segments):
        kept = (encoder.route.running, batch, more)  # the graph reads their memory
        with torch.cuda.stream(aside):
            forward()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            out = forward()

    def run() -> object:
        graph.replay()
        return kept, out

    return run
