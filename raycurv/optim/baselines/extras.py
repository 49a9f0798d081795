"""Optional packages, imported when a method needs them; the error names the extra to install."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Context of imports that belong to this extra.

    Raises:
        ModuleNotFoundError: a package is missing; the message says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this optimizer needs the package {error.name!r}: pip install 'raycurv[{name}]'", name=error.name
        ) from error
