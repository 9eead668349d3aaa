"""Ranking and search on made-up layers whose cost is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from calib.score import GraphScore
from calib.sensitivity import SearchStep, Sensitivity, leave_one_out, search
from engine.contract.errors import BundleError
from engine.contract.sensors import Scenario

COST = {"a": 0.1, "b": 0.7, "c": 0.0, "d": 0.3}


def judge(released: Collection[str]) -> GraphScore:
    damage = sum(cost for layer, cost in COST.items() if layer not in released)
    return GraphScore(confusion=((1,),), damage=damage, agreement=1)


def attempt_with(share: Mapping[str, float]):
    def attempt(released: tuple[str, ...]) -> SearchStep:
        loss = sum(cost for layer, cost in COST.items() if layer not in released)
        int8_share = 1 - sum(share[layer] for layer in released)
        return SearchStep(released=released, mean_f1=80 - loss, loss_points=loss, int8_share=int8_share)

    return attempt


RANKING = tuple(Sensitivity(layer=layer, damage=1.1 - COST[layer], spared=COST[layer]) for layer in "bdac")
EVEN = dict.fromkeys("abcd", 0.25)


def test_leaving_one_out_ranks_layers_by_what_each_costs() -> None:
    found = leave_one_out(tuple(COST), judge)
    assert [one.layer for one in found] == ["b", "d", "a", "c"]
    assert [one.spared for one in found] == pytest.approx([0.7, 0.3, 0.1, 0.0])
    assert found[0].damage == pytest.approx(0.4)


@pytest.mark.parametrize(("budget", "released"), [(0.5, ("b",)), (0.15, ("b", "d")), (0.0, ("b", "d", "a"))])
def test_the_search_releases_no_more_layers_than_the_budget_takes(budget: float, released: tuple[str, ...]) -> None:
    steps = search(Scenario.FULL, RANKING, attempt_with(EVEN), budget_points=budget + 1e-9, min_int8_share=0)
    assert steps[-1].released == released
    assert [len(step.released) for step in steps] == list(range(len(released) + 1))
    assert all(step.loss_points > budget for step in steps[:-1])


def test_a_layer_that_does_a_third_of_all_damage_is_released_within_the_budget_as_well() -> None:
    steps = search(Scenario.FULL, RANKING, attempt_with(EVEN), budget_points=2, min_int8_share=0)
    assert [step.released for step in steps] == [(), ("b",)]
    even = tuple(Sensitivity(layer=layer, damage=0.8, spared=0.3) for layer in "abcd")
    (step,) = search(Scenario.FULL, even, attempt_with(EVEN), budget_points=2, min_int8_share=0)
    assert step.released == ()
    (step,) = search(Scenario.FULL, RANKING, attempt_with(EVEN), budget_points=2, min_int8_share=0.9)
    assert step.released == (), "enough must stay int8"


def test_a_budget_that_takes_too_many_layers_fails_and_names_those_to_blame() -> None:
    with pytest.raises(BundleError) as caught:
        search(Scenario.FULL, RANKING, attempt_with(EVEN), budget_points=0.05, min_int8_share=0.5)
    message = str(caught.value)
    assert "at most 0.05 points of mF1" in message
    assert "least loss found is 0.10 points with 2 layers" in message
    assert message.index(" b 7.00e-01") < message.index(" d 3.00e-01")


def test_a_graph_that_is_out_of_budget_even_without_int8_fails() -> None:
    def attempt(released: tuple[str, ...]) -> SearchStep:
        return SearchStep(released=released, mean_f1=70, loss_points=2.0, int8_share=1 - len(released) / 4)

    with pytest.raises(BundleError, match="least loss found is 2.00 points"):
        search(Scenario.FULL, RANKING, attempt, budget_points=0.5, min_int8_share=0)
