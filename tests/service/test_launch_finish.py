"""How a launch closes a run that came to its end."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from raycurv.service.launch import _Launch
from raycurv.train import Result


def close(result: Result) -> tuple[Mock, Mock]:
    """The run in MLflow and the terminal, after the launch has closed the run."""
    tracked, notify = Mock(), Mock()
    driver = SimpleNamespace(
        tracked={"one": tracked},
        planned={"one": SimpleNamespace(label="one", checkpoints="")},
        cluster=SimpleNamespace(log_model=False),
        tracking=Mock(),
        progress=SimpleNamespace(notify=notify),
    )
    _Launch._finish(driver, "one", result)  # type: ignore[arg-type]
    return tracked, notify


@pytest.mark.parametrize(("why", "status", "state"), [("", "finished", "FINISHED"), ("it rose", "diverged", "FAILED")])
def test_a_run_that_diverged_is_closed_and_shown_as_diverged(why: str, status: str, state: str) -> None:
    result = Result("one", 4, 1.0, {}, (), 2.0, 8.0, operations=64.0, step_seconds=0.25, diverged=why)
    tracked, notify = close(result)

    tracked.tags.assert_called_once_with({"status": status, "reason": why})
    tracked.close.assert_called_once_with(state)
    summary = tracked.metrics.call_args.args[0]
    assert (summary["result/operations"], summary["result/step_seconds"]) == (64.0, 0.25)
    assert f"one: {status} after 4 steps, 2.0 s" in notify.call_args.args[0]
