from __future__ import annotations

import io

from raycurv.service.terminal import TerminalProgress, table
from raycurv.train import Record, Result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(number: int) -> Record:
    values = {"train/loss": 0.25, "optimizer/momentum": 0.9, "optimizer/learning_rate": 0.1, "optimizer/damping": 3.0}
    return Record("step", number, number / 10, 0.0, values)


def test_a_terminal_gets_a_bar_that_moves() -> None:
    stream = Terminal()
    progress = TerminalProgress(stream)
    progress.begin("run", 2)
    progress.show([step(10), Record("progress", 10, 1.0, 0.0, {"throughput/images_per_second": 1234.0})])

    shown = stream.getvalue().rpartition("\r")[2]
    for part in (
        "██████████░░░░░░░░░░",
        "epoch 1.00/2",
        "loss 0.25",
        "momentum 0.9",
        "learning rate 0.1",
        "damping 3",
        "images/s 1,234",
    ):
        assert part in shown


def test_a_file_gets_lines_without_control_characters() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(stream)
    progress.begin("run", 2)
    progress.show([step(1)])
    progress.show([step(2)])  # too soon for another line
    progress.show([Record("evaluation", 10, 1.0, 0.0, {"test/loss": 0.5, "test/accuracy": 0.75})])

    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("epoch 0.") == 1
    assert "run: epoch 1 done: test/loss 0.5, test/accuracy 0.75" in stream.getvalue()


def test_the_table_has_a_row_for_every_run_and_a_dash_for_what_was_not_measured() -> None:
    result = Result("a", 1234, 2.0, {"train/epoch_loss": 0.5, "test/accuracy": 0.875}, (), 12.34, 567.8)
    lines = table([("a", "curveball", result), ("b", "sgd", result)]).splitlines()

    assert len(lines) == 4
    assert lines[0].split("  ")[0] == "run"
    assert lines[2].split() == ["a", "curveball", "1,234", "0.5000", "–", "87.50%", "568", "12.3"]


def test_the_table_has_a_column_for_every_further_metric() -> None:
    one = Result("a", 12, 2.0, {"test/accuracy": 0.875, "test/f1": 0.75}, (), 12.34, 567.8)
    other = Result("b", 12, 2.0, {"test/accuracy": 0.5}, (), 12.34, 567.8)
    lines = table([("a", "curveball", one), ("b", "sgd", other)]).splitlines()
    assert "test accuracy  test/f1  images/s" in lines[0]
    assert lines[2].split() == ["a", "curveball", "12", "–", "–", "87.50%", "0.75", "568", "12.3"]
    assert lines[3].split() == ["b", "sgd", "12", "–", "–", "50.00%", "–", "568", "12.3"]


def test_the_table_says_which_runs_diverged() -> None:
    one = Result("a", 12, 2.0, {"test/accuracy": 0.5}, (), 12.34, 567.8)
    other = Result("b", 12, 2.0, {"test/accuracy": 0.1}, (), 12.34, 567.8, diverged="it ended at 1e13")
    lines = table([("a", "curveball", one), ("b", "sgd", other)]).splitlines()
    assert lines[2].split()[:3] == ["a", "curveball", "finished"]
    assert lines[3].split()[:3] == ["b", "sgd", "diverged"]
