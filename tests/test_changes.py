"""What people change in the source, changed in a copy of it: optimizers, masks, a model of one's own."""

import importlib.util
import json
import sys

import pytest
import torch

import predict
import runtime
import train_mlm
from conftest import ROOT, interrupt_the_fifth_step, read_log, same_run


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """changed(file, {old: new}) -> the module of a copy with these changes; name: what it is imported as."""
    def load(file, changes, name=None):
        source = (ROOT / file).read_text()
        for old, new in changes.items():
            assert source.count(old) == 1, f"{file} has {source.count(old)} times {old!r}"
            source = source.replace(old, new)
        name = name or file.removesuffix(".py")
        (tmp_path / f"{name}.py").write_text(source)
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module
    return load


def state(out_dir):
    return torch.load(out_dir / "resume.pt", weights_only=True)


def test_an_optimizer_of_ones_own(changed, flags, tmp_path):
    """One function. All follow the schedule from their own peak, also through a resume."""
    train = changed("train_mlm.py", {"    if not matrices:\n        return [adamw]\n":
                                     "    return [adamw, torch.optim.NAdam(matrices, lr=10 * args.lr)]\n"})
    train.main(flags(tmp_path / "whole", "roberta", "--dropout", "0.1"))
    adamw, nadam = state(tmp_path / "whole")["optimizers"]
    for group in adamw["param_groups"]:
        for rate in ("initial_lr", "lr"):
            assert nadam["param_groups"][0][rate] == pytest.approx(10 * group[rate])
    assert len(nadam["state"]) == 13 and "mu_product" in nadam["state"][0]  # 6 in two layers, 1 in the head
    interrupt_the_fifth_step(train, flags(tmp_path / "parts", "roberta", "--dropout", "0.1"))
    train.main(["--init_from", "resume", "--out_dir", str(tmp_path / "parts")])
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_other_optimizers_at_resume(changed, flags, refused, tmp_path):
    train_mlm.main(flags(tmp_path / "run", "roberta", "--max_steps", "2"))
    more = ["--init_from", "resume", "--out_dir", str(tmp_path / "run"), "--max_steps", "3"]
    error = refused(changed("train_mlm.py", {"    if not matrices:\n": "    if matrices:\n"}), more)
    assert "the run to resume had other optimizers" in error


def test_a_rate_of_its_own_for_a_group(changed, flags, tmp_path):
    train = changed("train_mlm.py", {"if p.dim() < 2], weight_decay=0.0)]":
                                     "if p.dim() < 2], weight_decay=0.0, lr=10 * args.lr)]"})
    train.main(flags(tmp_path / "run", "roberta", "--max_steps", "8"))
    matrices, vectors = state(tmp_path / "run")["optimizers"][0]["param_groups"]
    assert vectors["lr"] == pytest.approx(10 * matrices["lr"])


@pytest.mark.parametrize("length", [("--max_steps", "40"), ("--max_minutes", "0.05")])
def test_a_mask_rate_that_falls(length, changed, flags, tmp_path, capsys):
    """One place, in runs measured in steps and in minutes: 30 % of the tokens at first, 15 % at last."""
    train = changed("train_mlm.py", {
        "    return args.mask_prob\n": "    return 0.3 - 0.15 * min(1, progress)\n",
        "        counts = count_targets(":
            "        print('masks', batches[0]['labels'].shape[1])\n        counts = count_targets("})
    argv = flags(tmp_path / "run")
    i = argv.index("--max_steps")
    train.main([*argv[:i], *length, *argv[i + 2:]])
    lines = capsys.readouterr().out.splitlines()
    masks = [int(line.split()[1]) for line in lines if line.startswith("masks")]  # of 30 tokens
    assert masks[0] == 9 and masks[-1] in (4, 5) and masks == sorted(masks, reverse=True)


def test_a_model_of_ones_own(changed, flags, refused, tmp_path, monkeypatch, capsys):
    """Pre-LN as a fourth model: one new file, and its name in one list. It trains, resumes and loads."""
    prenorm = {"x = self.attention_norm(x + self.dropout(self.attention(x, context, attn_mask)))":
               "norm = self.attention_norm\n"
               "        x = x + self.dropout(self.attention(norm(x), norm(context), attn_mask))",
               "return self.mlp_norm(x + self.dropout(self.mlp(x)))":
               "return x + self.dropout(self.mlp(self.mlp_norm(x)))",
               'MODEL_TYPE = "roberta"': 'MODEL_TYPE = "prenorm"'}
    changed("roberta.py", prenorm, "prenorm")
    monkeypatch.setattr(runtime, "MODELS", (*runtime.MODELS, "prenorm"))
    run = str(tmp_path / "run")
    argv = flags(run, "roberta", "--model", "prenorm")
    train_mlm.main(argv)
    train_mlm.main(["--init_from", "resume", "--out_dir", run, "--max_steps", "12"])
    losses = [line["loss"] for line in read_log(run) if "loss" in line]
    assert state(tmp_path / "run")["step"] == 12 and losses[-1] < losses[0]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model_type"] == "prenorm"
    capsys.readouterr()
    predict.main(["--checkpoint", run, "--json", "A <mask> of the list."])
    assert len(json.loads(capsys.readouterr().out)["masks"][0]) == 5
    # a parameter that the table of names does not have is found before training
    changed("roberta.py", prenorm | {"        self.mlp = MLP(config)\n":
                                     "        self.mlp = MLP(config)\n        self.gate = nn.Linear(1, 1)\n"},
            "prenorm")
    error = refused(train_mlm, [*argv, "--out_dir", str(tmp_path / "gate")])
    assert "gate" in error and "KEYS" in error
    assert not (tmp_path / "gate").exists()
