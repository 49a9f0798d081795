"""The optimizers install and import with torch alone, and imports stay lean."""

import subprocess
import sys

SCRIPT = """
import sys
absent = ["ray", "mlflow", "pyarrow", "torchvision", "pandas", "matplotlib", "tyro", "sklearn", "PIL", "simplejpeg"]
absent += ["schedulefree", "prodigyopt", "dadaptation", "dog", "curvlinops"]
for name in absent:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import torch, raycurv
from raycurv import optim
extra = {"schedule_free_sgd", "schedule_free_adamw", "prodigy", "dadapt_adam", "dog", "kfac"}
model = torch.nn.Linear(3, 2)
assert raycurv.__version__
for name in set(optim.names()) - extra:
    optim.create(name, torch.nn.Linear(3, 2))
batch = raycurv.Objective(model, "cross_entropy").batch(torch.randn(5, 3), torch.randint(2, (5,)))
report = optim.create("curveball", model).step(batch)
assert bool(report.finite)
"""


def test_optimizers_work_with_torch_alone():
    subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], check=True, timeout=120)
