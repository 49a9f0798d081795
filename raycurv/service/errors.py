"""From exceptions to one short message that says what failed and what to do, and an exit code that is not zero."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from raycurv.arguments import mask_passwords

logger = logging.getLogger(__name__)
USAGE, FAILED, INTERRUPTED = 2, 1, 130
FIT_THREAD = "raycurv-fit"  # waits in a call of Ray
# Errors whose own message says everything; any other one is a surprise, and named with its type.
EXPLAINED = (
    "LaunchError",
    "Stopped",
    "RunLocked",
    "LockLost",
    "CapacityError",
    "ConnectionRefused",
    "UnsharedStorage",
    "TrackingError",
    "CheckpointError",
    "ResumeError",
    "StartError",
    "DataError",
    "UntrustedCodeError",
    "StorageError",
    "NonFiniteLoss",
    "StepOutOfMemory",
    "WorkersDisagree",
    "ValueError",
    "FileNotFoundError",
)


class LaunchError(RuntimeError):
    """A launch failed; the message says what to do.

    Args:
        message: text for the user.
        details: the traceback of the worker, for a file.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Stopped(RuntimeError):
    """A launch was stopped by Ctrl-C, ``ray job stop`` or ``kill``; the message says how to go on."""


class RunLocked(RuntimeError):
    """Another driver is at work on a run; the message says who, since when, and what to do."""


class LockLost(RuntimeError):
    """Another driver has taken over a run, since this one seemed to be dead."""


@contextlib.contextmanager
def reported(folder: str | None = None) -> Iterator[None]:
    """For jobs: end the process with one message and an exit code when something fails inside.

    Args:
        folder: gets the whole traceback; by default the temporary folder.

    Raises:
        SystemExit: 2 for values that are not allowed, 130 after Ctrl-C or another stop, 1 for everything else.
    """
    try:
        yield
    except (KeyboardInterrupt, Stopped) as error:
        _write(f"stopped: {error}" if str(error) else "stopped")
        _exit_beside_ray(INTERRUPTED)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        message = f"error: {describe(type(error).__name__, str(error))}"
        if not _refused_here(error):
            message += f"\n(the whole traceback: {_write_details(error, folder)})"
        _write(message)
        raise SystemExit(USAGE if isinstance(error, ValueError) else FAILED) from None


def _exit_beside_ray(code: int) -> None:
    """End the process at once if a thread still waits in a call of Ray: the interpreter's own end would crash there."""
    if any(thread.name == FIT_THREAD for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _refused_here(error: Exception) -> bool:
    """Whether this package refused something by an error that it declares, whose message needs no traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = frames[-1].f_globals.get("__name__", "") if frames else ""
    declared = isinstance(error, ValueError) or (
        type(error).__module__.startswith("raycurv.") and error.__cause__ is None and not getattr(error, "details", "")
    )
    return declared and module.startswith("raycurv.")


def describe(kind: str, message: str) -> str:
    """One message for an error of type `kind`."""
    text = message.strip() or "no message"
    return text if kind in EXPLAINED else f"{kind}: {text}"


def _write_details(error: Exception, folder: str | None) -> Path:
    text = mask_passwords("".join(traceback.format_exception(error)) + str(getattr(error, "details", "")))
    for place in (folder, tempfile.gettempdir()):
        if place is None:
            continue
        path = Path(place) / "failures" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError:  # a full disk may be what the error is about
            logger.debug("could not write %s", path, exc_info=True)
            continue
        return path
    return Path(os.devnull)


def _write(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n{mask_passwords(text)}\n")
    sys.stderr.flush()
