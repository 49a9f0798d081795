import dataclasses
import json

from raycurv.results.conditions import conditions_of, conditions_of_config, group_runs
from raycurv.results.outcomes import Outcome
from raycurv.train import RunConfig
from raycurv.train.configuration import Component

CONFIG = RunConfig(
    "digits", Component("raycurv.models.mlp:mlp", {"widths": (32,)}), Component("raycurv.data:digits", {"path": "/a/b"})
)


def run(name="one", *, steps=10, status="finished", **changes) -> Outcome:
    config = dataclasses.replace(CONFIG, **changes)
    return Outcome(
        name, "digits", config.optimizer, seed=config.seed, steps=steps, status=status,
        conditions=conditions_of_config(config),
    )  # fmt: skip


def methods(*runs: Outcome) -> list[tuple[str, int]]:
    return [(group.method, len(group.runs)) for group in group_runs(runs)]


def test_seeds_names_and_folders_make_one_group():
    moved = {"data": Component("raycurv.data:digits", {"path": "/elsewhere/b/"})}
    runs = [run(), run("two", seed=1), run("three", seed=2, log_every=1), run("four", seed=3, **moved)]
    assert methods(*runs) == [("auto", 4)]


def test_whatever_changes_the_number_separates():
    wide = {"model": Component("raycurv.models.mlp:mlp", {"widths": (64,)})}
    runs = [run(), run(seed=1), run(epochs=3), run(batch_size=64), run(max_steps=7), run(**wide), run(l2=0.1)]
    found = methods(*runs)
    assert [count for _, count in found] == [2, 1, 1, 1, 1, 1]
    assert "epochs=3" in found[1][0]
    assert "batch_size=64" in found[2][0]
    assert "model.widths=[64]" in found[4][0]


def test_runs_of_which_only_the_steps_are_known_separate_by_them():
    runs = [Outcome(str(steps), "digits", "auto", steps=steps) for steps in (10, 30, 10)]
    failed = Outcome("failed", "digits", "auto", steps=4, status="failed")
    assert methods(*runs, failed) == [("auto steps=10", 3), ("auto steps=30", 1)]


def test_a_setting_at_its_default_equals_one_that_an_earlier_version_did_not_have():
    flat = {"epochs": "10", "batch_size": "128", "average_weights": "None", "data.settings.path": "/x/mnist"}
    assert conditions_of(flat) == conditions_of({"epochs": "10", "data.settings.path": "mnist"})


def test_an_outcome_of_an_earlier_version_is_read():
    values = json.loads(run().to_json())
    for name in ("conditions", "step_seconds", "startup_seconds"):
        del values[name]
    old = Outcome.from_json(json.dumps(values))
    assert (old.conditions, old.step_seconds) == ({}, 0.0)


def test_different_random_networks_are_no_seeds_of_one_method_although_they_share_a_name():
    networks = [Component("raycurv.models.random_cnn:random_cnn", {"index": index}) for index in (0, 1)]
    assert [count for _, count in methods(*(run("same", model=model) for model in networks))] == [1, 1]
    labelled = [dataclasses.replace(run("same"), labels={"network": f"net{index}"}) for index in (0, 1)]
    assert methods(*labelled) == [("auto network=net0", 1), ("auto network=net1", 1)]


def test_an_empty_list_equals_the_empty_tuple_that_an_earlier_version_wrote():
    flat = {"epochs": "10", "data.settings.path": "mnist"}
    assert conditions_of({**flat, "freeze": "[]"}) == conditions_of({**flat, "freeze": "()"}) == conditions_of(flat)
