"""Specifications of the papers' figures, drawn for all tracked runs with the needed metrics, of any optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from raycurv.figures import panels
from raycurv.figures.curves import MetricPanel
from raycurv.figures.panels import FigureSpec
from raycurv.figures.rendered_figure import RenderedFigure
from raycurv.results.histories import RunHistory, separate_conditions

TRAINING_ACCURACY, MOMENTUM = "training_set/accuracy", "optimizer/momentum"
ALARMS, SCALE, TENSORS = "optimizer/alarms", "optimizer/scale", "optimizer/learning_rate/*"
_SEVERAL = 3  # least number of settings of one optimizer in a study


def _networks(runs: list[RunHistory]) -> list[RunHistory]:
    """Runs of sweeps over networks."""
    return [run for run in runs if run.outcome.labels.get("network")]


def _studied(runs: list[RunHistory]) -> list[RunHistory]:
    """Runs of optimizers with at least :data:`_SEVERAL` settings on one recipe."""
    settings: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        settings.setdefault((run.outcome.recipe, run.outcome.optimizer), set()).add(run.outcome.setting)
    return [run for run in runs if len(settings[run.outcome.recipe, run.outcome.optimizer]) >= _SEVERAL]


def _annealed(runs: list[RunHistory]) -> list[RunHistory]:
    """All runs of recipes in which ℓ rises in some run."""
    recipes = {run.outcome.recipe for run in runs if SCALE in run.traces and len(run.traces[SCALE].rises())}
    return [run for run in runs if run.outcome.recipe in recipes]


def _fixed_momentum(runs: list[RunHistory]) -> list[RunHistory]:
    """All runs of recipes in which the momentum of some run is 1 at every step."""
    fixed = {run.outcome.recipe for run in runs if MOMENTUM in run.traces and (run.traces[MOMENTUM].values == 1).all()}
    return [run for run in runs if run.outcome.recipe in fixed]


def _watched(runs: list[RunHistory]) -> list[RunHistory]:
    """Runs that report the learning rate of each tensor, or alarms."""
    return [run for run in runs if ALARMS in run.traces or any(name.startswith(TENSORS[:-1]) for name in run.traces)]


_SMOOTH = (
    MetricPanel("train/loss", reduction="moving average"),
    MetricPanel("optimizer/learning_rate", reduction="moving average"),
)
_TRAINING_ERROR = MetricPanel(TRAINING_ACCURACY, error=True, title="training error")
_TRAINING = (*_SMOOTH, MetricPanel("test/loss"), MetricPanel("test/accuracy"))

FIGURES = (
    FigureSpec(
        "training",
        "RED, Fig. 1",
        "Training loss, step size, test loss and test accuracy",
        _TRAINING,
        needs=("train/loss",),
    ),
    FigureSpec(
        "quantiles",
        "RED, appendix D",
        "Spread of loss and step size among the batches of an epoch",
        tuple(MetricPanel(view.metric, reduction="epoch quantiles") for view in _SMOOTH),
        needs=("train/loss",),
        one_seed=True,
    ),
    FigureSpec(
        "annealing",
        "RED, Fig. 3",
        "Annealing: the loss before, in and after hyper-exploration",
        _TRAINING,
        choose=_annealed,
        marks=SCALE,
        marked="ℓ rises: hyper-exploration begins",
        hint="runs of a method whose ℓ (optimizer/scale) goes up again, such as --study red_annealing",
    ),
    FigureSpec(
        "descent",
        "RED, Fig. 6, 7",
        "Momentum: how many steps go downhill",
        (
            *_TRAINING,
            MetricPanel("optimizer/descent_share", reduction="epoch end", title="share of descent directions"),
        ),
        needs=("optimizer/descent_share",),
        hint="runs of a method that reports optimizer/descent_share, such as --study red_momentum",
    ),
    FigureSpec(
        "training_error",
        "CurveBall, Fig. 2",
        "Training error after each epoch",
        (_TRAINING_ERROR, MetricPanel("train/epoch_loss")),
        needs=(TRAINING_ACCURACY,),
        hint="runs that measure the training set (evaluate_training), such as `raycurv papers table curveball_fig2`",
    ),
    FigureSpec(
        "fixed_momentum",
        "CurveBall, Fig. 8",
        "Training error after each epoch with fixed momentum ρ = 1",
        (_TRAINING_ERROR, MetricPanel("train/epoch_loss")),
        needs=(TRAINING_ACCURACY,),
        choose=_fixed_momentum,
        hint="runs whose momentum is 1 at every step, and which measure the training set, such as "
        "`raycurv papers table curveball_fig8`",
    ),
    FigureSpec(
        "time",
        "CurveBall, Fig. 3 (right), 7",
        "Loss and error against wall-clock time",
        (
            MetricPanel("train/epoch_loss", axis="seconds"),
            MetricPanel("training_set/accuracy", axis="seconds", error=True, title="training error"),
            MetricPanel("test/accuracy", axis="seconds", error=True, title="test error"),
        ),
    ),
    FigureSpec(
        "networks",
        "CurveBall, Fig. 3 (left)",
        "Random networks",
        (
            MetricPanel("train/epoch_loss", spread="quartiles"),
            MetricPanel("test/accuracy", spread="quartiles", error=True, title="test error"),
        ),
        choose=_networks,
        hint="runs on random networks, as `raycurv sweep networks` makes them",
    ),
    FigureSpec(
        "hyperparameters",
        "CurveBall, Fig. 5",
        "Evolution of momentum, learning rate and damping",
        (
            MetricPanel("optimizer/momentum", reduction="epoch mean", title="momentum ρ"),
            MetricPanel("optimizer/learning_rate", reduction="epoch mean", title="learning rate β"),
            MetricPanel("optimizer/damping", reduction="epoch mean", relative=True, title="damping λ"),
        ),
        needs=("optimizer/damping",),
        hint="runs of a method that reports optimizer/damping",
    ),
    FigureSpec(
        "gradient",
        "CurveBall, Fig. 6",
        "Evolution of the gradient",
        (MetricPanel("train/gradient_norm", reduction="epoch mean"),),
        needs=("train/gradient_norm",),
        hint="runs with --gradient-norm",
    ),
    FigureSpec(
        "rates",
        "NTLR, Fig. 1, 2",
        "Loss and learning rate from many settings",
        (MetricPanel("train/loss", reduction="moving average"), MetricPanel("optimizer/learning_rate")),
        columns="optimizer",
        choose=_studied,
        ordered=True,
        stages=("final", "search"),
        needs=("train/loss",),
        hint=f"runs of one optimizer with at least {_SEVERAL} settings, such as --study ntlr_initial_rates",
    ),
    FigureSpec(
        "epochs",
        "LLR, Fig. 3-14",
        "Loss and accuracy on training and test set after each epoch, and the learning rate",
        (
            MetricPanel("train/epoch_loss"),
            MetricPanel("training_set/accuracy", title="training accuracy"),
            MetricPanel("test/loss"),
            MetricPanel("test/accuracy"),
            MetricPanel("optimizer/learning_rate", reduction="epoch mean"),
        ),
        needs=("training_set/accuracy",),
        hint="runs that measure the training set (evaluate_training), as the recipes of LLR do",
    ),
    FigureSpec(
        "batch_error",
        "SALERA, Fig. 2",
        "Test error, test loss and mini-batch error",
        (
            MetricPanel("test/accuracy", error=True, title="test error"),
            MetricPanel("test/loss"),
            MetricPanel("train/batch_error", reduction="epoch mean", share=True),
        ),
        needs=("train/batch_error",),
        hint="runs with --batch-error, as the recipes of SALERA have it",
    ),
    FigureSpec(
        "alarms",
        "SALERA, Fig. 1",
        "Catastrophic episodes: test error, mini-batch loss and error, learning rates",
        (
            MetricPanel("test/accuracy", error=True, title="test error"),
            MetricPanel("train/loss"),
            MetricPanel("train/batch_error", share=True),
            MetricPanel(TENSORS),
        ),
        columns="method",
        choose=_watched,
        one_seed=True,
        marks=ALARMS,
        marked="alarm",
        hint=f"runs that report {TENSORS} (--setting rates_by_tensor=true) or {ALARMS}; the mini-batch error by "
        "--batch-error",
    ),
)


def metrics() -> tuple[str, ...]:
    """Metrics that the figures need, show or mark; a name that ends in ``/*`` stands for all with this prefix."""
    wanted = [*(v.metric for p in FIGURES for v in p.views), *(n for p in FIGURES for n in (*p.needs, p.marks) if n)]
    return tuple(dict.fromkeys([*wanted, ALARMS, SCALE, "optimizer/learning_rate"]))


def draw(found: Sequence[RunHistory], chosen: Iterable[FigureSpec] = FIGURES) -> list[RenderedFigure]:
    """Draw every figure for which the runs have data.

    Raises:
        ValueError: the runs have data for no figure.
        ImportError: matplotlib is not installed.
    """
    runs = separate_conditions(found)
    drawn = [one for spec in chosen for one in panels.draw(spec, runs)]
    if not drawn:
        raise ValueError("no run has a metric that a figure shows: there is nothing to draw")
    return drawn


def write(drawn: Sequence[RenderedFigure], folder: Path, chosen: Iterable[FigureSpec] = FIGURES) -> list[Path]:
    """Write figures as PNG, SVG and CSV, and figures.md with all captions and the needs of the figures not drawn.

    Args:
        drawn: figures from :func:`draw`.
        folder: folder of the files, created if needed.
        chosen: specifications passed to :func:`draw`.
    """
    paths, texts = [], ["# Figures", ""]
    for one in drawn:
        paths += one.save(folder)
        texts += [
            f"## {one.title}",
            "",
            f"![{one.title}]({one.name}.png)",
            "",
            one.caption,
            "",
            f"[SVG]({one.name}.svg) · [data]({one.name}.csv)",
            "",
        ]
    there = {one.name.rstrip("-0123456789") for one in drawn}
    missing = [
        f"- {spec.title} (after {spec.source}): needs {spec.hint or 'runs that tell of these'}"
        for spec in chosen
        if spec.name not in there
    ]
    if missing:
        texts += ["## Not drawn", "", *missing, ""]
    index = folder / "figures.md"
    index.write_text("\n".join(texts), encoding="utf-8")
    return [*paths, index]
