"""The optimizers install and import with torch alone, and imports stay lean."""

import subprocess
import sys

SCRIPT = """
import sys
for name in ("ray", "mlflow", "pyarrow", "torchvision", "pandas", "matplotlib", "tyro", "sklearn", "PIL", "simplejpeg"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import torch, raycurv
from raycurv import optim
model = torch.nn.Linear(3, 2)
assert raycurv.__version__
for name in optim.names():
    optim.create(name, torch.nn.Linear(3, 2))
batch = raycurv.Objective(model, "cross_entropy").batch(torch.randn(5, 3), torch.randint(2, (5,)))
report = optim.create("curveball", model).step(batch)
assert bool(report.finite)
"""


def test_optimizers_work_with_torch_alone():
    subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], check=True, timeout=120)
