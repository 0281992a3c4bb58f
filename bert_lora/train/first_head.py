"""A head from what the frozen base already says, in closed form: training starts there.

Linear discriminant analysis: classes of one shared covariance S and means m have the logits
m' S^-1 x - m' S^-1 m / 2 + log prior (Hastie, Tibshirani, Friedman, 4.3). Ridge regression for an
amount.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHRINKAGE = 0.1  # of the covariance towards its mean diagonal
SCALES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FOLDS = 5


def of_classes(read: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(weight [L, H], bias [L]) from what the head reads [N, H] and each row's class [N].

    The rows are not Gaussian, and few of them are told apart by chance alone, so the logits are
    too sure of themselves: they are scaled by what fits rows that had no part in them.
    """
    logits = torch.zeros(len(read), count)
    priors = torch.zeros(len(read), count)
    for fold in range(FOLDS):
        held = torch.arange(len(read)) % FOLDS == fold
        if held.any() and not held.all():
            weight, bias, prior = _discriminant(read[~held], classes[~held], count)
            logits[held], priors[held] = read[held] @ weight.T + bias, prior
    scale = min(SCALES, key=lambda s: float(F.cross_entropy(s * logits + priors, classes)))
    weight, bias, prior = _discriminant(read, classes, count)
    return scale * weight, scale * bias + prior


def _discriminant(read: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(weight [L, H], bias [L], log prior [L])."""
    members = F.one_hot(classes, count).to(read.dtype)
    counts = members.sum(0)
    means = (members.T @ read) / counts.clamp(min=1)[:, None]
    weight = torch.linalg.solve(_covariance(read - means[classes]), means.T).T
    prior = (counts.clamp(min=0.5) / len(read)).log()
    bias = -0.5 * (weight * means).sum(1)
    return weight, bias, prior


@torch.no_grad()
def centre(head: nn.Linear) -> None:
    """Take from every label's logit what all have in common, in place.

    A softmax does not see it. In half precision it is what the logits would lose their digits to.
    """
    for part in (head.weight, head.bias):
        part.sub_(part.double().mean(0).to(part.dtype))


def of_several(read: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
    """The same for labels that are independent. has [N, L]: zeros and ones."""
    pairs = [of_classes(read, has[:, i].long(), 2) for i in range(has.shape[1])]
    weight = torch.stack([w[1] - w[0] for w, _ in pairs])
    return weight, torch.stack([b[1] - b[0] for _, b in pairs])


def of_amounts(read: Tensor, amounts: Tensor) -> tuple[Tensor, Tensor]:
    """(weight [1, H], bias [1]) of ridge regression. amounts [N]."""
    mean, centre = read.mean(0), amounts.mean()
    away = read - mean
    moment = away.T @ (amounts - centre) / len(read)
    weight = torch.linalg.solve(_covariance(away), moment)
    return weight[None], (centre - weight @ mean)[None]


def _covariance(away: Tensor) -> Tensor:
    """[H, H], never singular."""
    covariance = away.T @ away / len(away)
    own = covariance.diagonal().mean().clamp(min=1e-6)
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * own * torch.eye(len(covariance))
