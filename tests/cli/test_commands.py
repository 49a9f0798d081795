"""The command line: help on one screen, errors in one paragraph, the same commands as scripts."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from raycurv.cli import extras, help
from raycurv.cli.commands import COMMANDS, DEFAULTS, GROUPS, tree
from raycurv.cli.main import main
from raycurv.cli.options import all_options
from raycurv.cli.parsing import parse
from raycurv.cli.train import Train

ROOT = Path(__file__).resolve().parents[2]
JOBS = {"prepare": "prepare_data"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message with which the command line refuses `words`: one paragraph."""
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message.strip()


@pytest.mark.parametrize("columns", ["80", "100"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_fits_one_screen(command, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main([*command.name.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: raycurv {command.name} ")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= int(columns)


@pytest.mark.parametrize("words", [(), *((group,) for group in GROUPS)], ids=str)
def test_help_of_groups_and_of_the_whole_fits_one_screen(words, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 90


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_complete_help_explains_every_option(command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.name.split(), "--help-all"]) == 0
    text = capsys.readouterr().out
    for option in all_options(command.load()):
        assert option.text, option.name
        assert option.flag in text


def test_what_the_short_help_shows_exists_and_its_example_can_be_read() -> None:
    for command in COMMANDS:
        kind = command.load()
        names = {option.name for option in all_options(kind)}
        assert set(getattr(kind, "SHOWN", ())) <= names, command.name
        if example := getattr(kind, "EXAMPLE", ""):
            words = example.split()
            assert words[: len(command.name.split()) + 1] == ["raycurv", *command.name.split()]
            parse(kind, words[len(command.name.split()) + 1 :])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trian",), "raycurv: command 'trian' is unknown; did you mean 'train'"),
        (("sweep", "gird"), "raycurv sweep: command 'gird' is unknown; did you mean 'grid'? all names: grid, networks"),
        (("train", "--optimiser", "sgd"), "raycurv train: there is no option --optimiser; did you mean --optimizer"),
        (("train", "--epochs", "many"), "raycurv train: --epochs many is not allowed; it takes N: Passes over"),
        (("train", "--epochs"), "raycurv train: --epochs without a value is not allowed; it takes N"),
        (("train", "--precision", "fp8"), "raycurv train: --precision fp8 is not allowed; it takes fp32|fp64|bf16"),
        (("train", "--workers", "0"), "raycurv train: Cluster.workers is 0; it must be a whole number of at least 1"),
        (("train", "digits", "mnist"), "raycurv train: 'mnist' is not expected there"),
        (("evaluate",), "raycurv evaluate: --model MODEL must be given; raycurv evaluate --help explains"),
        (("prepare", "folder", "x"), "raycurv prepare folder: --output OUTPUT must be given"),
    ],
)
def test_arguments_are_refused_in_one_paragraph_that_names_what_is_near(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *words).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digit",), "there is no recipe 'digit'; did you mean 'digits'?"),
        (("--study", "red_beta"), "study 'red_beta' is unknown; did you mean 'red_beta3'"),
        (("digits", "--option", "data=DATA", "--optimizer", "curvebal"), "did you mean 'curveball'"),
        (("digits", "--option", "data=DATA", "--epochs", "0"), "RunConfig.epochs is 0; it must be"),
        (("digits", "--option", "data"), "'data' must read NAME=VALUE"),
        ((), "name what to train with --recipe or --study; --list shows all"),
        (("--study", "red_l2", "--optimizer", "sgd"), "--study names its recipes and optimizers itself"),
        (("digits", "--scale", "0.01", "--option", "data=DATA"), "leaves 14 of 1437 training samples"),
        (("digits", "--option", "data=DATA", "--run-name", "nope", "--resume"), "there is nothing to resume in"),
        (("digits", "--option", "data=DATA", "--log-file", "DATA"), "cannot be written: Is a directory"),
    ],
)
def test_what_a_run_refuses_is_one_paragraph_without_a_traceback_file(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [word.replace("DATA", str(tmp_path)) for word in words]
    with pytest.raises(SystemExit) as ended:
        main(["train", *given, "--runs", str(tmp_path / "runs")])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "traceback" not in printed
    assert not (tmp_path / "runs" / "failures").exists()


def test_a_recipe_without_its_data_names_the_command_that_brings_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raycurv import recipes

    monkeypatch.setenv("RAYCURV_DATA", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no data at .*/sets/digits; bring it with `raycurv prepare digits`"):
        recipes.build("digits", {})
    with pytest.raises(ValueError, match="raycurv prepare torchvision CIFAR100 --download"):
        recipes.build("red_cifar100_vgg19", {})
    assert main(["prepare", "digits"]) == 0
    assert recipes.build("digits", {}).data.settings["path"] == str(tmp_path / "sets" / "digits")


def test_every_recipe_says_where_its_data_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raycurv import recipes

    monkeypatch.setenv("RAYCURV_DATA", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)
    missing = {}
    for entry in recipes.registered_recipes():
        try:
            recipes.build(entry.name, {})
        except ValueError as error:
            missing[entry.name] = str(error)
    assert len(missing) > 40
    for name, message in missing.items():
        assert re.search(r"there is no data at .*(bring it with `raycurv prepare |put the )", message), name


@pytest.mark.parametrize("words", [("--run-name", "a/b"), ("--resume",), ("--quiet", "--verbose")])
def test_options_that_no_run_can_have_are_refused_in_one_paragraph(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert words[0] in refused(capsys, "train", "digits", *words)


def test_all_recipes_and_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from raycurv import recipes
    from raycurv.recipes import studies

    assert main(["train", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert names == ["recipe", *(e.name for e in recipes.registered_recipes()), "study", *studies.STUDIES]


def test_flags_take_equals_signs_and_underscores_and_a_first_word_without_a_flag() -> None:
    read = parse(Train, ["digits", "--batch_size=32", "--setting", "a=1", "b=x", "--no-log-model", "--gradient-norm"])
    assert read.recipe == "digits"
    assert read.run_options.changes == {"batch_size": 32, "gradient_norm": True}
    assert read.run_options.setting == ("a=1", "b=x")
    assert not read.cluster.log_model
    assert parse(Train, ["--recipe", "digits"]) == parse(Train, ["digits"])


@pytest.mark.parametrize(
    ("words", "resume"),
    [(["--resume"], True), (["--resume", "auto"], "auto"), (["--resume", "--epochs", "2"], True), ([], False)],
)
def test_resume_stands_alone_or_with_a_word(words: list[str], resume: object) -> None:
    assert parse(Train, ["digits", "--run-name", "mine", *words]).cluster.resume == resume


def test_another_word_after_resume_is_refused_with_what_it_takes() -> None:
    with pytest.raises(ValueError, match=r"--resume maybe is not allowed; it takes \[auto\]: Resume the run"):
        parse(Train, ["digits", "--run-name", "mine", "--resume", "maybe"])


def test_the_jobs_are_the_commands_as_scripts() -> None:
    scripts = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert scripts == {"imagenet_curveball"} | {JOBS.get(first, first) for first in tree() if first != "ui"}
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60
        done = run(f"jobs/{path.name}", "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: python jobs/{path.name} ")
        assert len(done.stdout.splitlines()) <= 40


def test_the_flags_of_before_work_where_the_job_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert DEFAULTS["papers"] == "table"
    assert main(["papers", "--list"]) == 0
    assert main(["papers", "list"]) == 0
    once, twice = (text for text in capsys.readouterr().out.split("table  ") if text)
    assert once == twice
    done = run("jobs/papers.py", "--table", "no_such_table")
    assert "no_such_table" in done.stderr


def test_the_overview_comes_at_once_and_needs_no_package() -> None:
    code = "import sys\nfor name in ('ray', 'mlflow', 'torch', 'tyro', 'psutil', 'pyarrow', 'numpy'):\n"
    code += "    sys.modules[name] = None\nfrom raycurv.cli.main import main\nmain(['--help'])"
    began = time.monotonic()
    done = run("-c", code)
    assert time.monotonic() - began < 5  # 0.1 s on an idle machine
    assert done.stdout.startswith("usage: raycurv COMMAND")
    for command in COMMANDS:
        assert f"  {command.name}" in done.stdout


def test_the_first_line_comes_before_anything_slow_is_imported() -> None:
    """That is half a second after the start, where torch, Ray and MLflow take ten."""
    code = (
        "import sys\n"
        "class Output:\n"
        "    def write(self, text):\n"
        "        slow = {'torch', 'ray', 'mlflow', 'pandas', 'numpy'} & set(sys.modules)\n"
        "        print(text.strip(), slow)\n"
        "    def flush(self): pass\n"
        "sys.stderr = Output()\n"
        "from raycurv.cli.main import main\n"
        "main(['train', 'no_such_recipe'])\n"
    )
    assert run("-c", code).stdout.splitlines()[0] == "raycurv train: loading torch, Ray and MLflow … set()"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_needs_neither_torch_nor_ray_nor_mlflow(command) -> None:
    assert dataclasses.is_dataclass(command.load())


def test_loading_all_commands_loads_neither_torch_nor_ray_nor_mlflow() -> None:
    code = "import sys\nfrom raycurv.cli.commands import COMMANDS\nfor c in COMMANDS: c.load()\n"
    code += "print({'torch', 'ray', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules))"
    assert run("-c", code).stdout == "set()\n"


def test_a_missing_package_is_explained_by_the_line_that_brings_it() -> None:
    code = "import sys\nsys.modules['ray'] = None\nfrom raycurv.cli.main import main\nsys.exit(main(['train', 'x']))"
    done = run("-c", code)
    assert done.returncode == 1
    assert done.stderr == (
        f"raycurv train needs ray, which is not installed; bring it with: python -m pip install '{ROOT}[cluster]'\n"
    )


def test_the_extras_name_the_modules_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = {"PIL": "pillow", "sklearn": "scikit-learn", "prodigyopt": "prodigyopt", "dog": "dog-optimizer"}
    modules |= {"curvlinops": "curvlinops-for-pytorch", "momo": "momo-opt", "mechanic_pytorch": "mechanic-pytorch"}
    for extra, names in extras.MODULES.items():
        for name in names:
            package = modules.get(name, name)
            assert any(line.startswith(package) for line in project[extra]), (extra, name)


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m raycurv.cli train --help-all | head -1", shell=True, capture_output=True, text=True,
        cwd=ROOT, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("raycurv ")


def test_the_overview_has_every_command() -> None:
    for command in COMMANDS:
        assert command.summary in help.overview("raycurv")


def test_every_command_has_its_help_without_any_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'psutil', 'tyro', 'pyarrow', 'pandas', 'matplotlib', 'sqlalchemy'):\n"
        "    sys.modules[name] = None\n"
        "from raycurv.cli.commands import COMMANDS\n"
        "from raycurv.cli.main import main\n"
        "print([command.name for command in COMMANDS if main([*command.name.split(), '--help']) != 0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# Flags of ray and git.
FOREIGN = {"--address", "--working-dir", "--head", "--block", "--disable-usage-stats", "--porcelain"}
FOREIGN |= {"--untracked-files", "--help"}
OF_THE_MAIN_JOB = {"--skip-corrupt"}


def test_every_flag_that_a_message_names_exists() -> None:
    """Such as in `leave out --use-gpu`, which was --no-use-gpu."""
    flags = {option.flag for command in COMMANDS for option in all_options(command.load())}
    assert all(flag in run("jobs/imagenet_curveball.py", "--help").stdout for flag in OF_THE_MAIN_JOB)
    for room in ("data", "train", "results", "recipes", "tracking", "service"):
        for path in sorted((ROOT / "raycurv" / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
                named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", text))
                assert named <= flags | FOREIGN | OF_THE_MAIN_JOB, (path, node.lineno)
