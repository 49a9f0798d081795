"""Every method's numbers are those in its golden file (see tests/golden/runs.py for how to change them)."""

import pytest

from raycurv import optim
from tests.golden.runs import FOLDER, RUNS, losses, read

FAMILIES = (
    "auto",
    "curveball",
    "red_",
    "ran_",
    "ntlr_",
    "hypergradient_",
    "alera",
    "salera",
    "spalera",
    "ag_adam",
    "llr_",
)


@pytest.mark.parametrize("run", RUNS)
def test_losses_and_rates_are_those_in_the_file(run):
    for step, (found, kept) in enumerate(zip(losses(run), read(run), strict=True)):
        assert found == pytest.approx(kept, rel=1e-9, abs=1e-15), f"step {step}"


def test_every_method_of_the_papers_has_a_golden_run():
    assert {name for name in optim.names() if name.startswith(FAMILIES)} <= {name for name, _ in RUNS.values()}


def test_every_file_belongs_to_a_run():
    assert {path.stem for path in FOLDER.iterdir()} == set(RUNS)
