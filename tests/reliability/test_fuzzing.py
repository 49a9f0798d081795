"""Damaged inputs for every reader of something from outside: a right answer or a declared error, and nothing else.

Here are the first inputs of each; ``make reliability`` tries 100,000.
"""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycurv.data.parquet_footer import FooterError, parse_row_groups
from raycurv.results.outcomes import Outcome
from raycurv.train import RunConfig
from tests.reliability import fuzzing
from tests.reliability.readers import READERS

FIRST = {"command_line": 10, "parquet": 60, "content_of_a_checkpoint": 60, "state_of_an_optimizer": 60}  # others: 100


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_the_first_damaged_inputs_are_read_or_refused_by_a_declared_error(name, tmp_path):
    reader = READERS[name]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    read = reader.prepare(scratch)
    for number in range(FIRST.get(name, 100)):
        outcome = fuzzing.attempt(read, reader.declared, name, number, tmp_path)
        assert outcome != fuzzing.UNDECLARED, (tmp_path / "undeclared.jsonl").read_text()


def test_the_campaign_has_100_000_inputs():
    assert sum(reader.inputs for reader in READERS.values()) >= 100_000


def test_a_process_that_ends_is_counted_and_the_next_inputs_are_tried(tmp_path, monkeypatch):
    def child(command, stderr):
        name, first, stop = command[4:7]
        code = (
            "import os\n"
            f"with open({str(tmp_path / f'{name}.outcomes')!r}, 'ab', buffering=0) as file:\n"
            f"    for number in range({first}, {stop}):\n"
            "        file.write(b'w')\n"
            "        if number == 3: os.abort()\n"
            "        file.seek(number); os.truncate(file.name, number); file.write(b'r')\n"
        )
        return popen([sys.executable, "-c", code], stderr=stderr)

    popen = fuzzing.subprocess.Popen
    monkeypatch.setattr(fuzzing.subprocess, "Popen", child)
    assert fuzzing.run("manifest", 6, tmp_path) == {"refused": 5, "crashed": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_any_json_is_no_configuration_and_no_outcome(value):
    text = json.dumps(value)
    for read in (RunConfig.from_json, Outcome.from_json):
        with pytest.raises(ValueError):
            read(text)


@given(st.binary(max_size=200), st.integers(0, 4))
def test_any_bytes_are_a_footer_or_an_error(content, columns):
    try:
        parse_row_groups(content + len(content).to_bytes(4, "little") + b"PAR1", columns)
    except FooterError as error:
        assert str(error)  # noqa: PT017
