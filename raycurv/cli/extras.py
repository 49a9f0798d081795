"""What to install when a command needs a package that is not there."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

# Modules of the extras in pyproject.toml; of two extras that bring a module, the smaller one counts.
MODULES = {
    "data": ("numpy", "PIL", "pyarrow", "simplejpeg", "torchvision"),
    "cluster": ("ray", "mlflow", "pandas", "sqlalchemy", "psutil", "tyro", "rich"),
    "demo": ("sklearn",),
    "figures": ("matplotlib",),
    "modern": ("schedulefree", "prodigyopt", "dadaptation", "dog", "momo", "mechanic_pytorch", "pytorch_optimizer"),
    "kfac": ("curvlinops",),
    "metrics": ("torchmetrics",),
    "pretrained": ("safetensors", "timm", "transformers"),
}
_INCLUDED = {"cluster": ("data",), "demo": ("cluster", "data")}


def missing(extras: Sequence[str]) -> dict[str, list[str]]:
    """The modules of the extras that cannot be imported, by extra."""
    wanted = dict.fromkeys(name for extra in extras for name in (*_INCLUDED.get(extra, ()), extra))
    found = {e: [m for m in MODULES[e] if importlib.util.find_spec(m) is None] for e in wanted}
    return {extra: modules for extra, modules in found.items() if modules}


def explain(command: str, modules: Sequence[str], extra: str) -> str:
    """The message for modules that are missing, with the line that brings them."""
    names = " and ".join(modules) if len(modules) < 3 else f"{', '.join(modules[:-1])} and {modules[-1]}"
    are = "is" if len(modules) == 1 else "are"
    return f"{command} needs {names}, which {are} not installed; bring it with: {pip_line(extra)}"


def explain_missing(command: str, module: str) -> str | None:
    """The message for a module that an import did not find; None where no extra brings it."""
    top = module.partition(".")[0]
    extra = next((extra for extra, modules in MODULES.items() if top in modules), None)
    return None if extra is None else explain(command, [top], extra)


def pip_line(extra: str) -> str:
    """The command that installs an extra, from the checkout or beside the installed wheel."""
    root = Path(__file__).resolve().parents[2]
    source = str(root) if (root / "pyproject.toml").exists() else "raycurv"
    return f"python -m pip install '{source}[{extra}]'"
