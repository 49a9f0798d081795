"""Messages and texts that all rooms share."""

import pytest

from raycurv.arguments import (
    format_setting,
    format_settings,
    mask_passwords,
    reformat_settings,
    require_positive,
    require_run_name,
    require_whole,
    unknown,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (1, "1"),
        ("1.0", "1"),
        (True, "True"),
        (0.001, "0.001"),
        (None, "None"),
        ((0.5, 2), "[0.5, 2]"),
        ("cosine", "cosine"),
        (100000000, "100000000"),
        (1e8, "100000000"),
        (3 * 10.0**-1, "0.3"),
        (0.12345678, "0.12345678"),
        ("(0.9, 0.999)", "[0.9, 0.999]"),
        ("None", "None"),
        (float("inf"), "inf"),
    ],
)
def test_a_setting_reads_alike_however_it_was_stored(value, text):
    assert format_setting(value) == text


def test_settings_are_name_and_value():
    assert format_settings({"scale": 1.0, "decay": 0.5}) == "scale=1 decay=0.5"


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ("decay=0.50 scale=1.0", "decay=0.5 scale=1"),
        ("betas=(0.9, 1.0) schedule=cosine", "betas=[0.9, 1] schedule=cosine"),
        ("", ""),
        ("best of two", "best of two"),
    ],
)
def test_settings_of_an_earlier_version_read_as_those_of_today(stored, text):
    assert reformat_settings(stored) == text


def test_bounds_name_argument_value_and_what_is_allowed():
    with pytest.raises(ValueError, match="red_sgd: scale is -1; it must be a positive finite number"):
        require_positive("red_sgd: scale", -1)
    with pytest.raises(ValueError, match=r"RunConfig\.epochs is True; it must be a whole number of at least 1"):
        require_whole("RunConfig.epochs", True, 1)


def test_an_unknown_name_is_answered_with_the_nearest():
    assert (
        unknown("optimizer", "adma", ("adam", "sgd"))
        == "optimizer 'adma' is unknown; did you mean 'adam'? all names: adam, sgd"
    )


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".hidden", "-x", "a b", "x" * 129])
def test_a_name_that_could_leave_the_folder_of_runs_is_refused(name):
    with pytest.raises(ValueError, match=r"--run-name is .*; it must be 1 to 128 letters"):
        require_run_name("--run-name", name)
    require_run_name("--run-name", "digits-curveball_1.0")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:pass@host:5000/x now", "at http://me:***@host:5000/x now"),
        ("postgresql://me:p%40s@s@host/db", "postgresql://me:***@host/db"),
        ("--tracking-uri 'https://:key@host'", "--tracking-uri 'https://:***@host'"),
        ("https://host/x?region=eu&secret_key=abc&a=1", "https://host/x?region=eu&secret_key=***&a=1"),
        ("http://127.0.0.1:5000/#/a@b", "http://127.0.0.1:5000/#/a@b"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("momentum=0.9 token=3", "momentum=0.9 token=3"),
    ],
)
def test_passwords_in_addresses_are_masked(text, shown):
    assert mask_passwords(text) == shown
