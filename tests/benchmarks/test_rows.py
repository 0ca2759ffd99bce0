"""Rows come back as they were written, and tables say what the rows say."""

import subprocess

import pytest

from benchmarks import rows

MARKED = """before
<!-- rows {"benchmark": "a"} -->
stale
<!-- end of rows -->
between
<!-- rows {"benchmark": "b", "size": 1} -->
<!-- end of rows -->
after
"""


def test_the_tables_of_the_readme_are_made_from_the_rows_beside_it():
    folder = rows.ROOT / "benchmarks"
    readme = (folder / "README.md").read_text()
    assert rows.fill_in(readme, rows.read(folder / "results")) == readme


def test_a_spread_is_the_median_and_both_ends():
    assert rows.spread("us", [3.0, 1.0, 9.0]) == {"us": 3.0, "us_min_max": [1.0, 9.0]}


def test_figures_are_kept_to_four_digits():
    assert rows.spread("us", [1234.56]) == {"us": 1235.0, "us_min_max": [1235.0, 1235.0]}


def test_rows_come_back_as_they_were_written(tmp_path):
    first, second = {"benchmark": "a", "us": 1.5}, {"benchmark": "b", "us_min_max": [1, 2]}
    rows.write(tmp_path / "results/b.jsonl", [second])
    rows.write(tmp_path / "results/a.jsonl", [first])
    assert rows.read(tmp_path / "results") == [first, second]


def test_writing_replaces_what_was_measured_before(tmp_path):
    rows.write(tmp_path / "a.jsonl", [{"us": 1}])
    rows.write(tmp_path / "a.jsonl", [{"us": 2}])
    assert rows.read(tmp_path) == [{"us": 2}]


def test_a_table_holds_the_rows_that_contain_all_of_its_marker():
    wanted = {"benchmark": "b", "size": 1}
    kept = {"benchmark": "b", "size": 1, "us": 3}
    others = [{"benchmark": "b", "size": 2}, {"benchmark": "b"}, {"benchmark": "a", "size": 1}]
    assert rows.select([kept, *others], wanted) == [kept]


def test_only_what_lies_between_markers_is_made_anew():
    measured = [{"benchmark": "a", "us": 1}, {"benchmark": "b", "size": 1, "us": 2}]
    text = rows.fill_in(MARKED, measured)
    first, second = rows.render(measured[:1]), rows.render(measured[1:], ("benchmark", "size"))
    assert text == MARKED.replace("stale", first).replace(
        "} -->\n<!-- end", f"}} -->\n{second}\n<!-- end"
    )


def test_filling_in_again_changes_nothing():
    measured = [{"benchmark": "a", "us": 1}]
    once = rows.fill_in(MARKED, measured)
    assert rows.fill_in(once, measured) == once


def test_a_table_has_a_column_for_whatever_any_row_has():
    table = rows.render([{"case": "x", "us": 1}, {"case": "y", "gb_s": 2.50}])
    assert table.splitlines()[:4] == [
        "| case | us | gb s |",
        "| --- | --- | --- |",
        "| x | 1 |  |",
        "| y |  | 2.5 |",
    ]


def test_a_spread_stands_behind_its_figure_unless_it_is_none():
    table = rows.render([rows.spread("us", [1, 2, 4]), rows.spread("us", [7, 7])])
    assert table.splitlines()[2:4] == ["| 2 (1 - 4) |", "| 7 |"]


def test_circumstances_stand_below_where_all_rows_agree_and_in_a_column_where_not():
    table = rows.render(
        [{"us": 1, "date": "today", "machine": "m"}, {"us": 2, "date": "now", "machine": "m"}]
    )
    assert table.splitlines()[0] == "| us | date |"
    assert table.endswith("; machine m.")


def test_a_table_without_rows_says_how_to_get_them():
    assert rows.render([]) == "Not measured yet: `make bench`."


def test_circumstances_are_known_to_the_tables():
    assert set(rows.circumstances()) <= set(rows.CIRCUMSTANCES)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one commit."""
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    for name in ("source.py", "benchmarks/README.md", "benchmarks/results/a.jsonl"):
        (tmp_path / name).write_text("committed\n")
    someone = ["-c", "user.name=Someone", "-c", "user.email=someone@example.invalid"]
    for command in (["init"], ["add", "."], [*someone, "commit", "--message", "One"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def test_what_benchmarks_write_does_not_make_a_commit_dirty(checkout):
    clean = rows.circumstances()["commit"]
    (checkout / "benchmarks/README.md").write_text("measured\n")
    (checkout / "benchmarks/results/a.jsonl").write_text("measured\n")
    assert rows.circumstances()["commit"] == clean
    assert len(clean) >= 7


def test_a_changed_source_makes_a_commit_dirty(checkout):
    clean = rows.circumstances()["commit"]
    (checkout / "source.py").write_text("changed\n")
    assert rows.circumstances()["commit"] == f"{clean}-dirty"


def test_without_a_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert rows.circumstances()["commit"] == "unknown"
