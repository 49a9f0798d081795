from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, PearsonCorrCoef
from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix, MulticlassF1Score

from raycurv.data import TensorSource
from raycurv.objective.collectives import Local
from raycurv.train import (
    CheckpointStore,
    Component,
    Record,
    RunConfig,
    SummedMetric,
    check,
    evaluate,
    load_trained_model,
    train,
)
from raycurv.train.build import build_metrics
from raycurv.train.evaluation_metrics import Metric, f1_score, perplexity, top_k_correct
from raycurv.train.records import newest_is_best
from tests.train import problems, threads
from tests.train.problems import Kept, config

NAMED = ("top5", "f1", "mse", "perplexity")
SHAPE = {"num_classes": 3, "input_shape": [4]}


def margin(outputs: Tensor, targets: Tensor, power: float = 1.0) -> Tensor:
    """A metric per sample, with a setting."""
    best = outputs.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) ** power


def recall_of_the_rarest(num_classes: int) -> SummedMetric:
    def counts(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = nn.functional.one_hot(targets, num_classes)
        return torch.stack([(wanted * (outputs.argmax(1) == targets)[:, None]).sum(0), wanted.sum(0)])

    return SummedMetric(counts, lambda sums: sums[0, sums[1].argmin()] / sums[1].min())


def classification(samples: int = 23, classes: int = 7) -> TensorSource:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(classes, (samples,), generator=generator)
    outputs = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    outputs += 1.5 * nn.functional.one_hot(targets, classes)
    return TensorSource(outputs, targets, [f"class {i}" for i in range(classes)])


def measured(source: TensorSource, metrics: dict[str, Metric], workers: int = 1, **options: Any) -> dict[str, float]:
    """Metrics of the identity, whose outputs are the inputs; equal on all workers."""
    options = {"loss": "cross_entropy", "batch_size": 5, "precision": "fp64", "prefix": "", **options}

    def worker(collectives: threads.Threads) -> dict[str, float]:
        return evaluate(nn.Identity(), source, metrics=metrics, collectives=collectives, **options)

    found = threads.run(workers, worker)
    assert len({json.dumps(values) for values in found}) == 1  # as text, where NaN equals NaN
    return found[0]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_metrics_of_classes_equal_those_of_scikit_learn_for_any_number_of_workers(workers: int) -> None:
    source = classification()
    found = measured(
        source,
        {
            "top5": top_k_correct,
            "perplexity": perplexity(),
            **{average: f1_score(average) for average in ("macro", "micro", "weighted")},
        },
        workers,
    )
    predicted = source.inputs.argmax(1)
    assert found["top5"] == pytest.approx(
        sklearn_metrics.top_k_accuracy_score(source.targets, source.inputs, k=5, labels=range(7)), rel=1e-12
    )
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-12)
    for average in ("macro", "micro", "weighted"):
        expected = sklearn_metrics.f1_score(source.targets, predicted, average=average)
        assert found[average] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("workers", [1, 2])
def test_f1_of_labels_equals_scikit_learns(workers: int) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(13, 4, generator=generator, dtype=torch.float64)
    labels = (torch.rand(13, 4, generator=generator) > 0.5).double()
    source = TensorSource(logits, labels)
    found = measured(source, {"f1": f1_score(), "micro": f1_score("micro")}, workers, loss="squared_error")
    for name, average in {"f1": "macro", "micro": "micro"}.items():
        assert found[name] == pytest.approx(sklearn_metrics.f1_score(labels, logits > 0, average=average), rel=1e-12)
    one = measured(TensorSource(logits[:, :1], labels[:, :1]), {"f1": f1_score()}, workers, loss="squared_error")
    assert one["f1"] == pytest.approx(sklearn_metrics.f1_score(labels[:, 0], logits[:, 0] > 0), rel=1e-12)


def test_mean_squared_error_counts_every_element() -> None:
    generator = torch.Generator().manual_seed(3)
    outputs, targets = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    metrics = build_metrics(config(metrics=("mse",)).metrics, {"num_classes": None, "input_shape": [3]})
    found = measured(TensorSource(outputs, targets), metrics, loss="squared_error")
    assert found["mse"] == pytest.approx(nn.functional.mse_loss(outputs, targets).item(), rel=1e-12)


def test_perplexity_of_sentences_leaves_padding_out() -> None:
    scores = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    words = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 1], [2, 0, 0, 0]])
    found = measured(TensorSource(scores, words), {"perplexity": perplexity()}, 2, loss=lambda o, t: o[:, 0, 0])
    expected = nn.functional.cross_entropy(scores.flatten(0, 1), words.flatten(), ignore_index=0).exp()
    assert found["perplexity"] == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("samples", [1, 11])  # with one sample and three workers, two shares are empty
def test_ones_own_metrics_are_exact_over_uneven_and_empty_shares(samples: int) -> None:
    source = classification(samples)
    metrics: dict[str, Metric] = {
        "margin": margin,
        "weighted": lambda outputs, targets: (margin(outputs, targets), 1.0 + targets),
        "rarest": recall_of_the_rarest(7),
        "several": SummedMetric(lambda o, t: o.sum(0)[:2], lambda sums: {"first": sums[0], "second": sums[1]}),
    }
    alone = measured(source, metrics)
    expected = margin(source.inputs, source.targets)
    weights = 1.0 + source.targets
    assert alone["margin"] == pytest.approx(expected.mean().item(), rel=1e-12)
    assert alone["weighted"] == pytest.approx(((weights * expected).sum() / weights.sum()).item(), rel=1e-12)
    assert alone["several/second"] == pytest.approx(source.inputs[:, 1].sum().item(), rel=1e-12)
    assert measured(source, metrics, 3) == pytest.approx(alone, rel=1e-12, nan_ok=True)


@pytest.mark.filterwarnings("ignore:(No negative|No positive|The variance of)")
@pytest.mark.parametrize("samples", [1, 23])
def test_objects_of_torchmetrics_are_exact_over_uneven_and_empty_shares(samples: int) -> None:
    source = classification(samples)
    metrics = {"f1": MulticlassF1Score(7), "auroc": MulticlassAUROC(7)}  # counts; and all outputs, one after the other
    alone, together = measured(source, metrics), measured(source, metrics, 3)
    assert together == pytest.approx(alone, rel=1e-12)
    assert alone["f1"] == pytest.approx(measured(source, {"own": f1_score()})["own"], rel=1e-6)
    assert not metrics["f1"].update_called
    values = torch.randn(2, samples, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    regression = TensorSource(values[0], values[1])
    errors = {"mse": MeanSquaredError(), "correlation": PearsonCorrCoef()}
    options: dict[str, Any] = {"loss": lambda o, t: (o - t) ** 2}
    alone, together = measured(regression, errors, **options), measured(regression, errors, 3, **options)
    assert together == pytest.approx(alone, rel=1e-12, nan_ok=True)
    assert alone["mse"] == pytest.approx(alone["loss"], rel=1e-12)


REFUSED: list[tuple[Metric, str]] = [
    (lambda o, t: o, r"metric 'own' must return one value per sample, shape \(5,\), not \(5, 7\)"),
    (lambda o, t: 1.0, r"not float"),
    (SummedMetric(lambda o, t: o[:1].flatten()[: len(o)], float), "metric 'own' gave sums of the shapes"),
    (SummedMetric(lambda o, t: o.sum(0), lambda sums: sums), "metric 'own' gave a tensor of shape"),
    (MulticlassConfusionMatrix(7), "metric 'own' gave a tensor of shape .* choose an average"),
    (lambda o, t: top_k_correct(o, t, k=8), "k is 8; it must be from 1 to the number of classes, 7"),
    (lambda o, t: top_k_correct(o[:, 0], t), "takes scores"),
    (nn.Linear(2, 2), "metric 'own' is Linear; it must be a function"),
    (MulticlassF1Score, "metric 'own' is .*; it must be a function"),
]


@pytest.mark.parametrize(("metric", "message"), REFUSED)
def test_what_is_no_metric_is_refused_with_what_is_allowed(metric: Metric, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(classification(), {"own": metric})


def test_sums_whose_shape_differs_between_workers_are_refused_on_all_of_them() -> None:
    source, metric = classification(3), SummedMetric(lambda o, t: o[0, : len(o)], float)
    options: dict[str, Any] = {"loss": "cross_entropy", "batch_size": 3, "precision": "fp64"}

    def worker(collectives: threads.Threads) -> str:
        with pytest.raises(ValueError, match="gave sums of the shapes") as caught:
            evaluate(nn.Identity(), source, metrics={"own": metric}, collectives=collectives, **options)
        return str(caught.value)

    first, second = threads.run(2, worker)
    assert first == second


F1 = "raycurv.train.evaluation_metrics:f1_score"
OWN = "tests.train.test_evaluation_metrics"


def test_a_configuration_names_metrics_by_name_path_or_component() -> None:
    given = config(metrics=("top5", f"{OWN}:margin", "torchmetrics.classification:MulticlassF1Score"))
    assert list(given.metrics) == ["top5", "margin", "MulticlassF1Score"]
    named = config(metrics={"cubed": Component.of(margin, power=3.0), "rare": Component.of(recall_of_the_rarest)})
    built = build_metrics(named.metrics, SHAPE)
    outputs, targets = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
    assert built["cubed"](outputs, targets).tolist() == [8.0]
    assert isinstance(built["rare"], SummedMetric)
    f1 = build_metrics(given.metrics, SHAPE)["MulticlassF1Score"]
    assert f1.num_classes == 3
    for one in (given, named):
        check(one)
        assert RunConfig.from_json(one.to_json()) == one
    every = config(metrics=NAMED)
    check(every)
    assert list(build_metrics(every.metrics, SHAPE)) == list(NAMED)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("top",), "metric 'top' is unknown; did you mean 'top5'.*your own is package.module:function"),
        ("top5", r"it must be a tuple such as \('top5',\)"),
        (("f1", "f1"), "has 'f1' twice"),
        ({"accuracy": "f1"}, "the name of a metric is 'accuracy'; it must be"),
        ({"a b": "f1"}, "the name of a metric is 'a b'; it must be"),
        (("nowhere.at.all:metric",), "metric 'metric': .*there is no module 'nowhere'"),
        (("torchmetrics.nowhere:F1",), "the extra `metrics` brings torchmetrics"),
        ({"f1": Component(F1, {"mean": 1})}, r"metric 'f1': .* settings \{'mean': 1\}"),
        ({"f1": Component(F1, {"average": "most"})}, "one of macro, micro, weighted"),
        (("tests.train.problems:network",), "metric 'network' is Sequential; it must be a function"),
    ],
)
def test_a_metric_that_cannot_be_used_is_refused_before_training(metrics: Any, message: str) -> None:
    def build() -> None:
        given = config(metrics=metrics)
        check(given)
        build_metrics(given.metrics, SHAPE)

    with pytest.raises(ValueError, match=message):
        build()


def test_metrics_change_the_digest_only_where_there_are_any() -> None:
    assert config().digest == config(metrics=()).digest
    assert config(metrics=("f1",)).digest != config().digest
    assert "metrics" in json.loads(config(metrics=("f1",)).to_json())


def run(folder: Path, wanted: RunConfig, **options: Any) -> tuple[Any, Kept]:
    records = Kept()
    result = train(wanted, collectives=Local(), store=CheckpointStore(folder), emit=records, **options)
    return result, records


def test_a_run_measures_its_metrics_and_a_resumed_one_measures_the_same(tmp_path: Path) -> None:
    metrics = {"f1": "f1", "rare": Component.of(recall_of_the_rarest), "margin": Component.of(margin)}
    wanted = config(metrics=metrics, average_weights=0.9, evaluate_training=True, epochs=3)
    result, records = run(tmp_path / "whole", wanted)
    names = {f"{prefix}{name}" for name in metrics for prefix in ("test/", "training_set/", "averaged/test/")}
    assert names <= result.values.keys()
    assert names <= records.of("evaluation")[-1].values.keys()
    run(tmp_path / "halves", dataclasses.replace(wanted, stop_after=7))
    resumed, _ = run(tmp_path / "halves", wanted, resume="must")
    assert resumed.values == result.values
    assert [record.values for record in resumed.evaluations] == [record.values for record in result.evaluations]
    plain, _ = run(tmp_path / "plain", dataclasses.replace(wanted, metrics={}))
    assert {name: result.values[name] for name in plain.values} == plain.values


def test_a_resumed_run_may_measure_other_metrics(tmp_path: Path) -> None:
    wanted = config(metrics=("f1",))
    run(tmp_path, dataclasses.replace(wanted, stop_after=3))
    result, _ = run(tmp_path, dataclasses.replace(wanted, metrics={"margin": Component.of(margin)}), resume="must")
    assert "test/margin" in result.values
    assert "test/f1" not in result.values


def best_of(folder: Path, wanted: RunConfig, metric: str, choose: Any) -> tuple[int, float]:
    """Step of the best checkpoint, and its value of a metric, measured anew."""
    result, _ = run(folder, wanted)
    trained = load_trained_model(CheckpointStore(folder), best=True, averaged=metric.startswith("averaged/"))
    data = problems.blobs(held_out=13)
    assert data.evaluation is not None
    values = evaluate(
        trained.model, data.evaluation, loss="cross_entropy", metrics=build_metrics(wanted.metrics, SHAPE),
        batch_size=wanted.batch_size, precision="fp64",
    )  # fmt: skip
    values_of_run = [(record.values[metric], record.step) for record in result.evaluations if metric in record.values]
    best, step = choose(values_of_run, key=lambda pair: pair[0])
    assert (trained.step, values[metric.removeprefix("averaged/")]) == (step, pytest.approx(best, rel=1e-12))
    return step, best


@pytest.mark.parametrize("changes", [{}, {"evaluate_every_steps": 3}])
def test_the_checkpoint_with_the_best_value_of_a_metric_is_kept(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = {"optimizer": "sgd", "optimizer_settings": {"learning_rate": 3.0}, "average_weights": 0.5, "norm": True}
    metrics = {"f1": "f1", "margin": Component.of(margin)}
    wanted = config(name="best", metrics=metrics, epochs=6, keep_checkpoints=1, **settings, **changes)
    for metric, mode, choose in (
        ("test/f1", None, max),
        ("test/loss", None, min),
        ("test/margin", "min", min),
        ("averaged/test/f1", None, max),
    ):
        chosen = dataclasses.replace(wanted, best_metric=metric, best_mode=mode)
        assert chosen.digest == wanted.digest
        step, _ = best_of(tmp_path / metric, chosen, metric, choose)
        run(tmp_path / "halves" / metric, dataclasses.replace(chosen, stop_after=13))
        run(tmp_path / "halves" / metric, chosen, resume="must")
        assert CheckpointStore(tmp_path / "halves" / metric).load_best()["step"] == step


def test_evaluations_without_a_finite_value_are_never_the_best() -> None:
    def records(*values: float) -> list[Record]:
        return [Record("evaluation", step, 1.0, 0.0, {"test/f1": value}) for step, value in enumerate(values)]

    assert newest_is_best(records(math.nan, 0.5), "test/f1", largest=True)
    assert newest_is_best(records(0.7, 0.5), "test/f1", largest=False)
    for values in ((0.5, math.nan), (0.5, 0.5), (math.inf,), (0.7, 0.5)):
        assert not newest_is_best(records(*values), "test/f1", largest=True)
    assert not newest_is_best(records(0.5), "test/loss", largest=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_metric": "test/f2"}, "RunConfig.best_metric: metric 'test/f2' is unknown; .*test/accuracy"),
        ({"best_metric": "training_set/loss"}, "is unknown"),
        ({"best_metric": "test/margin", "metrics": (f"{OWN}:margin",)}, "give best_mode, 'max' or 'min'"),
        ({"best_metric": "test/loss", "best_mode": "most"}, "best_mode is 'most'; it must be None, 'max' or 'min'"),
        ({"best_mode": "max"}, "it must be None without a best_metric"),
    ],
)
def test_a_best_metric_that_is_not_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_best_metric_that_the_data_do_not_allow_is_refused_at_the_first_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'test/accuracy', which is not measured; it may be: train/epoch_loss"):
        run(tmp_path, config(best_metric="test/accuracy", held_out=0))
