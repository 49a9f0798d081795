"""From the words of a command line to a command that runs."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from raycurv.arguments import unknown
from raycurv.cli import extras, help
from raycurv.cli.commands import DEFAULTS, Command, tree

USAGE, FAILED, BROKEN_PIPE = 2, 1, 141
HELP, HELP_ALL = ("-h", "--help"), "--help-all"


class Runnable(Protocol):
    """An instance of a command's dataclass."""

    def run(self) -> None:
        """Do the work."""


def main(arguments: Sequence[str] | None = None, prog: str = "raycurv") -> int:
    """Run a command and return the exit code.

    Args:
        arguments: words after the program's name; by default those of the process.
        prog: name of the program in the help.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _quiet_on_a_closed_pipe(lambda: _main(words, prog))


def job(name: str) -> None:
    """Run a command as a script of ``jobs/``, and end the process.

    Args:
        name: first word of the command, such as ``"train"`` or ``"sweep"``.

    Raises:
        SystemExit: always, with the exit code.
    """
    sys.exit(_quiet_on_a_closed_pipe(lambda: _run_first_word(name, sys.argv[1:], f"python {sys.argv[0]}")))


def script(kind: type[Runnable]) -> None:
    """Run a dataclass of options with a method ``run`` as a script, and end the process.

    Args:
        kind: the dataclass; ``SHOWN`` names the options of the short help, ``EXAMPLE`` is an example.

    Raises:
        SystemExit: always, with the exit code.
    """
    sys.exit(_quiet_on_a_closed_pipe(lambda: _run(kind, sys.argv[1:], f"python {sys.argv[0]}")))


def _main(words: list[str], prog: str) -> int:
    first = words[0] if words else HELP[0]
    if first in (*HELP, HELP_ALL):
        sys.stdout.write(help.overview(prog) + "\n")
        return 0
    if first == "--version":
        sys.stdout.write(f"{prog} {importlib.metadata.version('raycurv')}\n")
        return 0
    if first not in tree():
        return _refuse(prog, unknown("command", first, tree()))
    return _run_first_word(first, words[1:], f"{prog} {first}")


def _run_first_word(first: str, words: list[str], called: str) -> int:
    commands = tree()[first]
    if commands[0].group is None:
        return _run_command(commands[0], words, called)
    if not words or words[0] in (*HELP, HELP_ALL):
        sys.stdout.write(help.group_help(called, first) + "\n")
        return 0
    if words[0].startswith("-") and first in DEFAULTS:
        words = [DEFAULTS[first], *words]
    inside = {command.name.split()[1]: command for command in commands}
    if words[0] not in inside:
        return _refuse(called, unknown("command", words[0], inside))
    return _run_command(inside[words[0]], words[1:], f"{called} {words[0]}")


def _run_command(command: Command, words: list[str], called: str) -> int:
    helped = not {*HELP, HELP_ALL}.isdisjoint(words)
    if not helped and (lacking := extras.missing(command.extras)):
        modules = [module for found in lacking.values() for module in found]
        return _fail(extras.explain(called, modules, command.extras[-1]))
    try:
        kind = command.load()
    except ModuleNotFoundError as error:
        if (message := extras.explain_missing(called, error.name or "")) is None:
            raise
        return _fail(message)
    return _run(kind, words, called)


def _run(kind: type[Any], words: list[str], called: str) -> int:
    if not {*HELP, HELP_ALL}.isdisjoint(words):
        sys.stdout.write(help.command_help(called, kind, complete=HELP_ALL in words) + "\n")
        return 0
    from raycurv.cli.parsing import parse
    from raycurv.service.errors import reported

    if os.getcwd() not in sys.path:  # recipes of the user are imported from there
        sys.path.insert(0, os.getcwd())
    try:
        command = parse(kind, words, called)
    except ValueError as error:
        return _refuse(called, str(error))
    if "torch" not in sys.modules:
        sys.stderr.write(f"{called}: loading {getattr(kind, 'LOADS', 'torch, Ray and MLflow')} …\n")
    with reported(getattr(getattr(command, "cluster", command), "runs", None)):
        try:
            command.run()
        except ModuleNotFoundError as error:
            if (message := extras.explain_missing(called, error.name or "")) is None:
                raise
            return _fail(message)
    return 0


def _refuse(called: str, message: str) -> int:
    sys.stderr.write(f"{called}: {message}\n")
    return USAGE


def _fail(message: str) -> int:
    sys.stderr.write(message + "\n")
    return FAILED


def _quiet_on_a_closed_pipe(work: Callable[[], int]) -> int:
    """The exit code of `work`; the one of SIGPIPE where its reader, such as ``head``, has ended."""
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return BROKEN_PIPE
