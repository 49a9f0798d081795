"""The table of the campaign, a first few of its faults that need no Ray, and the check against the page."""

from __future__ import annotations

import pytest

from tests.reliability import launches, optimizers, security, worker_counts, writer_kills
from tests.reliability.campaign import PAGE, Row, kinds, recorded, run, with_rows, worse
from tests.reliability.equality import difference


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["writer", "writer_disk", "writer_read_only", "writer_slow"])
@pytest.mark.filterwarnings("ignore")
def test_a_writer_that_is_stopped_at_any_moment_leaves_a_run_that_goes_on_bit_by_bit(tmp_path, kind):
    row = run(kinds()[kind], 6, tmp_path)
    assert row == Row(row.kind, 6, 6), (tmp_path / f"{kind}.jsonl").read_text()


def test_changes_of_the_number_of_workers_in_mid_epoch_change_no_parameter(tmp_path):
    lost = {}
    worker_counts.run(0, 4, tmp_path, lost.__setitem__)
    assert lost == dict.fromkeys(range(4), "")


def test_launches_in_one_process_leave_no_descriptors_and_no_threads(tmp_path):
    uses = launches.in_a_process(tmp_path / "runs", launches.WARM + 4, "--without-ray")
    assert len(uses) == launches.WARM + 4
    assert not launches.growth(uses)
    leaking = [launches.Use(10 + number, 2, 0) for number in range(launches.WARM + 4)]
    assert "took 3 descriptors, 0 threads" in launches.growth(leaking)


def test_a_secret_in_a_file_is_found(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.log").write_bytes(b"\xffpassword=5ecret\n")
    (tmp_path / "other").write_text("nothing")
    found = list(security.holding([tmp_path], {"password": b"5ecret", "key": b"absent"}))
    assert found == [f"password is in {tmp_path / 'logs' / 'worker.log'}"]


def test_states_that_differ_in_one_bit_are_told_apart():
    import torch

    state = {"model": {"a": torch.ones(3)}, "optimizer": {"state": {0: {"buffer": torch.zeros(2)}}}}
    other = {**state, "optimizer": {"state": {0: {"buffer": torch.tensor([0.0, 1e-45])}}}}
    assert not difference(state, state)
    assert difference(state, other) == "another optimizer"
    assert difference(state, None) == "no checkpoint"


def test_an_interrupted_campaign_goes_on(tmp_path):
    tried = []

    class Interrupted(Exception):
        pass

    def faults(first, stop, folder, note):
        for number in range(first, stop):
            if number == 3 and not tried.count(3):
                tried.append(3)
                raise Interrupted
            tried.append(number)
            note(number, "lost" if number == 1 else "")

    kind = type(kinds()["writer"])("mine", "mine", 5, faults)
    with pytest.raises(Interrupted):
        run(kind, 5, tmp_path)
    assert run(kind, 5, tmp_path) == Row("mine", 5, 4)
    assert tried == [0, 1, 2, 3, 3, 4]


def test_a_number_that_falls_is_noticed():
    before = recorded("| a kind | 1,200 | 1,194 | 6 |\n")["a kind"]
    assert (before.tried, before.survived, before.lost) == (1200, 1194, 6)
    assert not worse(before, Row("a kind", 200, 199))
    assert worse(before, Row("a kind", 200, 198))
    assert worse(None, Row("another", 10, 9))


def test_the_page_has_rows_and_takes_new_ones():
    page = PAGE.read_text()
    rows = [Row("a new kind", 10, 10), *list(recorded(page).values())[:1]]
    changed = recorded(with_rows(page, rows))
    assert changed == recorded(page) | {"a new kind": rows[0]}


def test_two_workers_decide_alike_about_bad_numbers(tmp_path):
    from tests.objective import distributed

    chosen = [(name, bad) for name in ("sgd", "auto", "curveball") for bad in optimizers.BAD]
    for case, one, other in zip(chosen, *distributed.run(2, optimizers.decisions, chosen), strict=True):
        assert not optimizers.lost(one, other), case


def test_the_moments_of_a_run_are_all_of_its_writing(tmp_path):
    assert writer_kills.moments_of(tmp_path / "whole") > 60
