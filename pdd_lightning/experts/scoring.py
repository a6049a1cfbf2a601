"""Forgetting scores from recorded experts."""

from __future__ import annotations

import torch
from torch import Tensor

from pdd_lightning.data import ForgettingScores
from pdd_lightning.experts.store import TrajectoryStore
from pdd_lightning.metrics import Forgetting


def forgetting_scores(store: TrajectoryStore, indices: Tensor) -> ForgettingScores | None:
    """Scores of the examples that experts were trained on, averaged over the experts.

    Args:
        store: Experts that were all trained on these examples.
        indices: Where the examples stand in the source's train order `[N]`.

    Returns:
        The scores, or None where the experts' files hold no forgetting.
    """
    found = [store.forgetting(expert) for expert in range(store.number)]
    known = [forgetting for forgetting in found if forgetting is not None]
    if len(known) < len(found):
        return None
    each = Forgetting(*map(torch.stack, zip(*known, strict=True)))
    counts, learned = each.counts.double(), each.learned
    epochs = len(store.records[0].losses)
    scores = torch.where(learned, counts, epochs // 2).mean(0)  # to be forgotten takes two epochs
    scores[~learned.any(0)] = torch.inf
    return ForgettingScores(indices, scores, counts.mean(0), each.errors.double().mean(0), learned.double().mean(0))
