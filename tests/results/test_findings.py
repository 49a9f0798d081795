import dataclasses

from raycurv.results import comparison, findings
from raycurv.results.comparison import compare_over_networks
from raycurv.results.outcomes import EvaluationPoint, Outcome


def run(
    optimizer, losses, *, recipe="mnist", accuracy=0.5, setting="", stage="final", seed=0, status="finished", **more
):
    values = [{"train/epoch_loss": loss, "test/accuracy": accuracy} for loss in losses]
    points = tuple(EvaluationPoint(i + 1.0, 10 * (i + 1), i + 1.0, found) for i, found in enumerate(values))
    name = f"{recipe}-{optimizer}-{setting}-{seed}-{stage}"
    return Outcome(
        name, recipe, optimizer, setting, seed, stage, status=status, points=points, steps=10 * len(losses),
        seconds=float(len(losses)), **more,
    )  # fmt: skip


def answer(*runs):
    return findings.answer(comparison.compare_methods(runs))


def test_the_answer_of_a_search_is_what_the_untuned_need_for_the_loss_of_the_tuned():
    search = [run("adam", [0.9], setting=f"learning_rate={rate}", stage="search") for rate in (0.1, 0.01)]
    tuned = run("adam", [0.9, 0.5, 0.4, 0.3], setting="learning_rate=0.01")
    assert answer(*search, tuned, run("auto", [0.5, 0.3])) == (
        "Untuned **auto** reaches the training loss of tuned **adam**, 0.3, with 0.33 times the seconds that adam and "
        "its 2 trials of search take."
    )
    assert answer(*search, tuned, run("auto", [0.5, 0.4]), run("sgd", [0.8])) == (
        "No untuned optimizer reaches the training loss of tuned **adam**, 0.3 (2 trials of search); the closest, "
        "**auto**, ends at 0.4."
    )


def test_the_answer_without_a_search_names_the_lowest_loss_and_the_highest_accuracy():
    runs = [run("adam", [0.3], accuracy=0.8), run("auto", [0.2]), run("sgd", [0.9])]
    assert answer(*runs) == (
        "**auto** ends with the lowest training loss of 3 methods, 0.2, before **adam** with 0.3; the highest test "
        "accuracy is 80.00%, of **adam**."
    )
    assert answer(runs[0], run("auto", [0.2], accuracy=0.9)).endswith("and with the highest test accuracy, 90.00%.")


def test_a_headline_is_the_conclusion_of_a_search_and_else_the_answer():
    tuned = {"setting": "learning_rate=0.1"}
    searched = [run("adam", [0.9], stage="search", **tuned), run("adam", [0.9, 0.5], **tuned), run("auto", [0.9, 0.4])]
    plain = [run("auto", [0.2], recipe="digits"), run("sgd", [0.3], recipe="digits"), run("auto", [0.1], recipe="one")]
    first, second, last = findings.headlines(comparison.compare_methods([*searched, *plain]))
    assert first.startswith("mnist: ")
    assert first.endswith("the seconds that untuned auto takes to the same training loss, 0.5.")
    assert second.startswith("digits: auto ends with the lowest training loss of 2 methods, 0.2, before sgd with 0.3")
    assert second.endswith("No baseline was tuned by a search.")
    assert last == "one: no baseline was tuned by a search, so there is nothing to compare with."


def test_a_comparison_without_an_end_or_with_one_method_has_no_answer():
    lost = [run("adam", [0.9], stage="search", status="diverged"), run("auto", [0.2]), run("sgd", [0.3])]
    assert answer(*lost) == ""
    assert answer(run("auto", [0.2])) == answer(run("auto", [0.2], status="failed"), run("sgd", [0.2])) == ""


def test_the_answer_over_random_networks_is_the_lowest_median():
    runs = [
        run(optimizer, [loss + network], labels={"network": f"net{network}"})
        for optimizer, loss in (("auto", 0.1), ("adam", 0.2))
        for network in range(3)
    ]
    assert findings.network_answer(compare_over_networks(runs)) == (
        "**auto** has the lowest median training loss over 3 random networks, 1.1 [0.6, 1.6], and the lowest on 3 of "
        "them."
    )


def test_recipes_that_differ_in_one_setting_are_one_group():
    same = {"model.target": "raycurv.models.mlp:mlp", "epochs": "3"}
    sizes = [run("auto", [0.1], recipe=f"batches{size}", conditions={**same, "batch_size": size}) for size in "124"]
    other = run("auto", [0.1], recipe="other", conditions={**same, "batch_size": "8", "l2": "0.1"})
    elsewhere = run("auto", [0.1], recipe="lenet", conditions={**same, "model.target": "lenet"})
    one, *alone = findings.group_recipes([*sizes, other, elsewhere])
    assert one.recipes == ("batches1", "batches2", "batches4")
    assert (one.setting, one.values) == ("batch_size", {"batches1": "1", "batches2": "2", "batches4": "4"})
    assert [group.recipes for group in alone] == [("other",), ("lenet",)]
    assert not any(group.setting for group in alone)
    unknown = [dataclasses.replace(o, conditions={}) for o in sizes]
    assert len(findings.group_recipes(unknown)) == 3
