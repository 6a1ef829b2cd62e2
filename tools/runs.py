"""The run plan: what the book's comparisons still lack, and the trainings that close the gap.

    python tools/runs.py status                            what is there, what is missing, what that costs
    python tools/runs.py run [--only ID ...] [--hours H] [--device cpu|cuda]
    python tools/runs.py table                             write the table in book/results/README.md anew

`run` trains what is missing or stale of book/runs.yaml, in the order of that file, all arms of a seed before the
next seed, from a clean copy of the present commit, so that every manifest names code that can be had again. It may be
stopped at any moment and started again; each training is written to book/results/ when it has ended. Working files
and trained models lie in _runs/.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: beside other work its threads spin

ROOT = Path(__file__).resolve().parents[1]
PLAN, RESULTS, STATE = ROOT / "book" / "runs.yaml", ROOT / "book" / "results", ROOT / "_runs"
MARKS = "<!-- made by tools/runs.py table -->", "<!-- end -->"


def statuses(results: Path = RESULTS, plan: Path = PLAN) -> list:
    """The status of every entry of the plan, in its order."""
    from dnc_lib.records import load_results
    from dnc_lib.run_plan import load_plan, status

    records = load_results(results)
    return [status(entry, records, results) for entry in load_plan(plan)]


def show() -> None:
    """A table of what is there, what is partial, what is not run, and what it would cost."""
    found = statuses()
    print(f"{'entry':24} {'there':>9}  {'state':8} {'left':>11}  decides")
    for each in found:
        there = f"{each.total - len(each.missing)}/{each.total}"
        left = f"{each.minutes / 60:.1f} h {each.entry.device}" if each.missing else ""
        print(f"{each.entry.id:24} {there:>9}  {each.state:8} {left:>11}  {each.entry.decides}")
    for device, where in (("cpu", "one CPU core"), ("cuda", "one GPU")):
        hours = sum(each.minutes for each in found if each.entry.device == device) / 60
        print(f"{hours:.1f} hours left on {where}")


# --- running --------------------------------------------------------------------------------------------------------


def run(only: list[str], hours: float, device: str) -> None:
    """Make the clean copy, and work there."""
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    copy = STATE / "copy"
    if not copy.is_dir():
        STATE.mkdir(exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    subprocess.run(["git", "fetch", "--quiet", "origin"], cwd=copy, check=True)
    subprocess.run(["git", "checkout", "--quiet", "--force", "--detach", commit], cwd=copy, check=True)
    print(f"working at {commit[:10]}, in {copy}", flush=True)
    words = ["--hours", str(hours), "--device", device, *(["--only", *only] if only else [])]
    command = [sys.executable, str(copy / "tools" / "runs.py"), "work", "--state", str(STATE), *words]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    if device == "cpu":
        environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    raise SystemExit(subprocess.run([*command, "--results", str(RESULTS)], cwd=copy, env=environment).returncode)


def work(only: list[str], hours: float, device: str, results: Path, state: Path) -> None:
    """Run what is missing, entry by entry and seed by seed, until all is there or the time is up."""
    end = time.monotonic() + 3600 * hours
    found = [each for each in statuses(results) if each.entry.device == device and each.missing]
    if unknown := set(only) - {each.entry.id for each in statuses(results)}:
        raise SystemExit(f"the plan has no entry {', '.join(sorted(unknown))}")
    for each in found:
        if only and each.entry.id not in only:
            continue
        for seed in dict.fromkeys(seed for _, seed in each.missing):
            if time.monotonic() >= end:
                print("the time is up", flush=True)
                return
            arms = [arm for arm, other in each.missing if other == seed]
            print(f"{time.strftime('%H:%M:%S')} {each.entry.id}, seed {seed}: {len(arms)} trainings", flush=True)
            deed = command if each.entry.command else singles if each.entry.single else comparison
            deed(each.entry, arms, seed, results, state, lambda: time.monotonic() >= end)
    print(f"{time.strftime('%H:%M:%S')} nothing is missing", flush=True)


def comparison(entry, arms: list[str], seed: int, results: Path, state: Path, late) -> None:
    """Train these arms with one seed, measure them if the entry says so, and add them to the result."""
    from measure import measure

    from dnc_lib.comparisons import compare, merge
    from dnc_lib.recipes import parse_arm
    from dnc_lib.runs import write_json

    result, raw = results / entry.result, state / entry.id / f"seed{seed}.json"
    models = state / "models" / entry.id
    raw.parent.mkdir(parents=True, exist_ok=True)
    changes = {name: parse_arm(name) for name in arms}
    if raw.is_file() and json.loads(raw.read_text(encoding="utf-8"))["code"] != _code():
        raw.unlink()  # begun by another commit: what it finished is in the result already
        shutil.rmtree(models, ignore_errors=True)
    for name in arms:  # one after the other, so that a stop loses one training at most
        if late():
            return
        keep = models if entry.measure else None
        asked = {"also": entry.also, "keep": keep, "progress": False}
        manifest = compare(entry.base(), {name: changes[name]}, [seed], raw, **asked)
        if entry.measure:
            output = raw.with_name(f"seed{seed}_measured.json")
            manifest = measure(raw, models, output, list(entry.measure), details=True, go_on=True)
            _add_details(output.parent / "details" / output.name, results / "details" / entry.result)
        before = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else None
        manifest = json.loads(json.dumps(manifest))
        write_json(merge(before, manifest) if before else manifest, result)
        scores = {each["arm"]: each.get("accuracy", each.get("miou")) for each in manifest["results"]}
        print(f"{time.strftime('%H:%M:%S')}   {name}: {scores[name]:.2f}", flush=True)


def singles(entry, arms: list[str], seed: int, results: Path, state: Path, late) -> None:
    """A run folder for each of these arms, and its manifest among the results."""
    from dnc_lib.recipes import parse_arm
    from dnc_lib.training import train

    for arm in arms:
        if late():
            return
        folder = state / "runs" / entry.id / entry.file(arm, seed).removesuffix(".json")
        done = train(entry.base().replace(seed=seed, **parse_arm(arm)), output=folder, resume=True, progress=False)
        shutil.copy2(done.folder / "manifest.json", results / entry.file(arm, seed))


def command(entry, arms: list[str], seed: int, results: Path, state: Path, late) -> None:
    """Run an entry's command."""
    places = {"runs": state / "runs", "models": state / "models", "result": results / entry.result}
    places["python"] = sys.executable
    subprocess.run(entry.command.format(**places), shell=True, check=True)


def _code() -> dict:
    from dnc_lib.runs import describe_code

    return describe_code()


def _add_details(source: Path, target: Path) -> None:
    """Put the histograms and the like of new trainings beside those that are there."""
    if not source.is_file():
        return
    new = json.loads(source.read_text(encoding="utf-8"))["arms"]
    old = json.loads(target.read_text(encoding="utf-8"))["arms"] if target.is_file() else {}
    arms = {arm: old.get(arm, {}) | new.get(arm, {}) for arm in {**old, **new}}
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"of": target.name, "arms": arms}) + "\n", encoding="utf-8")


# --- the table ------------------------------------------------------------------------------------------------------


def table() -> str:
    """The plan as the table of results/README.md: what is run for what, where it lies, and how."""
    from dnc_lib.run_plan import load_plan

    rows = ["| entry | file | decides | by the command | then | on |", "| --- | --- | --- | --- | --- | --- |"]
    for entry in load_plan(PLAN):
        then = f"`tools/measure.py --what {' '.join(entry.measure)}`" if entry.measure else ""
        on = {"cpu": "one CPU core", "cuda": "one GPU"}[entry.device]
        number = len(entry.trainings()) or 1
        time = f"{on}, about {number} x {entry.minutes:g} min"
        words = (entry.id, f"`{entry.result}`", entry.decides, f"`{entry.as_command}`", then, time)
        rows.append(f"| {' | '.join(words)} |")
    return "\n".join(rows)


def write_table() -> None:
    """Put the table between its marks in results/README.md."""
    path = RESULTS / "README.md"
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


def with_table(text: str) -> str:
    """A page with the present table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deed", choices=["status", "run", "table", "work"])
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="entries; all without")
    parser.add_argument("--hours", type=float, default=1e6, help="begin no training after so many")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="entries that are meant for it")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, default=STATE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.deed == "work":
        work(options.only, options.hours, options.device, options.results, options.state)
    elif options.deed == "run":
        run(options.only, options.hours, options.device)
    else:
        {"status": show, "table": write_table}[options.deed]()


if __name__ == "__main__":
    main()
