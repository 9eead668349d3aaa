"""Which layers INT8 hurts, and which stay floating for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from calib.score import GraphScore
from engine.contract.errors import BundleError
from engine.contract.sensors import Scenario

Judge = Callable[[Collection[str]], GraphScore]
"""Scores the INT8 graph with the named layers left floating."""
BLAMED = 5
"""Layers that an error names."""
OUTLIER_SHARE = 1 / 3
"""A layer that does this much of all damage stays floating whatever the budget. Damage is a mean over pixels and shows
it on any scene; mF1 turns on few of them: what cost 0.09 points on 48 scenes cost 0.68 on the next 100."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What one layer costs: everything is INT8 but this one."""

    layer: str
    damage: float
    """Left, of a probability, on average; see :attr:`calib.score.GraphScore.damage`."""
    spared: float
    """Damage that went away with it."""


@dataclass(frozen=True, kw_only=True)
class SearchStep:
    """One try of the search."""

    released: tuple[str, ...]
    """Layers that stayed floating."""
    mean_f1: float
    loss_points: float
    """mF1 of the floating graph less this one's."""
    int8_share: float
    """Of the multiply-accumulates."""


def leave_one_out(layers: Sequence[str], judge: Judge) -> tuple[Sensitivity, ...]:
    """Release each layer in turn; the one that spares most comes first."""
    whole = judge(()).damage
    found = []
    for layer in tqdm(layers, desc="leaving one out", unit="layer", leave=False, disable=None):
        damage = judge((layer,)).damage
        found.append(Sensitivity(layer=layer, damage=damage, spared=whole - damage))
    return tuple(sorted(found, key=lambda one: (-one.spared, one.layer)))


def search(
    scenario: Scenario,
    ranking: Sequence[Sensitivity],
    attempt: Callable[[tuple[str, ...]], SearchStep],
    *,
    budget_points: float,
    min_int8_share: float,
) -> tuple[SearchStep, ...]:
    """Release the most sensitive layers, one more at a time, until no outlier is left and the budget is kept.

    Args:
        scenario: for the error.
        ranking: most sensitive first.
        attempt: scores the graph with these layers floating.
        budget_points: mF1 that may be lost.
        min_int8_share: below this much of the multiply-accumulates it is no INT8 graph any more.

    Returns:
        Every try in order; the last one is within the budget.

    Raises:
        BundleError: the budget cannot be kept; the message names the layers to blame.
    """
    outliers = sum(one.spared >= OUTLIER_SHARE * (one.spared + one.damage) for one in ranking)
    steps: list[SearchStep] = []
    for count in range(len(ranking) + 1):
        step = attempt(tuple(one.layer for one in ranking[:count]))
        if step.int8_share < min_int8_share and count:
            break
        steps.append(step)
        if step.loss_points <= budget_points and count >= outliers:
            break
    if steps[-1].loss_points <= budget_points:
        return tuple(steps)
    best = min(steps, key=lambda step: step.loss_points)
    blamed = ", ".join(f"{one.layer} {one.spared:.2e}" for one in ranking[:BLAMED])
    raise BundleError(
        f"int8 may cost at most {budget_points:g} points of mF1 and must keep {min_int8_share:.0%} of the "
        f"multiply-accumulates; for {scenario} the least loss found is {best.loss_points:.2f} points with "
        f"{len(best.released)} layers left floating ({best.int8_share:.0%} int8). Most to blame, by the part of a "
        f"probability that each alone costs: {blamed}. Raise --budget, lower --min-int8-share, or train longer with "
        "smaller activations"
    )
