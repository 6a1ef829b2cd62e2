"""Everything that `make` does with the book, for those with and without make.

    python tools/book.py book        run the chapters here, then build the pages (warnings are errors)
    python tools/book.py html        build the pages from the committed outputs
    python tools/book.py test        lint, unit tests, every chapter under nbval, the pages in a browser
    python tools/book.py test-quick  lint and the fast unit tests: for the loop of work
    python tools/book.py refresh     run the chapters and write their outputs back, ready to commit
    python tools/book.py stamp       write the Colab cell into every chapter, from the address in _config.yml
    python tools/book.py bench       run the benchmarks

`refresh` takes chapter names (`refresh distances`); without any it runs them all.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
BUILD = ROOT / "_build"
CELL_TIMEOUT = 1200  # seconds
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}

#: Kernels come from this environment, find no ~/.local kernel first, and write no bytecode beside the chapters.
ENVIRONMENT = {"JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
#: What a user may have chosen otherwise: threads that wait should not spin on a core that another program could use.
DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE"}


# --- the chapters ---------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """Sources of all pages in the order of `_toc.yml`, without their suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    files = [toc["root"]] + [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [ROOT / file for file in files]


def chapters(book: Path = BOOK) -> list[Path]:
    """The notebooks in reading order."""
    found = [book / f"{page.name}.ipynb" for page in pages()]
    return [path for path in found if path.is_file()]


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook, format 4."""
    return nbformat.read(path, as_version=4)


def tags(cell) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def missing_data(path: Path) -> str:
    """Why a chapter cannot run here: the first data set of its metadata `dnc.needs` that is not at hand, or ""."""
    needs = read(path).metadata.get("dnc", {}).get("needs", [])
    if needs:
        from dnc_lib import data
        from dnc_lib.data.scenes import LAYOUTS, open_scenes
    for name in needs:
        try:
            open_scenes(name) if name in LAYOUTS else data.load(name)
        except FileNotFoundError:
            return f"needs {name}, not found under {data.data_root()} (set DNC_DATA to where it is)"
    return ""


def execute(path: Path, folder: Path) -> str:
    """Run a notebook in place, in `folder`; return "" or what crashed."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = read(path)
    code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    reached = [0]

    def progress(cell, cell_index) -> None:
        reached[0] = cell_index
        if sys.stdout.isatty() and cell_index in code:
            print(f"\r    cell {code.index(cell_index) + 1} of {len(code)} ", end="", flush=True)

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,  # a slow machine sends the same text in more pieces
        extra_arguments=["--IPKernelApp.log_level=40"],
        on_cell_start=progress,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        number = code.index(reached[0]) + 1 if reached[0] in code else reached[0]
        return f"{path.name}, code cell {number} of {len(code)}:\n{error}"
    finally:
        if sys.stdout.isatty():
            print("\r" + " " * 30 + "\r", end="")
    write(normalise(notebook), path)
    return ""


def run_chapters(paths: list[Path]) -> None:
    """Run notebooks in place, saying how far it is; those whose data is not at hand keep their outputs.

    Raises:
        SystemExit: naming chapter and cell, if one crashed.
    """
    failures, began = [], time.perf_counter()
    for number, path in enumerate(paths, 1):
        label = f"[{number}/{len(paths)}] {path.stem:<22}"
        reason = missing_data(path)
        if reason:
            print(f"{label} keeps its committed outputs: {reason}", flush=True)
            continue
        if sys.stdout.isatty():
            print(f"{label} ...", flush=True)
        start = time.perf_counter()
        failure = execute(path, path.parent)
        print(f"{label} {'CRASHED after' if failure else ''}{time.perf_counter() - start:6.1f} s", flush=True)
        if failure:
            failures.append(failure)
    print(f"{len(paths)} chapters in {time.perf_counter() - began:.0f} s", flush=True)
    if failures:
        sys.exit("\n\n".join(["A chapter crashed.", *failures]))


# --- notebooks on disk ----------------------------------------------------------------------------------------------


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep of a notebook what the next run would give again: no times, no versions, ids from the cells' sources."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    kept = {key: notebook.metadata[key] for key in ("dnc",) if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict({**kept, "kernelspec": KERNELSPEC, "language_info": LANGUAGE})
    used: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": tags(cell)} if tags(cell) else {})
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        used[digest] = used.get(digest, 0) + 1
        cell.id = digest if used[digest] == 1 else f"{digest}-{used[digest]}"
    return notebook


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook under another name first, so that a broken-off run leaves the old one whole."""
    part = path.with_suffix(".ipynb.part")
    nbformat.write(notebook, part)
    os.replace(part, path)


def renumber(notebook: nbformat.NotebookNode) -> None:
    """Count the executed code cells 1, 2, ... again, after a cell was put in."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.execution_count for cell in code):
        for number, cell in enumerate(code, 1):
            cell.execution_count = number
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = number


# --- Colab ----------------------------------------------------------------------------------------------------------

COLAB_TAGS = ["colab", "remove-cell"]
COLAB_UNSET = """\
# On Colab this cell installs the book's package; anywhere else it does nothing. (Written by `make stamp`.)
import sys

if "google.colab" in sys.modules:
    raise RuntimeError(
        "This copy of the book does not know its own address, so nothing can be installed on Colab: "
        "set repository: url: in _config.yml, run `make stamp`, and open the chapter again."
    )"""
COLAB_SET = """\
# On Colab this cell installs the book's package; anywhere else it does nothing. (Written by `make stamp`.)
import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("/content/book-of-dnc").exists():
    !git clone --quiet --depth 1 --branch {branch} {url} /content/book-of-dnc
    %pip install --quiet "/content/book-of-dnc[book]"
    %cd -q /content/book-of-dnc/book"""


def colab_source() -> str:
    """The Colab cell for the repository address in `_config.yml`."""
    repository = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf8")).get("repository") or {}
    url = (repository.get("url") or "").rstrip("/")
    return COLAB_SET.format(url=url, branch=repository.get("branch", "main")) if url else COLAB_UNSET


def stamp(path: Path) -> bool:
    """Make the first code cell of a chapter the current Colab cell; say whether the file changed.

    It stands before the opening picture, because that picture imports the package.
    """
    notebook, before = read(path), path.read_text(encoding="utf8")
    old = [cell for cell in notebook.cells if "colab" in tags(cell)]
    cell = old[0] if old else nbformat.v4.new_code_cell()
    cell.source, cell.outputs, cell.metadata = colab_source(), [], nbformat.from_dict({"tags": COLAB_TAGS})
    rest = [other for other in notebook.cells if "colab" not in tags(other)]
    first = next((index for index, other in enumerate(rest) if other.cell_type == "code"), len(rest))
    notebook.cells = [*rest[:first], cell, *rest[first:]]
    renumber(notebook)
    write(normalise(notebook), path)
    return path.read_text(encoding="utf8") != before


# --- the pages ------------------------------------------------------------------------------------------------------


def copy_sources() -> Path:
    """Fresh copies of what the pages are made from, in `_build/source`: the committed files are never touched."""
    source = BUILD / "source"
    shutil.rmtree(source, ignore_errors=True)
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.part", "conftest.py")
    shutil.copytree(BOOK, source / "book", ignore=skip)
    shutil.copytree(ROOT / "tools", source / "tools", ignore=skip)
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md"):
        shutil.copy2(ROOT / name, source / name)
    return source


def build_pages(source: Path) -> Path:
    """Build the HTML from `source`, from nothing, with every warning an error.

    Raises:
        SystemExit: if there was a warning.
    """
    start = time.perf_counter()
    print("building the pages ...", flush=True)
    for folder in ("html", ".doctrees"):
        shutil.rmtree(BUILD / folder, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(source)]
    command += ["--path-output", str(ROOT), "-W", "-n", "--keep-going", "-q"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf8", errors="replace")
    if done.returncode:
        print(done.stdout)
        sys.exit("The pages were not built: the warnings above count as errors.")
    index = BUILD / "html" / "index.html"
    print(f"the pages took {time.perf_counter() - start:.0f} s\n\nThe book is at {index.as_uri()}", flush=True)
    return index


# --- commands -------------------------------------------------------------------------------------------------------


def book() -> None:
    """Run the chapters on copies, then build the pages."""
    source = copy_sources()
    run_chapters(chapters(source / "book"))
    build_pages(source)


def html() -> None:
    """Build the pages from the committed outputs."""
    build_pages(copy_sources())


def refresh(names: list[str]) -> None:
    """Run chapters and write their outputs back."""
    unknown = set(names) - {path.stem for path in chapters()}
    if unknown:
        sys.exit(f"no such chapter: {', '.join(sorted(unknown))}; there are {', '.join(p.stem for p in chapters())}")
    wanted = [path for path in chapters() if not names or path.stem in names]
    for path in wanted:
        stamp(path)
    run_chapters(wanted)


def stamp_all() -> None:
    """Write the Colab cell into every chapter."""
    for path in chapters():
        print(f"{path.relative_to(ROOT)}: {'stamped' if stamp(path) else 'unchanged'}")


def test() -> None:
    """Every check there is; all are run, and one that fails makes the whole fail."""
    python = [sys.executable, "-m"]
    steps = {
        "lint": [*python, "ruff", "check", "."],
        "unit tests": [*python, "pytest", "tests", "--ignore=tests/pages"],
        "chapters": [*python, "pytest", "--nbval", "--nbval-current-env", "--durations=8", "-rs", "book"],
        "pages": [sys.executable, __file__, "html"],
        "pages in a browser": [*python, "pytest", "-rs", "tests/pages"],
    }
    run_steps(steps)


def run_steps(steps: dict[str, list[str]]) -> None:
    """Run commands, all of them, and say which passed.

    Raises:
        SystemExit: if one failed.
    """
    results = {}
    for name, command in steps.items():
        print(f"\n=== {name} ===", flush=True)
        start = time.perf_counter()
        code = subprocess.run(command, cwd=ROOT).returncode  # pytest's 5, nothing collected, is a failure too
        results[name] = (code, time.perf_counter() - start)
    print("\n=== summary ===")
    for name, (code, seconds) in results.items():
        print(f"{name:<20} {'passed' if code == 0 else f'FAILED (exit {code})'} in {seconds:.0f} s")
    if any(code for code, _ in results.values()):
        sys.exit(1)


def test_quick() -> None:
    """Lint and the fast unit tests."""
    python = [sys.executable, "-m"]
    run_steps(
        {
            "lint": [*python, "ruff", "check", "."],
            "fast unit tests": [*python, "pytest", "-m", "not slow", "tests", "--ignore=tests/pages"],
        }
    )


def bench() -> None:
    """Run every benchmark."""
    for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py")):
        print(f"\n=== {path.name} ===", flush=True)
        subprocess.run([sys.executable, str(path)], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"book": book, "html": html, "test": test, "test-quick": test_quick, "stamp": stamp_all}
    commands["bench"] = bench
    parser.add_argument("command", choices=[*commands, "refresh"])
    parser.add_argument("chapters", nargs="*", help="for refresh: which")
    arguments = parser.parse_args()
    if arguments.chapters and arguments.command != "refresh":
        parser.error(f"{arguments.command} takes no chapter names")
    os.environ.update({**DEFAULTS, **os.environ, **ENVIRONMENT})
    if arguments.command == "refresh":
        refresh(arguments.chapters)
    else:
        commands[arguments.command]()


if __name__ == "__main__":
    main()
