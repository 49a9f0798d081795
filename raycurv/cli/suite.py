"""``raycurv benchmark suite``: tasks with targets, a score, and a table of methods at one setting for all."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raycurv.service.cluster import Cluster
from raycurv.service.limits import Limits

if TYPE_CHECKING:
    from raycurv.benchmarks.suite.plan import SuitePlan
    from raycurv.benchmarks.suite.runs import SuiteRuns

BEGIN, END = "<!-- suite: begin -->", "<!-- suite: end -->"


@dataclass(frozen=True)
class BenchmarkSuite:
    """Train every method on tasks with targets, score the operations to the target, and compare one setting for all."""

    SHOWN: ClassVar = (
        *("tasks", "methods", "seeds", "costly", "show", "output", "page"),
        *("run_name", "resume", "time_limit", "cpus_per_worker"),
    )
    EXAMPLE: ClassVar = "raycurv benchmark suite --tasks digits --methods adam auto"

    tasks: tuple[str, ...] = ()
    """Tasks of the suite. By default all that take less than three minutes a run."""

    methods: tuple[str, ...] = ()
    """Methods, or the groups `baselines` and `own`. By default all."""

    seeds: int = 3
    """Seeds of every method on every task."""

    costly: bool = False
    """Run the costly tasks too, with a few methods."""

    show: bool = False
    """Train nothing: show the tables and the time left."""

    sweeps: tuple[str, ...] = ()
    """Sweeps to show where the suite ran in parts. By default that of --run-name."""

    output: Path | None = None
    """Folder for suite.md and the performance profile. The figure needs the extra figures."""

    page: Path | None = None
    """Markdown page that gets the tables, between the two marks of the suite."""

    limits: Limits = field(default_factory=Limits)
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> None:
        """Run what is missing, or show the tables from the runs so far."""
        from raycurv.benchmarks.suite import methods, tables, tasks
        from raycurv.benchmarks.suite.plan import SuitePlan
        from raycurv.benchmarks.suite.runs import SuiteRuns
        from raycurv.service import suite

        plan = SuitePlan(tasks.select(self.tasks, costly=self.costly), methods.select(self.methods), self.seeds)
        cluster = dataclasses.replace(self.cluster, log_model=False)
        if not self.show:
            suite.run(plan, cluster, self.limits)
        runs = SuiteRuns(suite.stored(cluster, self.sweeps))
        print(f"{tables.page(plan, runs)}\n{tables.progress(plan, runs)}")
        self._write(plan, runs)

    def _write(self, plan: SuitePlan, runs: SuiteRuns) -> None:
        from raycurv.benchmarks.suite import tables

        text = tables.page(plan, runs)
        if self.page is not None:
            self.page.write_text(replace_part(self.page.read_text(encoding="utf-8"), text), encoding="utf-8")
        if self.output is not None:
            from raycurv.figures import suite_profile

            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "suite.md").write_text(text, encoding="utf-8")
            optimizers = {method.name: method.optimizer for method in plan.methods}
            suite_profile.save(tables.suite_profiles(plan, runs), self.output, optimizers)


def replace_part(page: str, text: str) -> str:
    """Replace what stands between the two marks of a page.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no part for the suite: put the lines {BEGIN} and {END} where it should be")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"
