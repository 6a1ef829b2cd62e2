"""Every chapter keeps the form that CONTRIBUTING.md sets. What its cells print is nbval's business, not ours."""

import ast
import base64
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import book as tools  # noqa: E402

CHAPTERS = tools.chapters()
EXERCISE = ("exercise-check", "exercise", "solution", "wrong")
HIDING = {"hide-input", "hide-output", "hide-cell", "remove-input", "remove-output", "remove-cell"}
FOR_NBVAL = {"nbval-ignore-output", "nbval-raises-exception", "raises-exception"}
KNOWN_TAGS = {"colab", "parameters", *EXERCISE, *HIDING, *FOR_NBVAL}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|work|opt|mnt|private|var/folders)/|[A-Z]:\\\\?Users")

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list:
    return [cell for cell in tools.read(path).cells if cell.cell_type == "code"]


def texts(output) -> list[str]:
    """What an output shows in words: streams, and the text forms of results."""
    if output.output_type == "stream":
        return [output.text]
    data = output.get("data", {})
    return [data[kind] for kind in ("text/plain", "text/html", "text/markdown") if kind in data]


def test_contents_and_files_agree():
    listed = tools.pages()
    for page in listed:
        found = page.with_suffix(".ipynb").is_file() or page.with_suffix(".md").is_file()
        assert found, f"_toc.yml names {page.name}, and there is no such page"
    unlisted = {path.stem for path in tools.BOOK.glob("*.ipynb")} - {page.name for page in listed}
    assert not unlisted, f"not in _toc.yml: {unlisted}"
    assert CHAPTERS


@pytest.mark.parametrize(("chosen", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_kernels_inherit_how_threads_wait(monkeypatch, chosen, found):
    seen = []
    monkeypatch.setattr(tools, "html", lambda: seen.append(dict(os.environ)))
    monkeypatch.setattr(os, "environ", {} if chosen is None else {"OMP_WAIT_POLICY": chosen})
    monkeypatch.setattr(sys, "argv", ["book.py", "html"])
    tools.main()
    assert seen == [{"OMP_WAIT_POLICY": found, **tools.ENVIRONMENT}]


@each_chapter
def test_outputs_are_of_one_clean_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run `make refresh`"
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", f"error in the output of:\n{cell.source}"
            assert output.get("name") != "stderr", f"stderr in the output of:\n{cell.source}"


@each_chapter
def test_file_is_small_and_normal(path):
    assert path.stat().st_size < 1_000_000
    notebook = tools.read(path)
    allowed = {"kernelspec", "language_info", "dnc"}
    assert set(notebook.metadata) <= allowed, "run `make refresh`: it leaves out papermill's and others' metadata"
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, f"metadata of a cell: {set(cell.metadata)}"
        unknown = set(tools.tags(cell)) - KNOWN_TAGS
        assert not unknown, f"unknown tags {unknown}"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    fresh = tools.normalise(tools.read(path))
    assert ids == [cell.id for cell in fresh.cells], "run `make stamp`: it gives cells their lasting ids"


@each_chapter
def test_figures_are_small(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            for kind, data in output.get("data", {}).items():
                if kind.startswith("image/"):
                    size = len(base64.b64decode(data)) if kind != "image/svg+xml" else len(data)
                    assert size < 100_000, f"{kind} of {size} bytes from:\n{cell.source}"


@each_chapter
def test_parameters_are_literals(path):
    cells = [cell for cell in code_cells(path) if "parameters" in tools.tags(cell)]
    expected = 1 if path.stem != "intro" else 0  # the opening page only shows
    assert len(cells) == expected, f"{len(cells)} cells tagged `parameters`"
    for statement in (statement for cell in cells for statement in ast.parse(cell.source).body):
        assert isinstance(statement, ast.Assign | ast.AnnAssign), ast.unparse(statement)
        ast.literal_eval(statement.value)


@each_chapter
def test_colab_cell_is_the_current_one(path):
    cells = code_cells(path)
    stamped = [index for index, cell in enumerate(cells) if "colab" in tools.tags(cell)]
    assert stamped == [0], "the Colab cell must be the first code cell, once: run `make stamp`"
    assert cells[0].source == tools.colab_source(), "run `make stamp`"
    assert tools.tags(cells[0]) == tools.COLAB_TAGS
    assert cells[0].outputs == []


@each_chapter
def test_exercises(path):
    """Check, stub, solution, wrong answer, in this order; and the outputs that prove the check."""
    cells = [cell for cell in code_cells(path) if set(tools.tags(cell)) & set(EXERCISE)]
    kinds = [next(kind for kind in EXERCISE if kind in tools.tags(cell)) for cell in cells]
    assert kinds == list(EXERCISE) * (len(kinds) // 4), f"out of order: {kinds}"
    expected = 2 if path.stem != "intro" else 0  # the opening page only shows
    assert len(kinds) // 4 >= expected, "a chapter has two or three exercises"
    for cell, kind in zip(cells, kinds, strict=True):
        if kind == "exercise-check":
            assert re.search(r"^def check_\w+\(", cell.source, re.MULTILINE), cell.source
            continue
        if kind in ("solution", "wrong"):
            assert "hide-cell" in tools.tags(cell)
        shown = "".join(text for output in cell.outputs for text in texts(output)).strip().strip("'\"")
        assert shown.startswith("Correct." if kind == "solution" else "Not yet"), f"{kind} printed: {shown}"
        assert "attempt(check_" in cell.source


@each_chapter
def test_outputs_name_no_place_on_a_machine(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            for text in texts(output):
                place = MACHINE_PATH.search(text)
                assert not place, f"{place[0]} in the output of:\n{cell.source}"


@each_chapter
def test_chapter_begins_with_its_title(path):
    first = tools.read(path).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")


@each_chapter
def test_needs_are_known_data_sets(path):
    from dnc_lib.data import NAMES
    from dnc_lib.data.scene_layouts import LAYOUTS

    assert set(tools.read(path).metadata.get("dnc", {}).get("needs", [])) <= {*NAMES, *LAYOUTS}


class TestStamp:
    """`make stamp` on a chapter of our own."""

    @pytest.fixture
    def chapter(self, tmp_path):
        import nbformat

        v4 = nbformat.v4
        cells = [v4.new_markdown_cell("# T"), v4.new_code_cell("1 + 1"), v4.new_code_cell("2 + 2")]
        for number, cell in enumerate(cells[1:], 1):
            cell.execution_count = number
            result = v4.new_output("execute_result", {"text/plain": str(2 * number)}, execution_count=number)
            cell.outputs = [result]
        notebook = v4.new_notebook(cells=cells, metadata={"dnc": {"needs": []}, "papermill": {"x": 1}})
        nbformat.write(notebook, tmp_path / "chapter.ipynb")
        return tmp_path / "chapter.ipynb"

    def test_puts_the_cell_before_all_code_and_counts_again(self, chapter):
        assert tools.stamp(chapter)
        cells = tools.read(chapter).cells
        assert [cell.cell_type for cell in cells] == ["markdown", "code", "code", "code"]
        assert cells[1].source == tools.colab_source()
        assert [cell.execution_count for cell in cells[1:]] == [1, 2, 3]
        assert cells[3].outputs[0].execution_count == 3
        assert "papermill" not in tools.read(chapter).metadata

    def test_twice_is_once(self, chapter):
        tools.stamp(chapter)
        assert not tools.stamp(chapter)

    def test_follows_the_address(self, chapter, monkeypatch):
        tools.stamp(chapter)
        source = tools.COLAB_SET.format(url="https://example.org/a/b", branch="main")
        monkeypatch.setattr(tools, "colab_source", lambda: source)
        assert tools.stamp(chapter)
        assert [cell.source for cell in tools.read(chapter).cells].count(source) == 1
        assert len(tools.read(chapter).cells) == 4


def test_colab_cell_does_nothing_elsewhere_and_says_what_is_missing_there(monkeypatch):
    exec(tools.COLAB_UNSET, {})
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    with pytest.raises(RuntimeError, match=r"repository: url: in _config\.yml"):
        exec(tools.COLAB_UNSET, {})


def test_a_crashed_cell_is_named(tmp_path):
    import nbformat

    v4 = nbformat.v4
    cells = [v4.new_markdown_cell("# T"), v4.new_code_cell("x = 1"), v4.new_code_cell("x / 0")]
    path = tmp_path / "crashes.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), path)
    with pytest.raises(SystemExit, match=r"crashes\.ipynb, code cell 2 of 2:[\s\S]*ZeroDivisionError"):
        tools.run_chapters([path])


def test_a_chapter_without_its_data_keeps_its_outputs(tmp_path, monkeypatch, capsys):
    import nbformat

    v4 = nbformat.v4
    metadata = {"dnc": {"needs": ["cifar10"]}}
    path = tmp_path / "needy.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("x / 0")], metadata=metadata), path)
    before = path.read_bytes()
    monkeypatch.setenv("DNC_DATA", str(tmp_path / "nothing"))
    tools.run_chapters([path])
    assert path.read_bytes() == before
    assert "keeps its committed outputs: needs cifar10, not found under" in capsys.readouterr().out
