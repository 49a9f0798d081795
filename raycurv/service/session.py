"""What every launch and sweep does around its work: MLflow opened and closed, Ray connected, signals handled."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from raycurv.arguments import mask_passwords
from raycurv.service.cluster import Cluster
from raycurv.service.terminal import TerminalProgress, leave_closed_terminal
from raycurv.tracking.settings import default_runs, default_tracking_uri

if TYPE_CHECKING:
    from raycurv.tracking.client import Tracking


def terminal_of(cluster: Cluster, name: str) -> TerminalProgress:
    """The terminal of a launch or sweep, as ``--quiet``, ``--verbose`` and ``--log-file`` ask for it.

    Args:
        cluster: the options.
        name: name of the launch or sweep.

    Raises:
        ValueError: the log file cannot be written.
    """
    library_file = Path(cluster.runs) / "logs" / f"{name}.log"
    return TerminalProgress(
        quiet=cluster.quiet, verbose=cluster.verbose, log_file=cluster.log_file, library_file=library_file
    )


@contextlib.contextmanager
def tracking_session(
    cluster: Cluster, names: Sequence[str], terminal: TerminalProgress, trust: Collection[str] = ()
) -> Iterator[Tracking]:
    """Open MLflow, tidy up after earlier drivers, and deliver everything at the end.

    Args:
        cluster: address of MLflow and folder of all runs.
        names: runs to create, which must be new unless the cluster says to resume.
        terminal: shows lines to the user.
        trust: functions that checkpoints may name, those of the runs.

    Yields:
        The connection.

    Raises:
        TrackingError: MLflow cannot be used, or has a run of one of the names.
    """
    from raycurv.tracking.client import Tracking, open_command

    terminal.take_library_logs()  # MLflow's, which has just been imported
    tracking = Tracking(cluster, terminal.notify_always, trust)
    if count := tracking.send_unsent():
        terminal.notify(f"delivered {count} messages to MLflow that an earlier driver could not deliver")
    for name in tracking.close_abandoned():
        terminal.notify(f"closed the run {name!r} as KILLED: its driver is gone")
    if not cluster.resume:
        for name in names:
            tracking.require_new(name)
    completed = False
    try:
        yield tracking
        completed = True
    finally:
        left = tracking.finish()
        if left is not None:
            terminal.notify_always(
                f"MLflow did not take everything; the next start or `raycurv tracking reap` delivers the rest: {left}"
            )
        if completed:
            shown = open_command(tracking.uri, tracking.experiment)
            terminal.notify(f"\nSee the runs in MLflow:\n  {shown}\nCompare them:\n  {compare_command(cluster)}")


def compare_command(cluster: Cluster) -> str:
    """The command that compares the runs of a launch with all others of their experiment."""
    words = ["raycurv", "compare"]
    if cluster.runs != str(Path(default_runs()).expanduser().absolute()):
        words += ["--runs", cluster.runs]
    if cluster.tracking_uri is not None and cluster.tracking_uri != default_tracking_uri():
        words += ["--tracking-uri", mask_passwords(cluster.tracking_uri)]
    if cluster.experiment != "raycurv":
        words += ["--experiment", cluster.experiment]
    return shlex.join(words)


@contextlib.contextmanager
def ray_session(cluster: Cluster, terminal: TerminalProgress) -> Iterator[None]:
    """Connect to Ray, and refuse what it can never give.

    Args:
        cluster: resources of the workers.
        terminal: shows lines to the user.

    Yields:
        Nothing; ``ray`` is connected inside.

    Raises:
        ConnectionRefused: Ray cannot be reached.
        CapacityError: the cluster can never give the workers.
    """
    from raycurv.service.connection import connected, require_capacity

    with connected(cluster, terminal.notify):
        terminal.take_library_logs()
        require_capacity(cluster, terminal.notify)
        yield


@contextlib.contextmanager
def signals_handled(numbers: Sequence[signal.Signals], handle: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Handle signals in a ``with`` block; outside the main thread, where Python allows none, do nothing.

    SIGHUP is left alone where it is ignored, as ``nohup`` wants it.

    Yields:
        Nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminal()
        handle(signal.Signals(number))

    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, handler) for number in numbers if number not in ignored}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
