"""The page ``docs/models.md``, from the outcomes of the survey."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

VERDICTS = ("right", "wrong", "refused")
HEAD = """# Models

Curvature, slopes and Jacobian products of models that nobody here wrote, against float64 differences.

```sh
make survey
```

- Each model has random weights, float64, and is in training mode.
- *Right*: slopes of `gradient`, `taylor_along` and `linearise` agree with differences of the values to 1e-5, and second
  derivatives to 1e-3.
- Casts to lower precision inside a model become casts to float64, because differences need every digit.
- *Refused*: an error names the operator or the module.
- *Not compared*: torch alone cannot run the model here, it takes too long, or its own gradient is not that of the
  values, as with parts that the model detaches. These do not count.

"""


def page(outcomes: Sequence[dict[str, str]], waiting: int = 0) -> str:
    """The page as Markdown; `waiting` cases have no outcome yet."""
    counts = Counter((outcome["group"], outcome["verdict"]) for outcome in outcomes)
    groups = sorted({outcome["group"] for outcome in outcomes})
    lines = ["| models | right | wrong | refused | share right | not compared |", "|---|---|---|---|---|---|"]
    for group in [*groups, None]:
        numbers = [
            sum(count for (of, found), count in counts.items() if found == verdict and group in (of, None))
            for verdict in (*VERDICTS, "not compared")
        ]
        share = f"{100 * numbers[0] / max(1, sum(numbers[:3])):.0f} %"
        lines.append(f"| {group or 'all'} | {numbers[0]} | {numbers[1]} | {numbers[2]} | {share} | {numbers[3]} |")
    if waiting:
        lines.append(f"\n{waiting} cases have not run yet; `make survey` goes on with them.")
    return HEAD + "\n".join(lines) + "\n" + listed(outcomes, "wrong") + listed(outcomes, "refused")


def listed(outcomes: Sequence[dict[str, str]], verdict: str) -> str:
    """The models with this verdict, and why."""
    found = [outcome for outcome in outcomes if outcome["verdict"] == verdict]
    if not found:
        return ""
    rows = [f"| {outcome['group']}: {outcome['name']} | {escaped(outcome['detail'])} |" for outcome in found]
    return f"\n## {verdict.capitalize()}\n\n| model | why |\n|---|---|\n" + "\n".join(rows) + "\n"


def escaped(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")[:160]
