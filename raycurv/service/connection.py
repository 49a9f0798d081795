"""Connection to a Ray cluster, and a check that it can give what a launch asks for."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import re
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from raycurv.service.cluster import Cluster
from raycurv.service.local_ray import LOOPBACK_ONLY
from raycurv.service.ray_address import ConnectionRefused, named_cluster, require_reachable
from raycurv.train.host_memory import ALLOCATOR_DEFAULTS

CONNECT_TRIES = "2"  # of about 40 seconds each; Ray makes twenty
# Ray's own switches, unless the environment sets them.
RAY_DEFAULTS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # a rank that never comes is named instead of waited for
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the policy for the number of workers sees the notices itself
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # the policy starts workers where there is room for them
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay where the user's modules are
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files and plots that nobody reads: the driver writes to MLflow
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may fail before its first evaluation
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # a resumed sweep reads its own log of outcomes
}
JOINING_SECONDS = 20.0  # for nodes that are on their way, where no autoscaler will make new ones


class CapacityError(RuntimeError):
    """The cluster cannot give the workers that were asked for; the message says what is missing."""


@contextlib.contextmanager
def connected(cluster: Cluster, notify: Callable[[str], None]) -> Iterator[None]:
    """Connect to the cluster of ``RAY_ADDRESS`` or of this machine, or start a private Ray on loopback.

    Args:
        cluster: resources of the workers.
        notify: function that shows a line to the user.

    Yields:
        Nothing; ``ray`` is connected inside.

    Raises:
        ConnectionRefused: the cluster cannot be reached, or refuses.
    """
    named = named_cluster()
    for name, value in RAY_DEFAULTS.items():  # before ray is imported
        os.environ.setdefault(name, value)
    if named is None:
        # Read when ray is imported, and by every process that it starts.
        os.environ |= LOOPBACK_ONLY
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        for name, value in ALLOCATOR_DEFAULTS.items():  # for the workers
            os.environ.setdefault(name, value)
        _protect_token()
    else:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", CONNECT_TRIES)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if named is not None:
        require_reachable(*named)
    import ray
    import ray.exceptions

    if ray.is_initialized():
        yield
        return
    # What the workers print stays in Ray's logs: the progress is what a user wants to see.
    initialise = functools.partial(ray.init, log_to_driver=False, logging_level=logging.WARNING)
    try:
        if named is not None:
            initialise(address="auto")
            notify(f"connected to Ray at {ray.get_runtime_context().gcs_address}")
        else:
            _loopback_now()
            cpus = max(os.cpu_count() or 1, 1)
            with _hangup_blocked():
                initialise(address="local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1")
            notify(f"started a private Ray with {cpus} CPUs, on loopback")
    except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
        raise ConnectionRefused(_why_refused(error, named)) from error
    try:
        yield
    finally:
        with _no_garbage_collection():
            ray.shutdown()


def require_capacity(cluster: Cluster, notify: Callable[[str], None]) -> None:
    """Refuse more workers than the cluster can ever give.

    With an autoscaler, its upper limits count. Without one, the present nodes count, after a short wait for nodes that
    are joining.

    Raises:
        CapacityError: it can never give that many.
    """
    import ray
    from ray._private.state import state  # there is no public way to ask for the autoscaler's limits

    limits = state.get_max_resources_from_cluster_config()
    if limits:
        short = {n: (cluster.min_workers * amount, limits.get(n, 0)) for n, amount in cluster.resources.items()}
        missing = [
            f"{needed:g} {n} where it may grow to {limit:g}" for n, (needed, limit) in short.items() if needed > limit
        ]
        if missing:
            raise CapacityError(
                f"{_asked(cluster)} need {', '.join(missing)}: ask for fewer workers, or raise max_workers"
            )
        return
    deadline = time.monotonic() + min(JOINING_SECONDS, cluster.worker_timeout)
    notified = False
    while (room := _room(ray.nodes(), cluster.resources)) < cluster.min_workers:
        if time.monotonic() > deadline:
            gpu = ", or leave out --use-gpu" if cluster.use_gpu else ""
            raise CapacityError(
                f"{_asked(cluster)} were asked for and the cluster has room for {room}: {inventory(ray.nodes())}, and "
                f"no autoscaler that could add more. Ask for fewer (--workers, --cpus-per-worker{gpu}), or start more "
                "nodes"
            )
        if not notified:
            of = f"room for {room} of {cluster.min_workers} workers"
            notify(f"waiting up to {JOINING_SECONDS:.0f} s for nodes to join: {of}")
            notified = True
        time.sleep(0.5)


def may_grow(cluster: Cluster) -> bool:
    """Whether workers may be placed on nodes that are not there yet."""
    from ray._private.state import state

    return cluster.min_workers < cluster.max_workers or bool(state.get_max_resources_from_cluster_config())


def _room(nodes: list[dict], resources: dict[str, float]) -> int:
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(node.get(name, 0) / amount) for name, amount in resources.items()) for node in alive)


def inventory(nodes: list[dict]) -> str:
    """Number and resources of nodes that are alive, for a message."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus, gpus = (sum(node.get(name, 0) for node in alive) for name in ("CPU", "GPU"))
    return f"{len(alive)} node{'s' if len(alive) != 1 else ''} with {cpus:g} CPU and {gpus:g} GPU"


def _asked(cluster: Cluster) -> str:
    each = " and ".join(f"{amount:g} {name}" for name, amount in cluster.resources.items())
    return f"{cluster.min_workers} workers with {each} each"


@contextlib.contextmanager
def _hangup_blocked() -> Iterator[None]:
    # Processes that start inside inherit the mask: a closed terminal must not end Ray before there is a checkpoint.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # A reference of Ray that another thread collects while Ray shuts down ends the process at once, by exit code 1.
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _why_refused(error: BaseException, named: tuple[str, str] | None) -> str:
    """The message for an error of Ray, which may be long."""
    if named is None:
        return f"Ray does not start on this machine: {_first_line(error)}"
    address, source = named
    if re.search(r"authenticat|auth[_ ]?token", "".join(traceback.format_exception(error)), re.IGNORECASE):
        return (
            f"the Ray at {address} wants a token: set RAY_AUTH_MODE=token, and put the cluster's token in "
            "~/.ray/auth_token, or its file in RAY_AUTH_TOKEN_PATH"
        )
    return (
        f"cannot connect to Ray at {address} ({source}): {_first_line(error)}. Check that it runs (ray status), that "
        "the address is right, and that RAY_AUTH_MODE and its token are those of the cluster"
    )


def _protect_token() -> None:
    """Keep Ray's token from other users: Ray itself makes a file that all can read."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):  # of somebody else, or a home that cannot be written: Ray says what it needs
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(path, "x", opener=_private) as file:
            file.write(secrets.token_hex(32))
        path.chmod(0o600)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _loopback_now() -> None:
    # The same switch as in LOOPBACK_ONLY, for a process that had imported ray before.
    constants = sys.modules.get("ray._private.ray_constants")
    if constants is not None:
        constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
