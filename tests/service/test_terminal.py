"""What a launch prints: on a terminal of 80 columns, and in a file."""

from __future__ import annotations

import io
import itertools
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
import warnings
from fcntl import ioctl
from pathlib import Path

import pytest

from raycurv.service.terminal import TerminalProgress, format_seconds, short_name, table
from raycurv.train import Record, Result

LONG = "vgg11-cifar100-l2-0.0005-red_sgd-20261126-094500-ecf5"
ROOT = Path(__file__).resolve().parents[2]
SPEED = {"throughput/images_per_second": 12345.6, "progress/operations": 2e9}
FEED = f"""
import sys, time
from raycurv.service.terminal import TerminalProgress
from raycurv.train import Record
with TerminalProgress() as progress:
    progress.begin(sys.argv[1], 90)
    progress.show([Record("event", 0, 0.0, 0.0, {{"steps": 900}}, "starts: 900 steps")])
    for step in range(1, 12):
        values = {{"train/loss": 1 / step, "optimizer/learning_rate": 0.1, "optimizer/momentum": 0.9}}
        time.sleep(0.11)
        progress.show([Record("step", step, step / 10, 0.0, values), Record("progress", step, step / 10, 0.0, {SPEED})])
        if step == 5:
            print("printed by a library", flush=True)
        if step == 10:
            progress.show([Record("evaluation", 10, 1.0, 0.0, {{"test/loss": 0.5, "test/accuracy": 0.75}})])
"""


def on_terminal(*words: str, columns: int = 80, **variables: str) -> str:
    """What a Python program writes to a terminal."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment = {**clean, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, *words]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment, cwd=ROOT) as process:
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 65536):
                written += part
        except OSError:  # the program has ended
            pass
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


def lines_of(written: str) -> list[str]:
    """Every line and every drawing of the bar, as they look."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def step(number: int) -> Record:
    values = {"train/loss": 0.25, "optimizer/momentum": 0.9, "optimizer/learning_rate": 0.1, "optimizer/damping": 3.0}
    return Record("step", number, number / 10, 0.0, values)


def started(steps: int = 20) -> Record:
    return Record("event", 0, 0.0, 0.0, {"steps": steps}, f"starts: {steps} steps")


def progress_of(step: int) -> Record:
    return Record("progress", step, step / 10, 0.0, SPEED)


@pytest.mark.parametrize("name", ["curveball", LONG])
def test_the_bar_fits_80_columns_and_has_the_time_left(name: str) -> None:
    lines = lines_of(on_terminal("-c", FEED, name))
    bars = [line for line in lines if "━" in line]
    assert len(bars) > 5
    assert max(map(len, lines)) <= 80
    after = r"epoch 1\.1/90 loss 0\.09091 acc 75\.0% 12,346 img/s \d:\d\d left"
    assert re.fullmatch(rf"{re.escape(short_name(name))} [━╸╺ ]+ {after}", bars[-1])


def test_nothing_of_the_bar_is_left_after_a_run() -> None:
    feed = FEED + "    progress.end()\n    progress.notify('the table')\n"
    written = on_terminal("-c", feed, "curveball")
    after = lines_of(written[written.rindex("the table") :])
    assert after == ["the table"]


def test_lines_stand_above_the_bar_also_those_of_others() -> None:
    lines = lines_of(on_terminal("-c", FEED, "curveball"))
    for whole in ("printed by a library", "curveball: epoch 1 done: test loss 0.5, accuracy 75.00%"):
        assert whole in lines


def test_a_wide_terminal_has_whole_words() -> None:
    bars = [line for line in lines_of(on_terminal("-c", FEED, "curveball", columns=120)) if "━" in line]
    assert re.search(r"epoch 1\.10/90 loss 0\.09091 accuracy 75\.0% 12,346 images/s \d:\d\d left$", bars[-1])


def test_the_cursor_is_visible_while_the_bar_moves() -> None:
    written = on_terminal("-c", FEED, "curveball")
    assert written.rfind("\x1b[?25h", 0, written.rfind("epoch")) > written.find("\x1b[?25l")


def test_a_sweep_has_a_bar_of_its_trials() -> None:
    feed = (
        "import time\nfrom raycurv.service.terminal import TerminalProgress\n"
        "with TerminalProgress() as progress:\n"
        "    for done in range(1, 6):\n"
        "        time.sleep(0.05)\n"
        "        state = ('2 running', '1 not finished', 'best loss 0.1234')\n"
        "        progress.show_trials('digits-grid-20261126-094500', done, 5, state)\n"
        "        progress.notify(f'trial {done}')\n"
    )
    lines = lines_of(on_terminal("-c", feed))
    bars = [line for line in lines if "━" in line]
    assert max(map(len, lines)) <= 80
    state = r"4/5 trials 2 running 1 not finished best loss 0\.1234 \d:\d\d left"
    assert any(re.fullmatch(rf"digits-grid [━╸╺ ]+ {state}", bar) for bar in bars)
    assert [line for line in lines if line.startswith("trial")] == [f"trial {done}" for done in range(1, 6)]


def test_no_color_means_no_color() -> None:
    def colours(**variables: str) -> list[str]:
        return re.findall(r"\x1b\[[0-9;]*(?:3[0-9]|38;[0-9;]+)m", on_terminal("-c", FEED, "curveball", **variables))

    assert colours()
    assert not colours(NO_COLOR="1")


def test_a_dumb_terminal_gets_lines() -> None:
    written = on_terminal("-c", FEED, "curveball", TERM="dumb")
    assert "\x1b" not in written
    assert "━" not in written
    assert "curveball: step 1 of 900, epoch 0.10 of 90, loss 1, 12,346 images/s" in written


def test_a_file_gets_few_lines_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        progress.begin("run", 2)
        progress.show([started()])
        for number in range(1, 11):
            now[0] += 4.0
            progress.show([step(number), progress_of(number)])
        progress.show([Record("evaluation", 10, 1.0, 0.0, {"train/epoch_loss": 0.5, "test/accuracy": 0.75})])
    written = stream.getvalue()
    assert "\r" not in written
    assert "\x1b" not in written
    assert written.splitlines() == [
        "run: starts: 20 steps",
        "run: 2 GFLOP a step, about 40 GFLOP in all",
        "run: step 1 of 20, epoch 0.10 of 2, loss 0.25, 12,346 images/s",
        "run: step 9 of 20, epoch 0.90 of 2, loss 0.25, 12,346 images/s, 0:44 left",
        "run: epoch 1 done: loss 0.5, accuracy 75.00%, 0:40 left",
    ]


def test_an_evaluation_within_an_epoch_names_its_step() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        progress.begin("run", 2)
        progress.show([Record("evaluation", 300, 0.319829, 0.0, {"test/loss": 0.5})])
    assert "run: step 300 (epoch 0.32): test loss 0.5\n" in stream.getvalue()


def test_a_resumed_run_counts_the_time_left_from_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        progress.begin("run", 200)
        progress.show([Record("event", 1000, 100.0, 0.0, {"steps": 2000}, "goes on at step 1000")])
        for number in range(1001, 1004):
            now[0] += 31.0
            progress.show([step(number)])
    assert "step 1,003 of 2,000" in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].endswith("8:35:07 left")


def test_records_that_come_together_say_nothing_about_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    microseconds = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(microseconds) / 1e6)
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        progress.begin("run", 2)
        progress.show([started()])
        progress.show([step(1), step(2), progress_of(2)])
    assert "run: step 2 of 20" in stream.getvalue()
    assert "left" not in stream.getvalue()


def test_quiet_shows_results_and_warnings_alone() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream, quiet=True) as progress:
        progress.begin("run", 2)
        progress.notify("training on 2 workers")
        progress.show([started(), step(1), Record("evaluation", 10, 1.0, 0.0, {"test/loss": 0.5})])
        progress.notify_always("the table")
    assert stream.getvalue() == "the table\n"


def test_verbose_shows_scalars_and_checkpoints() -> None:
    def shown(verbose: bool) -> str:
        stream = io.StringIO()
        with TerminalProgress(stream, verbose=verbose) as progress:
            progress.begin("run", 2)
            wrote = Record("event", 1, 0.1, 0.0, {}, "wrote step-000000001.pt")
            progress.show([started(), wrote, step(2)])
        return stream.getvalue()

    assert "wrote" not in shown(False)
    assert "momentum" not in shown(False)
    assert "run: wrote step-000000001.pt" in shown(True)
    assert "loss 0.25, momentum 0.9, learning_rate 0.1, damping 3" in shown(True)


def test_the_log_file_has_every_line_also_what_quiet_hides_and_passwords_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with TerminalProgress(io.StringIO(), quiet=True, log_file=str(path)) as progress:
        progress.notify("MLflow at http://me:secret@host")
    assert re.search(r"^\d{4}-\d\d-\d\d .*MLflow at http://me:", path.read_text())
    assert "secret" not in path.read_text()


def test_a_log_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--log-file .*/missing/log cannot be written: No such file"):
        TerminalProgress(io.StringIO(), log_file=str(tmp_path / "missing" / "log"))


def test_what_libraries_log_is_in_a_file_and_not_on_the_terminal(tmp_path: Path) -> None:
    stream, path = io.StringIO(), tmp_path / "logs" / "run.log"
    logger = logging.getLogger("ray.train.test")
    logger.handlers, logger.propagate = [logging.StreamHandler(stream)], False
    with TerminalProgress(stream, library_file=path) as progress:
        assert not path.exists()
        logger.warning("a worker was slow")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = progress._logs._warned
            warnings.warn_explicit("torch will change", UserWarning, "/torch/nn.py", 1)
    assert stream.getvalue() == ""
    assert "WARNING ray.train.test: a worker was slow" in path.read_text()
    assert "UserWarning: torch will change" in path.read_text()
    logger.warning("afterwards")
    assert stream.getvalue() == "afterwards\n"


def test_a_folder_of_logs_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stream = io.StringIO()
    with TerminalProgress(stream, library_file=tmp_path / "file" / "run.log") as progress:
        logging.getLogger("mlflow").warning("lost")
        progress.notify("trains")
    assert stream.getvalue() == "trains\n"


def test_names_are_short_and_stay_different() -> None:
    assert short_name("curveball") == "curveball"
    assert short_name("digits-curveball-20261126-094500-ab12", 24) == "digits-curveball-ab12"
    assert re.fullmatch(r"vgg11-red_sgd-[0-9a-f]{4}", short_name(LONG))
    other = LONG.replace("0.0005", "0.0001")
    assert short_name(other) != short_name(LONG)
    for name in (LONG, "a" * 60, "a-" * 40, "x" * 30 + "-" + "y" * 40, "name-" + "ntlr_hypergradient_sgd"):
        assert len(short_name(name)) <= 18


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (3671, "1:01:11"), (90000, "1 d 1 h")])
def test_times_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_table_has_a_row_for_every_run_and_a_dash_for_what_was_not_measured() -> None:
    result = Result("a", 1234, 2.0, {"train/epoch_loss": 0.5, "test/accuracy": 0.875}, (), 12.34, 567.8)
    lines = table([("a", "curveball", result), ("b", "sgd", result)]).splitlines()

    assert len(lines) == 4
    assert lines[0].split("  ")[0] == "run"
    assert lines[2].split() == ["a", "curveball", "1,234", "0.5000", "–", "87.50%", "568", "12.3"]


def test_the_seconds_of_the_table_are_without_the_start_up_which_is_shown_apart() -> None:
    first = Result("a", 100, 2.0, {}, (), 6.45, 567.8, startup_seconds=6.25)
    other = Result("b", 100, 2.0, {}, (), 0.2, 567.8, startup_seconds=0.001)
    lines = table([("curveball", "curveball", first), ("sgd", "sgd", other)]).splitlines()
    assert [line.split()[-1] for line in lines[2:4]] == ["0.2", "0.2"]
    assert lines[4:] == ["Seconds are without the start-up: curveball 6.2"]


def test_the_table_of_a_comparison_fits_80_columns() -> None:
    values = {"train/epoch_loss": 0.5, "test/loss": 1.25, "test/accuracy": 0.875}
    result = Result("a", 123456, 90.0, values, (), 86400.0, 123456.7)
    optimizers = ("curveball", "ntlr_hypergradient_sgd", LONG)
    lines = table([(name, name, result) for name in optimizers]).splitlines()
    assert "optimizer" not in lines[0]
    assert max(map(len, lines)) <= 80


def test_the_table_has_a_column_for_every_further_metric() -> None:
    one = Result("a", 12, 2.0, {"test/accuracy": 0.875, "test/f1": 0.75}, (), 12.34, 567.8)
    other = Result("b", 12, 2.0, {"test/accuracy": 0.5}, (), 12.34, 567.8)
    lines = table([("a", "curveball", one), ("b", "sgd", other)]).splitlines()
    assert "accuracy  test/f1  images/s" in lines[0]
    assert lines[2].split() == ["a", "curveball", "12", "–", "–", "87.50%", "0.75", "568", "12.3"]
    assert lines[3].split() == ["b", "sgd", "12", "–", "–", "50.00%", "–", "568", "12.3"]


def test_the_table_says_which_runs_diverged() -> None:
    one = Result("a", 12, 2.0, {"test/accuracy": 0.5}, (), 12.34, 567.8)
    other = Result("b", 12, 2.0, {"test/accuracy": 0.1}, (), 12.34, 567.8, diverged="it ended at 1e13")
    lines = table([("a", "curveball", one), ("b", "sgd", other)]).splitlines()
    assert lines[2].split()[:3] == ["a", "curveball", "finished"]
    assert lines[3].split()[:3] == ["b", "sgd", "diverged"]


def test_data_and_metrics_of_machines_are_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress()
    progress.begin("run", 2)
    progress.show([Record("data", 0, 0.0, 0.0, {}, '{"name": "points"}')])
    progress.show([Record("system", 1_790_000_000, 0.0, 0.0, {"system/node_0/cpu_utilization_percentage": 50.0})])
    assert capsys.readouterr().out == ""
