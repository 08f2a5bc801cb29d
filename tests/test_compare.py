"""compare.py: several fine-tunings, each a process of finetune.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import compare
import runtime
from conftest import read_log

ROOT = Path(compare.__file__).parent


@pytest.fixture
def flags(finetuning):
    """finetune.py's, without a rate, and the runs."""
    def make(out_dir, *runs, more=()):
        argv = finetuning(out_dir, "single", "bert")
        i = argv.index("--lr")
        return ["--runs", *runs, *argv[:i], *argv[i + 2:], *more]
    return make


def test_two_runs_two_seeds(flags, tmp_path):
    runs = ["full", "lora --lr 2e-2 --lora_r 4"]
    compare.main(flags(tmp_path, *runs, more=["--seeds", "2", "--epochs", "1"]))
    table = (tmp_path / "compare.md").read_text().splitlines()
    assert len(table) == 4 and table[2].startswith("| full | ") and table[3].startswith(f"| {runs[1]} | ")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    logs = [read_log(tmp_path / name) for name in ("full", "lora-lr-2e-2-lora_r-4")]
    assert [log[0]["lr"] for log in logs] == [5e-5 * 768 / 128, 2e-2]  # bert-tiny is 128 wide
    full, lora = (log[-1] for log in logs)
    assert f"| accuracy {100 * full['mean']:.2f} ± {100 * full['std']:.2f} |" in table[2]
    assert f"| {lora['trained']:,} | {100 * lora['trained'] / lora['parameters']:.2f}% | " in table[3]
    # gradients and two moments of what is trained, and AdamW's step counts
    assert lora["training_mb"] == pytest.approx(12 * lora["trained"] / 1e6, rel=0.01)
    assert lora["training_mb"] < 0.1 * full["training_mb"] and lora["disk_mb"] < 0.1 * full["disk_mb"]


def test_runs_with_metrics_of_their_own(tmp_path, monkeypatch):
    """Each score says what it is, and there is no picture of both. The runs are made up."""
    log, started = dict.fromkeys(("trained", "parameters", "s_per_epoch", "ms_per_step", "peak_memory_mb",
                                  "training_mb", "disk_mb"), 1) | dict(mean=0.5, std=0.0, seeds=[0]), []
    monkeypatch.setattr(compare, "run_and_wait", lambda run, command, **options: started.append(run))
    monkeypatch.setattr(compare.rundir, "read_log", lambda folder: [log | {"metric": folder}])
    compare.compare(SimpleNamespace(out_dir=str(tmp_path)), {"a": ("mcc", []), "b": ("accuracy", [])})
    rows = (tmp_path / "compare.md").read_text().splitlines()[2:]
    assert "| mcc 50.00 |" in rows[0] and "| accuracy 50.00 |" in rows[1] and started == ["a", "b"] * 2


def test_no_run_begins_after_a_signal_that_came_too_late_for_the_last(monkeypatch):
    process = SimpleNamespace(send_signal=lambda number: None,
                              wait=lambda: os.kill(os.getpid(), signal.SIGINT) or 0)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: process)
    with pytest.raises(runtime.Stop) as stop:
        compare.run_and_wait("full", [])
    assert stop.value.args[1] == 130


def test_what_is_done_is_in_the_table_if_the_next_run_fails(tmp_path, monkeypatch):
    line, started = dict.fromkeys(("trained", "parameters", "s_per_epoch", "ms_per_step", "peak_memory_mb",
                                   "training_mb", "disk_mb"), 1) | dict(metric="mcc", mean=0.5, seeds=[0]), []

    def run(name, command, **options):
        started.append(name)
        if started == ["a", "b"] * 2:
            raise runtime.Stop("b ended with status 1", 1)
    monkeypatch.setattr(compare, "run_and_wait", run)
    monkeypatch.setattr(compare.rundir, "read_log", lambda folder: [line])
    with pytest.raises(runtime.Stop):
        compare.compare(SimpleNamespace(out_dir=str(tmp_path)), {"a": ("a", []), "b": ("b", [])})
    assert "| a | 1 |" in (tmp_path / "compare.md").read_text()


def test_a_signal_goes_to_the_run(flags, tmp_path):
    """To the process that trains, which saves."""
    argv = flags(tmp_path / "run", "full", more=["--epochs", "1000"])
    process = subprocess.Popen([sys.executable, "compare.py", *argv], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # no nohup
    for line in process.stdout:
        if line.startswith("step      1 |"):
            process.send_signal(signal.SIGHUP)
            break
    process.stdout.read()
    error = process.stderr.read()
    assert process.wait(60) == 128 + signal.SIGHUP
    assert f"compare.py: full ended with status {128 + signal.SIGHUP}" in error.splitlines()[-1]
    assert (tmp_path / "run" / "full" / "model.safetensors").exists()


def test_two_runs_of_one_folder(flags, tmp_path, capsys):
    argv = ["--runs", "full --init_from a/b", "full --init_from a-b", "--out_dir", str(tmp_path / "out"),
            "--train_file", "x.csv"]
    with pytest.raises(SystemExit) as exit:
        compare.main(argv)
    assert exit.value.code == 2 and "two of them would have one folder" in capsys.readouterr().err


@pytest.mark.parametrize("runs, more, message", [
    (["half", "full"], [], "argument --train: invalid choice: 'half'"),
    (["lora --lr fast", "full"], [], "argument --lr: invalid float value: 'fast'"),
    (["full", "lora", "full"], [], "one of them is there twice"),
    (["full", "head"], ["--train", "head"], "--train: --runs says what is trained"),
    (["full"], ["--dry_run"], "each is checked by a dry run first"),
    (["full", "head --dry_run"], [], "each is checked by a dry run first"),
    (["full --out_dir elsewhere"], [], "gets a folder in --out_dir"),
    (["full --train_file 'my file.csv'"], [], "my file.csv: no such file"),
    (["full"], ["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
])
def test_bad_input_is_found_before_the_first_run(runs, more, message, flags, tmp_path, capfd):
    with pytest.raises(SystemExit) as exit:
        compare.main(flags(tmp_path / "out", *runs, more=more))
    assert exit.value.code == 2
    assert message in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_in_use_is_found_before_the_first_run(flags, tmp_path, capsys):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        compare.main(flags(tmp_path, "full", "lora"))
    assert "lora holds a run already" in capsys.readouterr().err and not (tmp_path / "full").exists()


def test_a_table_is_not_lost(flags, tmp_path, capsys):
    (tmp_path / "compare.md").write_text("of other runs")
    with pytest.raises(SystemExit):
        compare.main(flags(tmp_path, "full"))
    assert "holds a comparison already" in capsys.readouterr().err
    assert (tmp_path / "compare.md").read_text() == "of other runs" and not (tmp_path / "full").exists()


def test_not_under_torchrun(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        compare.main(flags(tmp_path, "full"))
    assert "leave torchrun out" in capsys.readouterr().err
