from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import raycurv.tracking, raycurv.tracking.settings, raycurv.tracking.messages, raycurv.tracking.provenance
import raycurv.service, raycurv.service.session, raycurv.service.artifacts, raycurv.service.terminal
heavy = {"torch", "ray", "mlflow", "pandas", "numpy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_neither_mlflow_nor_ray_nor_torch_is_loaded_before_it_is_needed() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", CODE], check=True, timeout=120)
