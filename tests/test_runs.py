import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import trained

import dnc_lib
from dnc_lib import runs
from dnc_lib.runs import MANIFEST, METRICS, MODEL, Run, describe_code, describe_machine, held, peak_memory


@pytest.fixture
def folder(tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(trained().folder, tmp_path / "run"))


def test_round_trip(folder):
    run = Run.load(folder)
    assert run.manifest == json.loads(json.dumps(trained().manifest))
    assert run.recipe == trained().recipe
    assert isinstance(run.recipe.milestones, tuple)
    assert run.metrics() == run.manifest["curve"]
    model, card = run.model()
    assert not model.training
    assert card.classes == list("0123456789")
    assert Run.load(str(folder)).recipe == run.recipe


def test_what_the_manifest_records(folder):
    manifest = Run.load(folder).manifest
    assert set(manifest) >= {
        "recipe", "data", "code", "processes", "parameters", "versions", "device", "device_name", "threads",
        "start_kept", "final", "best", "curve", "seconds", "peak_memory_bytes",
    }  # fmt: skip
    assert set(manifest["final"]) == {"accuracy", "top5", "loss"}
    assert manifest["data"]["train"]["images"] == 1198
    assert manifest["data"]["test"]["images"] == 599
    assert len(manifest["data"]["train"]["digest"]) == 16
    assert torch.__version__.startswith(manifest["versions"]["torch"])
    assert manifest["processes"] == 1
    assert len(manifest["curve"]) == manifest["recipe"]["epochs"]
    model, _ = trained().model()
    assert manifest["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert "NaN" not in (folder / MANIFEST).read_text()


def test_the_manifest_tells_no_path_and_no_name(folder):
    text = (folder / MANIFEST).read_text() + (folder / METRICS).read_text()
    assert str(Path.home()) not in text
    assert str(trained().folder.parent) not in text
    assert str(Path(dnc_lib.__file__).parent.parent) not in text


def test_no_run_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run folder: it has no manifest.json; `dnc train` writes one"):
        Run.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        Run.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        '{"recipe": null}',
        '{"recipe": {}}',
        '{"recipe": {"name": "a", "dataset": "digits", "backbone": "tiny_resnet8", "wheels": 4}}',
        '{"recipe": {"name": "a", "dataset": "digits", "backbone": "tiny_resnet8", "epochs": 0}}',
        '{"recipe": {"name": "a", "dataset": "digits", "backbone": "tiny_resnet8", "epochs": "three"}}',
    ],
)
def test_a_damaged_manifest(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json is damaged or from another version"):
        Run.load(folder)


def test_a_manifest_that_is_no_text(folder):
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        Run.load(folder)


def test_damaged_metrics(folder):
    run = Run.load(folder)
    (folder / METRICS).write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged"):
        run.metrics()
    (folder / METRICS).unlink()
    with pytest.raises(FileNotFoundError, match=r"no metrics at .*metrics.jsonl"):
        run.metrics()


def test_a_run_without_its_model(folder):
    (folder / MODEL).unlink()
    with pytest.raises(FileNotFoundError, match=r"no model at .*model.safetensors"):
        Run.load(folder).model()


def test_metrics_are_appended(tmp_path):
    run = Run(tmp_path)
    run.add_metrics({"epoch": 1})
    run.add_metrics({"epoch": 2})
    assert run.metrics() == [{"epoch": 1}, {"epoch": 2}]


def test_a_failure_in_the_middle_leaves_the_old_manifest(folder, monkeypatch):
    run = Run.load(folder)
    old = (folder / MANIFEST).read_bytes()
    names = sorted(path.name for path in folder.iterdir())

    def fails(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(runs.os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        run.save_manifest()
    assert (folder / MANIFEST).read_bytes() == old
    assert sorted(path.name for path in folder.iterdir()) == names


# --- the code and the machine ---------------------------------------------------------------------------------------


def git(folder, *words):
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *settings, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository; the package pretends to lie in it."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "package").mkdir()
    code = tmp_path / "package" / "runs.py"
    code.write_text("1\n")
    (tmp_path / "other.txt").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.setattr(runs, "__file__", str(code))
    return tmp_path


def test_commit_and_changes(checkout):
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "two")
    assert describe_code() == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    (checkout / "other.txt").write_text("2\n")
    assert describe_code()["dirty"] is False  # not the package's
    (checkout / "package" / "runs.py").write_text("2\n")
    assert describe_code()["dirty"] is True


def test_a_package_installed_inside_someone_elses_checkout_has_no_commit(checkout):
    assert describe_code() == {"commit": None, "dirty": None}


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_code() == {"commit": None, "dirty": None}


def test_the_machine():
    machine = describe_machine(torch.device("cpu"))
    assert machine["device"] == "cpu"
    assert machine["threads"] >= 1
    assert set(machine["versions"]) >= {"python", "torch", "timm", "accelerate", "numpy", "safetensors"}


def test_peak_memory(monkeypatch):
    assert 50e6 < peak_memory(torch.device("cpu")) < 1e12
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_memory(torch.device("cpu")) is None


def test_a_run_that_has_not_ended(tmp_path):
    Run(tmp_path).reset_metrics([{"epoch": 1}])
    with pytest.raises(FileNotFoundError, match=r"has not ended, .*: wait, or go on with it by `dnc train --resume`"):
        Run.load(tmp_path)


def test_what_is_held_is_free_again_after_a_kill(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from dnc_lib.runs import held\n"
        "with held(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match="another process is writing"), held(tmp_path / "run"):
        pass
    process.kill()
    process.communicate()
    with held(tmp_path / "run"):
        assert (tmp_path / ".run.lock").exists()
    assert not list(tmp_path.iterdir())
