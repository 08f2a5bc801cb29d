"""What people change in the source, changed in a copy of it: optimizers, masks, a model of one's own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


class Project:
    """The scripts in a folder of their own, to be edited and run."""

    def __init__(self, folder, text_file):
        self.folder, self.text_file = folder, text_file
        folder.mkdir()
        for file in ROOT.glob("*.py"):
            shutil.copy(file, folder)

    def change(self, file, old, new):
        source = (self.folder / file).read_text()
        assert source.count(old) == 1, f"{file} has {source.count(old)} times {old!r}"
        (self.folder / file).write_text(source.replace(old, new))

    def start(self, script, *argv):
        return subprocess.Popen([sys.executable, script, *map(str, argv)], cwd=self.folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, script, *argv, status=0):
        """-> what it printed; where it must fail, its errors."""
        process = self.start(script, *argv)
        out, error = process.communicate(timeout=120)
        assert process.returncode == status, error
        return error if status else out

    def flags(self, out_dir, *more):
        return ["--preset", "roberta-tiny", "--vocab_size", 600, "--data", self.text_file, "--seq_length", 32,
                "--cache_dir", self.text_file.parent / "cache", "--batch_size", 8, "--log_interval", 1,
                "--eval_rows", 32, "--device", "cpu", "--threads", 1, "--dtype", "float32", "--dropout", 0.1,
                "--out_dir", out_dir, *(more or ("--max_steps", 40))]

    def interrupt(self, out_dir, *more):
        """Ctrl-C at some step after the fifth."""
        process = self.start("train_mlm.py", *self.flags(out_dir, *more))
        for line in process.stdout:
            if line.startswith("step      5"):
                process.send_signal(signal.SIGINT)
                break
        process.communicate()
        assert process.returncode == 130 and 5 <= self.state(out_dir)["step"] < 40

    def resume(self, out_dir, *more, status=0):
        return self.run("train_mlm.py", "--init_from", "resume", "--out_dir", out_dir, *more, status=status)

    def state(self, out_dir):
        return torch.load(self.folder / out_dir / "resume.pt", weights_only=True)

    def same_weights(self, a, b):
        a, b = self.state(a)["model"], self.state(b)["model"]
        return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def project(tmp_path, text_file):
    return Project(tmp_path / "project", text_file)


def test_an_optimizer_of_ones_own(project):
    """One function. All follow the schedule from their own peak, also through a resume."""
    project.change("train_mlm.py", "    if not matrices:\n        return [adamw]\n", """\
    return [adamw, torch.optim.NAdam(matrices, lr=10 * args.lr)]
""")
    project.run("train_mlm.py", *project.flags("whole"))
    adamw, nadam = project.state("whole")["optimizers"]
    for group in adamw["param_groups"]:
        for rate in ("initial_lr", "lr"):
            assert nadam["param_groups"][0][rate] == pytest.approx(10 * group[rate])
    assert len(nadam["state"]) == 13 and "mu_product" in nadam["state"][0]  # 6 in two layers, 1 in the head
    project.interrupt("parts")
    project.resume("parts")
    assert project.same_weights("whole", "parts")


def test_other_optimizers_at_resume(project):
    project.run("train_mlm.py", *project.flags("before", "--max_steps", 2))
    project.change("train_mlm.py", "    if not matrices:\n", "    if matrices:\n")  # Muon never
    error = project.resume("before", "--max_steps", 3, status=2)
    assert "the run to resume had other optimizers" in error and error.count("\n") == 1


def test_a_rate_of_its_own_for_a_group(project):
    project.change("train_mlm.py", "if p.dim() < 2], weight_decay=0.0)]",
                   "if p.dim() < 2], weight_decay=0.0, lr=10 * args.lr)]")
    project.run("train_mlm.py", *project.flags("run", "--max_steps", 8))
    matrices, vectors = project.state("run")["optimizers"][0]["param_groups"]
    assert vectors["lr"] == pytest.approx(10 * matrices["lr"])


@pytest.mark.parametrize("length", [("--max_steps", 40), ("--max_minutes", 0.05)])
def test_a_mask_rate_that_falls(length, project):
    """One place, in runs measured in steps and in minutes: 30 % of the tokens at first, 15 % at last."""
    project.change("train_mlm.py", "    return args.mask_prob\n",
                   "    return 0.3 - 0.15 * min(1, progress)\n")
    project.change("train_mlm.py", "        counts = count_targets(",
                   "        print('masks', batches[0]['labels'].shape[1])\n        counts = count_targets(")
    out = project.run("train_mlm.py", *project.flags("falls", *length))
    masks = [int(line.split()[1]) for line in out.splitlines() if line.startswith("masks")]  # of 30 tokens
    assert masks[0] == 9 and masks[-1] in (4, 5) and masks == sorted(masks, reverse=True)


def test_a_model_of_ones_own(project):
    """Pre-LN as a fourth model: one new file, and its name in one list. It trains, resumes and loads."""
    source = (project.folder / "roberta.py").read_text()
    for line, change in (
            ("x = self.attention_norm(x + self.dropout(self.attention(x, context, attn_mask)))",
             "norm = self.attention_norm\n"
             "        x = x + self.dropout(self.attention(norm(x), norm(context), attn_mask))"),
            ("return self.mlp_norm(x + self.dropout(self.mlp(x)))",
             "return x + self.dropout(self.mlp(self.mlp_norm(x)))")):
        assert source.count(line) == 1
        source = source.replace(line, change)
    source = source.replace('MODEL_TYPE = "roberta"', 'MODEL_TYPE = "prenorm"')
    (project.folder / "prenorm.py").write_text(source)
    project.change("runtime.py", 'MODELS = ("bert", "roberta", "albert")',
                   'MODELS = ("bert", "roberta", "albert", "prenorm")')
    project.run("train_mlm.py", *project.flags("run", "--model", "prenorm", "--max_steps", 4))
    project.resume("run", "--max_steps", 6)
    assert project.state("run")["step"] == 6
    assert json.loads((project.folder / "run" / "config.json").read_text())["model_type"] == "prenorm"
    out = project.run("predict.py", "--checkpoint", "run", "--json", "A <mask> of the list.")
    assert len(json.loads(out)["masks"][0]) == 5
    # a parameter that the table of names does not have is found before training
    project.change("prenorm.py", "        self.mlp = MLP(config)\n",
                   "        self.mlp = MLP(config)\n        self.gate = nn.Linear(1, 1)\n")
    flags = project.flags("gate", "--model", "prenorm", "--max_steps", 2)
    error = project.run("train_mlm.py", *flags, status=2)
    assert "gate" in error and "KEYS" in error and error.count("\n") == 1
    assert not os.path.exists(project.folder / "gate")
