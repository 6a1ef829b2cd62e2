"""The lock, conda's file, and the package's description say the same; the house keeps its layout."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import environment  # noqa: E402

LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
SYSTEMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def description() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted() -> list[Requirement]:
    """What the package, its tests and its site ask for."""
    extras = description()["optional-dependencies"]
    lines = [*description()["dependencies"], *extras["book"], *extras["test"], *extras["site"]]
    return [Requirement(line) for line in lines if not line.startswith("dnc-lib")]


def locked(python: str, system: dict) -> dict[str, str]:
    """Name to version on a system, from the lock."""
    values = {**system, "python_version": python, "python_full_version": f"{python}.9"}
    values.update(implementation_name="cpython", platform_python_implementation="CPython", extra="")
    found: dict[str, str] = {}
    for line in LOCK:
        requirement = Requirement(line)
        if requirement.marker is None or Marker(str(requirement.marker)).evaluate(values):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} twice on {system['sys_platform']} with Python {python}"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("line", LOCK)
def test_every_version_is_exact(line):
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][\w.]*( ; .+)?", line)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda each: f"{each['sys_platform']}-{each['platform_machine']}")
def test_lock_covers_what_the_package_asks_for(system, python):
    have = locked(python, system)
    for requirement in wanted():
        name = canonicalize_name(requirement.name)
        assert name in have, f"{name} is missing: run `make lock`"
        assert requirement.specifier.contains(have[name]), f"{name} {have[name]} is not {requirement.specifier}"
    assert "setuptools" in have  # it builds the package without fetching anything further


@pytest.mark.parametrize("python", PYTHONS)
def test_hand_made_choices_hold(python):
    have = locked(python, SYSTEMS[0])
    for line in (ROOT / "tools" / "pins.in").read_text().splitlines():
        pin = Requirement(line) if line and not line.startswith("#") else None
        if pin and (pin.marker is None or pin.marker.evaluate({"python_version": python})):
            assert pin.specifier.contains(have[canonicalize_name(pin.name)])
    assert have["jupyter-book"].startswith("1."), "2.x is another program, which does not read _config.yml"


def test_lock_names_no_place():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?:|file:|--index|--extra-index|--find-links|@ |/[a-z]+/", text)


def test_conda_installs_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, lines = conda["dependencies"]
    assert re.fullmatch(r"python=3\.1[1-4]", python)
    assert pip == "pip"
    assert lines == {"pip": ["-r requirements.lock", "--editable ."]}, "versions belong in requirements.lock"


def test_supported_pythons_agree_everywhere():
    assert description()["requires-python"] == f">={environment.LOWEST[0]}.{environment.LOWEST[1]}"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    highest = tuple(int(part) for part in PYTHONS[-1].split("."))
    assert highest == environment.NEWEST


@pytest.mark.parametrize("minor", [9, 10, 11, 14, 15, 20])
def test_an_old_python_is_refused_and_one_newer_than_tried_warned_of(monkeypatch, capsys, minor):
    monkeypatch.setattr(environment.sys, "version_info", (3, minor, 0, "final", 0))
    if minor < 11:
        with pytest.raises(SystemExit, match=rf"needs Python 3\.11 or newer, but .* is 3\.{minor}\."):
            environment.check_version()
        return
    environment.check_version()
    assert (f" is 3.{minor}, and the newest that this book knows is 3.14." in capsys.readouterr().err) == (minor > 14)


def test_this_environment_is_the_locked_one():
    """Only where `make` made it; elsewhere other versions may be as good."""
    if not (Path(sys.prefix) / "made-from.txt").is_file():
        pytest.skip("this environment was not made by `make`")
    for line in LOCK:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            assert metadata.version(requirement.name) in requirement.specifier


def test_make_help_lists_every_public_target():
    text = (ROOT / "Makefile").read_text()
    listed = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    targets = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split())
    assert listed == targets - {"help", "env"} | {"help"}


def test_version_is_said_once():
    import dnc_lib

    version = description()["version"]
    assert dnc_lib.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(rf"^## {re.escape(version)}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_package_imports_without_the_extras():
    """The library alone needs no plotting, no scikit-learn: they come with the extra `book`."""
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'sklearn', 'pandas', 'umap', 'papermill'): sys.modules[name] = None\n"
        "import dnc_lib\n"
        "from dnc_lib import ImageClassifier, SubCentroidHead, SoftmaxHead\n"
        "from dnc_lib import load_pretrained, recipes, sinkhorn, train\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
