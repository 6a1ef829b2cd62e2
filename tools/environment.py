"""Make the environment in .venv from requirements.lock, unless it is there already."""

import os
import re
import subprocess
import sys

LOWEST, NEWEST = (3, 11), (3, 14)  # the lock has a version for each of them
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def ingredients():
    """What an environment is made from: the lock and the package's description."""
    texts = []
    for name in ("requirements.lock", "pyproject.toml"):
        with open(os.path.join(ROOT, name), encoding="utf8") as file:
            texts.append(file.read())
    return "".join(texts)


def check_version():
    """Stop with a sentence where this Python is too old; say so where it is newer than any that was tried."""
    version = sys.version_info[:2]
    found = f"{sys.executable} is {version[0]}.{version[1]}"
    if version < LOWEST:
        sys.exit(
            f"This book needs Python 3.11 or newer, but {found}. Name another one, for example: "
            f"make book PYTHON=python3.12"
        )
    if version > NEWEST:
        print(
            f"Not tried: {found}, and the newest that this book knows is {NEWEST[0]}.{NEWEST[1]}. If a package "
            f"cannot be installed, name an older one, for example: make book PYTHON=python3.12",
            file=sys.stderr,
        )


def is_of_this_version(venv):
    """Whether an environment that is there was made by a Python like this one."""
    try:
        with open(os.path.join(venv, "pyvenv.cfg"), encoding="utf8") as file:
            found = re.search(r"^version\s*=\s*(\d+)\.(\d+)", file.read(), re.MULTILINE)
    except OSError:
        return False
    return bool(found) and (int(found[1]), int(found[2])) == sys.version_info[:2]


def main():
    venv = os.path.join(ROOT, ".venv")
    python = os.path.join(venv, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
    stamp = os.path.join(venv, "made-from.txt")
    if os.path.exists(stamp) and os.path.exists(python):
        with open(stamp, encoding="utf8") as file:
            if file.read() == ingredients():
                return
        os.remove(stamp)
    check_version()
    print(f"Making the environment in {venv} from requirements.lock: some minutes the first time", flush=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    lock = os.path.join(ROOT, "requirements.lock")
    for command in (
        [sys.executable, "-m", "venv", *([] if is_of_this_version(venv) else ["--clear"]), venv],
        [*pip, "install", "--no-deps", "--progress-bar", "off", "--quiet", "-r", lock],
        [*pip, "install", "--no-deps", "--no-build-isolation", "--quiet", "--editable", ROOT],
        [*pip, "check"],
    ):
        if subprocess.call(command):
            sys.exit("The environment is not complete, because this failed:\n  " + " ".join(command))
    with open(stamp, "w", encoding="utf8") as file:
        file.write(ingredients())


if __name__ == "__main__":
    main()
