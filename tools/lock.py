"""Resolve requirements.lock anew: one file for Linux, macOS and Windows, Python 3.11 to 3.14. Needs uv on the path.

Versions already in the lock are kept where they still fit; `python3 tools/lock.py --upgrade` takes the newest. The
versions chosen by hand are in tools/pins.in, and stay.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
HEADER = """\
# Every version, exact, for Linux, macOS and Windows and Python 3.11 to 3.14. Made by `make lock` from pyproject.toml
# and tools/pins.in; not edited by hand. Install with: pip install --no-deps -r requirements.lock
"""
#: Systems on which nobody reads this book, and conditions that then always hold.
UNWANTED = re.compile(r" ; .*(sys_platform == 'emscripten'|implementation_name == 'pypy')$")
ALWAYS = r"(sys_platform != 'emscripten'|python_full_version < '3\.15')"
NOISE = re.compile(rf" ; {ALWAYS}$| and {ALWAYS}|{ALWAYS} and ")


def main() -> None:
    uv = shutil.which("uv")
    if not uv:
        sys.exit("uv resolves the lock and is not here: pip install uv, then `make lock` again.")
    command = [uv, "pip", "compile", "--universal", "--python-version", "3.11", "--extra", "test", "--extra", "site"]
    command += ["--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
    command += ["pyproject.toml", "tools/pins.in", "-o", str(LOCK), *sys.argv[1:]]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = [line for line in LOCK.read_text(encoding="utf8").splitlines() if line and not line.startswith("#")]
    lines = [NOISE.sub("", line) for line in lines if not UNWANTED.search(line)]
    LOCK.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf8")
    print(f"{LOCK.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
