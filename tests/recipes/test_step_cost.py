from functools import partial

import pytest

from raycurv.models.basic_cnn import basic_cnn
from raycurv.recipes import step_cost
from raycurv.recipes.step_cost import Workload


@pytest.fixture
def small(monkeypatch):
    for name, batch_norm in (("basic CNN", False), ("basic CNN + BN", True)):
        monkeypatch.setitem(
            step_cost.WORKLOADS, name, Workload(partial(basic_cnn, batch_norm=batch_norm), (16, 3, 32, 32))
        )


@pytest.mark.parametrize("network", ["basic CNN", "basic CNN + BN"])
def test_curveball_costs_what_the_readme_says(small, network):
    """Forward 1, J·z 2, backward 2, J·Δz 2 against 3, and a fifth of a forward pass for the check of λ."""
    baseline, curveball = step_cost.measure(network, ["curveball"], rounds=1)
    assert (baseline.operations, baseline.seconds, baseline.memory) == (1, 1, 1)
    assert curveball.operations <= 2.42
    assert curveball.memory <= 2.0


def test_costs_come_as_a_table(small):
    text = step_cost.markdown(step_cost.measure("basic CNN", ["momentum"], rounds=1))
    assert "| basic CNN | momentum | 1.00× |" in text


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="'vgg' is unknown; it is one of basic CNN"):
        step_cost.measure("vgg", [])
