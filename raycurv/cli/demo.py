"""``make demo``: a local Ray, and the main job submitted to it on images that need no download.

KEEP=1 leaves Ray running, for the next demo; RAYCURV_RUNS names another folder than `runs` of this checkout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from raycurv.data.digits import write_digits
from raycurv.service import local_ray
from raycurv.tracking import provenance

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2


def main() -> int:
    """Write the data, start Ray, submit; returns the exit code of the job."""
    began = time.monotonic()
    runs = Path(os.environ.get("RAYCURV_RUNS", ROOT / "runs")).absolute()
    keep = os.environ.get("KEEP", "") not in ("", "0")
    data = write_digits(runs / "data" / "digits")
    with ExitStack() as stack:
        note = runs / "ray.json"
        head = local_ray.saved(note)
        if head is not None:
            print(f"using the Ray that an earlier demo left running at {head.dashboard}")
        else:
            print("starting Ray on loopback …", flush=True)
            head = local_ray.start(max(WORKERS, os.cpu_count() or 1), outlive=keep)
            local_ray.save(head, note)
        if not keep:
            stack.callback(note.unlink, missing_ok=True)
            stack.callback(local_ray.stop, head)
        code = submit(head, str(data), runs)
        if keep:
            print(
                f"Ray stays up: dashboard {head.dashboard}, token in {head.folder}/token; stop it with kill {head.pid}"
            )
    print(f"the demo took {time.monotonic() - began:.0f} s")
    return code


def submit(head: local_ray.RayHead, data: str, runs: Path) -> int:
    """Submit the main job, follow it, and return the exit code of `ray job submit`."""
    origin = provenance.commit()
    commit = origin["commit"] + ("-dirty" if origin["dirty"] == "true" else "")
    variables = {"RAYCURV_COMMIT": commit, "RAYCURV_RUNS": str(runs)}
    ray = Path(sys.executable).parent / "ray"
    job = ["python", "jobs/imagenet_curveball.py", "--recipe", "digits", "--data", data]
    job += ["--workers", str(WORKERS), "--compare", "sgd", "adam"]
    environment = json.dumps({"env_vars": variables})
    command = [str(ray), "job", "submit", "--working-dir", ".", "--runtime-env-json", environment, "--", *job]
    return subprocess.run(command, cwd=ROOT, env=os.environ | head.environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
