"""Messages of Ray, MLflow and other libraries: in a file, and not between the lines of the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

LIBRARIES = ("ray", "mlflow", "alembic", "urllib3", "filelock", "sqlalchemy")
_PACKAGE = str(Path(__file__).resolve().parents[1])
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LibraryLogs:
    """Takes log records and warnings of libraries from the terminal into a file.

    Warnings of this package stay visible: they are for its user.

    Args:
        path: file, made with the first message; None for none.
        show: function that shows a message as well; None for none.
    """

    def __init__(self, path: Path | None, show: Callable[[str], None] | None = None) -> None:
        self._logger = logging.Logger("raycurv.libraries", logging.INFO)
        self._handler = _QuietFile(path) if path is not None else logging.NullHandler()
        self._handler.setFormatter(logging.Formatter(_FORMAT))
        self._logger.addHandler(self._handler)
        self._show = show
        self._taken: dict[str, tuple[list[logging.Handler], bool]] = {}
        self._showwarning: Any = None

    def start(self) -> None:
        """Take warnings from now on."""
        self._showwarning = warnings.showwarning
        warnings.showwarning = self._warned
        self.take()

    def take(self) -> None:
        """Take the loggers of libraries that have been imported so far, which put handlers of their own in place."""
        handlers = [self._handler, *([_Shown(self._show)] if self._show is not None else [])]
        for name, logger in list(logging.root.manager.loggerDict.items()):
            if name.partition(".")[0] in LIBRARIES and isinstance(logger, logging.Logger):
                top = "." not in name
                if name not in self._taken and (top or any(map(_on_terminal, logger.handlers))):
                    self._taken[name] = (logger.handlers, logger.propagate)
                    kept = [handler for handler in logger.handlers if not _on_terminal(handler)]
                    logger.handlers, logger.propagate = [*kept, *handlers], False

    def stop(self) -> None:
        """Give the loggers back, and close the file."""
        for name, (handlers, propagate) in self._taken.items():
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = handlers, propagate
        self._taken.clear()
        if self._showwarning is not None:
            warnings.showwarning, self._showwarning = self._showwarning, None
        self._handler.close()

    def write(self, text: str) -> None:
        """Add a line of this package to the file."""
        self._logger.info(text)

    def _warned(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if filename.startswith(_PACKAGE) or file is not None:
            self._showwarning(message, category, filename, lineno, file, line)
            return
        text = warnings.formatwarning(message, category, filename, lineno, line).strip()
        self._logger.warning(text)
        if self._show is not None:
            self._show(text)


class _QuietFile(logging.FileHandler):
    """A file that is made with the first record; a full disk costs its lines, and no run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)

    def _open(self) -> Any:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the record out."""


class _Shown(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


def _on_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
