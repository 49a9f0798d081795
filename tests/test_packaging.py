"""The optimizers install and import with torch alone, and imports stay lean."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
absent = ["ray", "mlflow", "pyarrow", "torchvision", "pandas", "matplotlib", "tyro", "sklearn", "PIL", "simplejpeg"]
absent += ["lightning", "pytorch_lightning", "transformers", "accelerate", "datasets", "torchmetrics"]
absent += ["schedulefree", "prodigyopt", "dadaptation", "dog", "curvlinops"]
absent += ["momo", "mechanic_pytorch", "pytorch_optimizer", "safetensors", "timm"]
for name in absent:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import torch, raycurv
from raycurv import optim
extra = {"schedule_free_sgd", "schedule_free_adamw", "schedule_free_adamw_algoperf"}
extra |= {"prodigy", "prodigy_cosine", "dadapt_adam", "dog", "kfac", "momo_adam", "mechanic_adam", "soap", "ademamix"}
scheduled = {"adamw_cosine", "nadamw_algoperf"}
model = torch.nn.Linear(3, 2)
assert raycurv.__version__
for name in set(optim.names()) - extra:
    optim.create(name, torch.nn.Linear(3, 2), horizon=optim.Horizon(1, 10, 50) if name in scheduled else None)
batch = raycurv.Objective(model, "cross_entropy").batch(torch.randn(5, 3), torch.randint(2, (5,)))
report = optim.create("curveball", model).step(batch)
assert bool(report.finite)
"""


def test_optimizers_work_with_torch_alone():
    subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], check=True, timeout=120)


def test_what_runs_on_a_gpu_needs_torch_and_numpy_alone():
    script = SCRIPT.partition("import torch, raycurv")[0]
    script += "sys.modules |= dict.fromkeys(['hypothesis', 'xdist'])\n"
    script += (
        "import tests.gpu.report, tests.gpu.test_checks, tests.gpu.test_device, raycurv.benchmarks.cifar10_on_device"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120, cwd=root)


LIGHT = """
import sys
import raycurv.service, raycurv.train.configuration, raycurv.tracking.settings
heavy = {"torch", "ray", "mlflow", "pandas", "numpy", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
assert raycurv.optim.create and raycurv.Objective and raycurv.train.RunConfig
assert "torch" in sys.modules and "ray" not in sys.modules
slow = {"triton", "torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)  # a tenth of a second to seconds each
assert not slow, slow
for package in (raycurv, raycurv.train):
    assert all(hasattr(package, name) for name in package.__all__)
    assert not hasattr(package, "no_such_name")
"""


def test_what_a_command_line_needs_imports_neither_torch_nor_ray():
    subprocess.run([sys.executable, "-W", "error", "-c", LIGHT], check=True, timeout=120)
