"""FourierFT (Gao et al. 2024): a few trained frequencies of the weight's change."""

from __future__ import annotations

import torch

from app.adapters.methods.layer import Layer, Shared, dense
from app.adapters.methods.method import Method, themselves
from app.adapters.recipe import Recipe
from app.adapters.refusals import Misfit
from app.adapters.values import Dense, Scaling


def fold_fourierft(layer: Layer, recipe: Recipe, _: Shared) -> tuple[Dense, Scaling]:
    """W += scaling * Re ifft2 of a spectrum [out, in] that is zero but for n places.

    The places are drawn from the config's seed, as PEFT does at load. Raises Misfit.
    Source: peft.tuners.fourierft.layer.FourierFTLayer.get_delta_weight.
    """
    values = layer.part("fourierft_spectrum", None)
    size = layer.out * layer.in_
    if len(values) > size:
        raise Misfit(f"has {len(values)} frequencies for {size} places", "fourierft_spectrum")
    generator = torch.Generator().manual_seed(recipe.numbers["random_loc_seed"])
    places = torch.randperm(size, generator=generator)[: len(values)]
    spectrum = torch.zeros(layer.out, layer.in_, dtype=torch.float64)
    spectrum[places // layer.in_, places % layer.in_] = values
    scaling = Scaling("the config's scaling", float(recipe.numbers["scaling"]))
    delta = torch.fft.ifft2(spectrum).real * scaling.scale
    return dense(layer, layer.frozen + delta, layer.new_bias), scaling


FOURIERFT = Method(
    "FOURIERFT",
    fold_fourierft,
    linear=themselves("fourierft_spectrum"),
    numbers={"random_loc_seed": 777, "scaling": 150.0},
    without_effect=frozenset({"n_frequency", "n_frequency_pattern"}),
)
