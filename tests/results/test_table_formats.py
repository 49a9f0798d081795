import csv
import dataclasses
import io

import pytest

from raycurv.results import table_formats


@dataclasses.dataclass(frozen=True)
class Point:
    name: str
    value: float | None
    form: str = "{:g}"


def test_markdown_escapes_bars():
    assert table_formats.markdown(("a|b", "c"), [("1", "2|3")]) == "| a\\|b | c |\n|---|---|\n| 1 | 2\\|3 |"


def test_csv_is_read_back_with_commas_quotes_and_line_breaks():
    cells = [["a, b", 'say "c"'], ["d\ne", ""]]
    assert list(csv.reader(io.StringIO(table_formats.comma_separated(["x", "y"], cells)))) == [["x", "y"], *cells]


def test_records_are_written_field_by_field():
    text = table_formats.comma_separated_fields(Point, [Point("a", 0.5), Point("b", None)], without=("form",))
    assert text == "name,value\na,0.5\nb,\n"
    assert table_formats.comma_separated_fields(Point, []) == "name,value,form\n"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50 % of a_b & c", r"50 \% of a\_b \& c"),
        (r"\x{y}", r"\textbackslash{}x\{y\}"),
        ("1 ± 2, 3–4", r"1 $\pm$ 2, 3--4"),
        ("λ₀ = 1", r"$\lambda$$_0$ = 1"),
    ],
)
def test_latex_prints_special_characters(text, escaped):
    assert table_formats.escape_latex(text) == escaped
    assert escaped in table_formats.latex(("title",), [(text,)])


def test_latex_columns_are_left_by_default():
    assert table_formats.latex(("a", "b"), []).splitlines()[0] == r"\begin{tabular}{ll}"
    assert table_formats.latex(("a", "b"), [], "lc").splitlines()[0] == r"\begin{tabular}{lc}"


def test_aligned_text_has_columns_as_wide_as_their_longest_cells():
    rows = [("long name", "1"), ("b", "1,000")]
    assert table_formats.aligned(("run", "steps"), rows, left=1, rule=True).splitlines() == [
        "run        steps",
        "─────────  ─────",
        "long name      1",
        "b          1,000",
    ]
    assert table_formats.aligned(("run", "steps"), []) == "run  steps"


def test_a_row_with_another_number_of_cells_than_the_head_is_refused():
    with pytest.raises(ValueError, match="a row has 3 cells where the head has 2"):
        table_formats.markdown(["a", "b"], [["1", "2"], ["1", "2", "3"]])
