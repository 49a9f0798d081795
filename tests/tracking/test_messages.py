from __future__ import annotations

import math
from dataclasses import fields

import pytest

from raycurv.tracking.messages import (
    BATCH,
    KINDS,
    LogData,
    LogModel,
    LogRecords,
    LogRun,
    LogText,
    Message,
    OpenRun,
    RegisterModel,
    RunFailed,
    RunFinished,
    RunStarted,
    SetStatus,
    SetTags,
    WorkersNotice,
    WorkersStarted,
    batches,
    from_bytes,
    number_of_values,
    to_bytes,
)
from raycurv.train import Record, Result

RECORD = Record("step", 3, 0.1, 1732573000.123, {"train/loss": 0.1, "optimizer/damping": math.inf}, "said")
RESULT = Result("one", 8, 1.0, {"test/loss": 0.5}, (Record("evaluation", 8, 1.0, 2.0, {"test/loss": 0.5}),), 3.0, 40.0)
EXAMPLES: list[Message] = [
    LogRecords("one", (RECORD,)),
    WorkersStarted(2, "cpu"),
    WorkersNotice("n2 is gone", "resize"),
    RunStarted("one", 1.5),
    RunFinished("one", RESULT),
    RunFailed("one", "NonFiniteLoss", "step 3 was not finite", "Traceback …", 1, 1.5),
    SetTags("id", {"raycurv.status": "finished"}),
    LogText("id", "failure.txt", "ä\n"),
    LogModel("id", "s3://bucket/one"),
    LogData("id", "{}"),
    RegisterModel("id", "best"),
    SetStatus("id", "RUNNING"),
    LogRun("one", "{}", {"seed": "0"}, None, (RECORD,), "FINISHED", 1.5),
    OpenRun("1/one", "points · sgd", {"raycurv.seed": "0"}, {"epochs": "2"}, 1.5),
]


def test_every_kind_is_read_as_it_was_written() -> None:
    assert {type(message) for message in EXAMPLES} == set(KINDS.values())
    for message in EXAMPLES:
        line = to_bytes(message)
        assert b"\n" not in line
        assert from_bytes(line) == message


def test_values_that_are_not_numbers_survive() -> None:
    again = from_bytes(to_bytes(LogRecords("one", (Record("step", 1, 0.0, 1.0, {"loss": math.nan}),))))

    assert isinstance(again, LogRecords)
    assert math.isnan(again.records[0].values["loss"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "LogRecord", "run": "one"}', "kind of message 'LogRecord' is unknown; did you mean 'LogRecords'"),
        ('{"run": "one"}', "kind of message None is unknown"),
        ("[1, 2]", "kind of message None is unknown"),
        ('{"kind": "RunStarted", "run": "one"}', "of kind 'RunStarted' lacks or has other fields"),
        ('{"kind": "LogRecords", "run": "one", "records": [{"step": 1}]}', "of kind 'LogRecords' lacks"),
        ("\x80\x04\x95", "Expecting value"),
    ],
)
def test_what_is_no_message_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_bytes(line)


def test_an_exception_becomes_a_message_with_its_traceback() -> None:
    try:
        raise RuntimeError("this network is broken")
    except RuntimeError as error:
        failed = RunFailed.of("one", error, rank=1)

    assert (failed.error, failed.reason, failed.rank) == ("RuntimeError", "this network is broken", 1)
    assert "test_messages.py" in failed.traceback


def test_batches_keep_the_order_and_the_limit() -> None:
    records = [Record("step", step, 0.0, 1.0, {str(i): 0.0 for i in range(7)}) for step in range(500)]
    groups = list(batches(records))

    assert [record for group in groups for record in group] == records
    assert all(number_of_values(group) <= BATCH for group in groups)
    assert len(groups) == 4


def test_every_message_but_those_about_all_workers_names_its_run() -> None:
    nameless = [kind for kind in KINDS.values() if "run" not in {f.name for f in fields(kind)}]
    assert nameless == [WorkersStarted, WorkersNotice]
