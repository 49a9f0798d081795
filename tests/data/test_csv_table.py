from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raycurv.data import DataError, TensorSource, csv_table


def write(folder: Path, text: str) -> str:
    (folder / "table.csv").write_text(text)
    return str(folder / "table.csv")


def numbers(folder: Path, rows: int = 40) -> str:
    values = np.random.default_rng(0).normal(3.0, 5.0, (rows, 3))
    return write(folder, "\n".join(["\"A\",b,'MEDV'", *(f'{x},"{y}",{z}' for x, y, z in values)]) + "\n")


def test_features_and_target_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    data = csv_table(numbers(tmp_path), target="medv", held_out=10)
    assert isinstance(data.train, TensorSource)
    assert data.train.classes is None
    assert data.train.input_shape == (2,)
    for found in (data.train.inputs, data.train.targets):
        assert len(found) == 30
        torch.testing.assert_close(found.mean(0), torch.zeros(found.shape[1], dtype=torch.float64))
        torch.testing.assert_close(found.std(0, correction=0), torch.ones(found.shape[1], dtype=torch.float64))
    assert isinstance(data.evaluation, TensorSource)
    assert len(data.evaluation) == 10
    assert data.evaluation.inputs.mean().abs() > 1e-3


def test_features_and_target_may_stay_as_they_are_in_the_file(tmp_path: Path) -> None:
    data = csv_table(write(tmp_path, "a,y,b\n2,1,5\n3,7,5\n4,9,5\n"), target="y", held_out=1, standardise=False)
    assert isinstance(data.train, TensorSource)
    assert isinstance(data.evaluation, TensorSource)
    rows = torch.cat([torch.cat([s.inputs, s.targets], 1) for s in (data.train, data.evaluation)]).tolist()
    assert sorted(rows) == [[2.0, 5.0, 1.0], [3.0, 5.0, 7.0], [4.0, 5.0, 9.0]]


def test_the_seed_alone_draws_the_rows_held_out(tmp_path: Path) -> None:
    path = numbers(tmp_path)
    first, again, other = (csv_table(path, target="medv", held_out=10, seed=seed).train for seed in (0, 0, 1))
    assert isinstance(first, TensorSource)
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert len(csv_table(path, target="medv", held_out=10, max_rows=7).train) == 7


def test_a_column_of_one_value_becomes_zero(tmp_path: Path) -> None:
    train = csv_table(write(tmp_path, "a,y\n2,1\n2,2\n2,3\n"), target="y", held_out=1).train
    assert isinstance(train, TensorSource)
    assert train.inputs.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a,y\n1,2\n3,4\n", {"target": "medv"}, "has no column 'medv'; it has a, y"),
        ("a,y\n1,2\n3,four\n", {}, "line 3: could not convert string to float: 'four'"),
        ("a,y\n1,2\n3\n", {}, "line 3: 1 cells; 2 numbers are wanted"),
        ("a,y\n1,2\n3,nan\n", {}, "line 3: a number is not finite"),
        ("a,y\n", {}, "has 1 lines"),
        ("a,y\n1,2\n3,4\n", {"held_out": 2}, "held_out is 2"),
        ("a,y\n1,2\n3,4\n", {"max_rows": 0}, "max_rows is 0"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(text: str, settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        csv_table(write(tmp_path, text), **{"target": "y", "held_out": 1, **settings})
