"""docs/adapters.md shows the examples as they are, each of a screen."""

import pytest

from tests.adapters import examples
from tests.test_docs import SNIPPETS

FILES = sorted(examples.EXAMPLES.glob("*.py"))
SCREEN = 66  # lines


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_page_shows_the_file(file):
    title = str(file.relative_to(examples.ROOT))
    (shown,) = [snippet.code for snippet in SNIPPETS if snippet.title == title]
    assert shown == file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_example_fits_a_screen(file):
    assert len(file.read_text().splitlines()) <= SCREEN
