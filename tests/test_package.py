import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dnc_lib

PACKAGE = Path(dnc_lib.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


def floors() -> dict[str, int]:
    """Floor of each file, as CONTRIBUTING.md has them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(\d+)\. ((?:`[\w/]+`(?:, )?)+)$", text, re.MULTILINE)
    return {name.rstrip("/"): int(floor) for floor, names in lines for name in re.findall(r"`([\w/]+)`", names)}


def imports(path: Path) -> set[str]:
    """Files and folders of the package that a file imports, at the top or inside a function."""
    here = ["dnc_lib", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{each.name}" for each in node.names}
    return {name.split(".")[1] for name in found if name.startswith("dnc_lib.")}


def test_the_house_has_its_floors():
    known = floors()
    assert len(known) > 15
    above = {name.split("/")[0] for name in MODULES} - set(known) - {"__init__", "errors"}
    assert not above, f"CONTRIBUTING.md gives no floor to {sorted(above)}"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_imports_go_downwards(module):
    known, own = floors(), module.split("/")[0]
    if own not in known:
        pytest.skip(f"{own} has no floor")
    for other in imports(PACKAGE / f"{module}.py"):
        if other in known and other != own:
            assert known[other] <= known[own], f"{module} (floor {known[own]}) imports {other} (floor {known[other]})"


def test_no_two_files_of_a_floor_import_each_other():
    known = floors()
    edges = {(m.split("/")[0], o) for m in MODULES for o in imports(PACKAGE / f"{m}.py") if o in known}
    assert not [(a, b) for a, b in edges if a < b and (b, a) in edges]


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("__main__",)])
def test_the_library_is_quiet(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for word in ("print", "torch.set_num_threads", "set_seed", "plt.show"):
        assert word not in called
    if module not in ("loading", "fitting"):  # inside a fork of the generators
        assert "torch.manual_seed" not in called
    if module != "randomness":  # timm draws from these; they are lent to it and set back
        assert not called & {"np.random.seed", "random.seed"}


NAMES = (
    "SubCentroidHead", "SoftmaxHead", "CosineHead", "ImageClassifier", "sinkhorn", "train", "recipes",
    "load_pretrained", "NearestSubCentroids",
)  # fmt: skip


def test_what_the_design_promises_can_be_imported():
    from dnc_lib import ImageClassifier, SubCentroidHead, load_pretrained, recipes, sinkhorn, train

    assert callable(sinkhorn)
    assert callable(train)
    assert callable(load_pretrained)
    assert callable(recipes.cifar10_resnet50)
    assert ImageClassifier.from_timm
    assert SubCentroidHead
    assert set(NAMES) <= set(dir(dnc_lib))
    assert dnc_lib.__all__ == sorted(dnc_lib.__all__) or set(NAMES) <= set(dnc_lib.__all__)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'dnc_lib' has no attribute 'Segmentor'"):
        dnc_lib.Segmentor  # noqa: B018


SCRIPT = """
import importlib, sys, types
for name in {order!r}:
    importlib.import_module(name)
import dnc_lib
for name in {names!r}:
    value = getattr(dnc_lib, name)
    assert isinstance(value, types.ModuleType) == (name == "recipes"), (name, value)
    exec(f"from dnc_lib import {{name}}")
assert "print" not in vars(dnc_lib)
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["sinkhorn", "training"])
def test_the_names_are_right_whatever_was_imported_first(first):
    rest = [m.replace("/", ".") for m in MODULES if not m.endswith("__init__") and m not in ("__main__", "plots")]
    order = ["dnc_lib." + name for name in itertools.chain([first], reversed(rest))]
    script = SCRIPT.format(order=order, names=NAMES)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
