"""README, CONTRIBUTING and docs are true: their Python runs, their commands and links exist."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from raycurv import optim, recipes
from raycurv.cli import commands
from raycurv.cli.parsing import parse
from raycurv.objective.collectives import Local
from raycurv.optim import registry
from raycurv.train import CheckpointStore, train

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Runs the snippets of one page, each in a namespace of its own; one process for all, as importing torch takes longest.
RUN = """
import sys, types
for number, code in enumerate(sys.stdin.read().split("\\0")):
    module = sys.modules["snippet"] = types.ModuleType("snippet")
    exec(compile(code, f"snippet {number}", "exec"), vars(module))
"""


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page.

    Attributes:
        page: path of the page from the root.
        language: after the fence.
        title: after the language, such as the name of a file.
        code: between the fences.
    """

    page: str
    language: str
    title: str
    code: str


SNIPPETS = [Snippet(str(page.relative_to(ROOT)), *found) for page in PAGES for found in BLOCK.findall(page.read_text())]
PYTHON = {
    page: [s.code for s in SNIPPETS if s.page == page and s.language == "python" and not s.title]
    for page in dict.fromkeys(s.page for s in SNIPPETS if s.language == "python" and not s.title)
}
COMMANDS = list(
    dict.fromkeys(
        line.split(" #")[0].strip()
        for snippet in SNIPPETS
        if snippet.language == "sh"
        for line in snippet.code.replace("\\\n", " ").splitlines()
    )
)
COMMANDS_BY_NAME = {command.name: command for command in commands.COMMANDS}


def titled(title: str) -> str:
    """The code of the block with this title."""
    return next(snippet.code for snippet in SNIPPETS if snippet.title == title)


def run(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT, **options
    )


@pytest.mark.parametrize("page", PYTHON)
def test_the_snippets_of_a_page_run(page):
    done = run(RUN, input="\0".join(PYTHON[page]))
    assert done.returncode == 0, done.stderr


def test_the_first_snippet_learns():
    done = run(PYTHON["README.md"][0])
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"loss ([\d.]+)", done.stdout)[1]) < 1.0


# Appended to the example of an optimizer: what a reader would try next.
TRY_CAUCHY = """
from raycurv import Objective
torch.manual_seed(0)
model, inputs = torch.nn.Linear(4, 3), torch.randn(64, 4)
batch = Objective(model, "cross_entropy").batch(inputs, inputs.argmax(1) % 3)
optimizer = optim.create("cauchy", model)
losses = [float(optimizer.step(batch).loss) for _ in range(20)]
assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0], losses
"""


def test_the_contributed_optimizer_descends():
    done = run(PYTHON["CONTRIBUTING.md"][0] + TRY_CAUCHY)
    assert done.returncode == 0, done.stderr


def test_a_users_own_recipe_trains(tmp_path, monkeypatch):
    file = tmp_path / "mypackage" / "recipes.py"
    file.parent.mkdir()
    file.write_text(titled("mypackage/recipes.py"))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = recipes.build("mypackage.recipes:mine", {})
    result = train(
        config, collectives=Local(), store=CheckpointStore(str(tmp_path / "store")), emit=lambda records: None
    )
    assert result.values["test/accuracy"] > 0.5


def test_the_notebook_shows_tracked_runs(tmp_path):
    store = "from tests.tracking.many_runs import main; import sys; main(sys.argv[1], '20', '5', 'raycurv')"
    process = [sys.executable, "-c"]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"RAYCURV_RUNS": str(tmp_path)}
    subprocess.run([*process, store, str(tmp_path)], check=True, cwd=ROOT, timeout=300, env=environment)
    code = f"{titled('notebook')}\nprint(len(runs), len(losses))"
    done = subprocess.run([*process, code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "test/accuracy  best test/accuracy  seconds" in done.stdout
    assert done.stdout.splitlines()[-1] == "20 100"


def options_of(words: list[str]) -> tuple[type, list[str]]:
    """The dataclass of the options of a command, and the words after its name."""
    if "jobs/imagenet_curveball.py" in words:
        spec = importlib.util.spec_from_file_location("main_job", ROOT / "jobs" / "imagenet_curveball.py")
        module = sys.modules["main_job"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.Job, words[words.index("jobs/imagenet_curveball.py") + 1 :]
    words = words[words.index("raycurv") + 1 :]
    length = 1 if words[0] in COMMANDS_BY_NAME else 2
    return COMMANDS_BY_NAME[" ".join(words[:length])].load(), words[length:]


@pytest.mark.parametrize("line", [line for line in COMMANDS if re.search(r"\braycurv [a-z]|jobs/", line)])
def test_commands_are_accepted_as_they_stand(line):
    kind, words = options_of(shlex.split(line))
    options = parse(kind, words)
    if isinstance(name := getattr(options, "recipe", None), str) and ":" not in name:
        assert name in recipes.names()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [c.split()[1] for c in COMMANDS if c.startswith("make ")]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_places_and_links_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:raycurv|jobs|tests|docs)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_readme_fits_one_sitting():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1000


def test_the_page_of_baselines_has_every_baseline():
    names = {name for name in optim.names() if ".baselines." in registry._REGISTRY[name].__module__}
    rows = [line for line in (ROOT / "docs" / "baselines.md").read_text().splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert listed == names


def test_every_page_is_on_the_map():
    text = (ROOT / "README.md").read_text()
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)}" in text, page
