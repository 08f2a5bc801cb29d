"""What a run leaves: the model card, and the numbers that go to a tracker."""

import fcntl
import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

import finetune
import predict
import rundir
import train_mlm
from conftest import read_log


def front_and_text(folder):
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def test_what_is_flushed_is_open_for_writing(tmp_path, monkeypatch):
    """Windows flushes no other file."""
    def fsync(descriptor):
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    monkeypatch.setattr(os, "fsync", fsync)
    rundir.save_files(tmp_path, lambda folder: Path(folder, "config.json").write_text("{}"))
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_pretrained_checkpoint(flags, tmp_path):
    train_mlm.main(flags(tmp_path, "bert"))
    front, text = front_and_text(tmp_path)
    assert front == {"library_name": "transformers", "pipeline_tag": "fill-mask", "tags": ["bert"]}
    first, *_, final = read_log(tmp_path)
    assert f"train_mlm.py {' '.join(flags(tmp_path, 'bert'))}`" in text and "from scratch" in text
    assert f"{final['val_loss']:.3f} nats per token" in text and f"{first['unigram_nats']:.3f})" in text
    assert "10,240 tokens in 10 steps of 32 rows of 32" in text and "WordPiece, 600 ids" in text


def test_a_resumed_run_has_its_commands(flags, tmp_path):
    """But for one that changed nothing."""
    resume = ["--init_from", "resume", "--out_dir", str(tmp_path)]
    for argv in (flags(tmp_path), resume, [*resume, "--max_steps", "12"], [*resume, "--lr", "1e-3"]):
        train_mlm.main(argv)
    commands = (" ".join(argv) for argv in (flags(tmp_path), [*resume, "--max_steps", "12"],
                                            [*resume, "--lr", "1e-3"]))
    assert f"`{' && '.join(f'python train_mlm.py {command}' for command in commands)}`" in front_and_text(
        tmp_path)[1]


@pytest.mark.parametrize("kind, pipeline", [("single", "text-classification"),
                                            ("tags", "token-classification")])
def test_a_fine_tuned_checkpoint(kind, pipeline, finetuning, tmp_path):
    finetune.main(finetuning(tmp_path, kind, "roberta", "--epochs", "1"))
    front, text = front_and_text(tmp_path)
    assert front == {"library_name": "transformers", "pipeline_tag": pipeline, "tags": ["roberta"]}
    final = read_log(tmp_path)[-1]
    assert f"accuracy {final['seeds'][0]['scores']['accuracy']:.4f}" in text and "| labels |" in text


def test_a_file_beside_a_task(finetuning, files, tmp_path):
    """The task gives the class names, the figures are the file's; its name ends no cell of the table."""
    rows = Path(files["train_single"]).read_text().replace(",good", ",positive").replace(",bad", ",negative")
    (tmp_path / "my|own.csv").write_text(rows)
    argv = finetuning(tmp_path / "out", "single", "bert", "--task", "sst2")
    argv[argv.index("--train_file") + 1] = argv[argv.index("--val_file") + 1] = str(tmp_path / "my|own.csv")
    finetune.main(argv)
    assert "my\\|own.csv |" in front_and_text(tmp_path / "out")[1]


def test_an_adapter(finetuning, tmp_path):
    finetune.main(finetuning(tmp_path, "single", "bert", "--epochs", "1", "--train", "lora", "--seeds", "2"))
    front, text = front_and_text(tmp_path)
    assert front["library_name"] == "peft" and "transformers.pipeline" not in text
    final = read_log(tmp_path)[-1]
    assert f"| all seeds | accuracy {final['mean']:.4f} ± {final['std']:.4f} |" in text


def test_a_stopped_run_has_no_card_when_its_adapter_is_merged(finetuning, tmp_path, capsys):
    finetune.main(finetuning(tmp_path / "lora", "single", "bert", "--epochs", "1", "--train", "lora"))
    log = tmp_path / "lora" / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    predict.main(["--checkpoint", str(tmp_path / "lora"), "--merge", str(tmp_path / "merged")])
    assert "and its base, merged" in capsys.readouterr().out
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert not (tmp_path / "merged" / "README.md").exists()


def test_of_two_seeds_with_one_metric_the_card_has_the_one_of_the_lower_loss():
    """Its weights were kept."""
    run = dict(train_file="x.csv", kind="classification", classes=["a", "b"], train="full", lr=1e-4,
               rows=dict(train=20, val=10))
    seeds = [dict(score=0.7, epochs=epochs, scores=dict(accuracy=0.7, loss=loss))
             for epochs, loss in ((1, 0.9), (3, 0.5), (2, 0.6))]
    final = dict(metric="accuracy", mean=0.7, std=0.0, trained=5, seeds=seeds)
    _, facts = rundir.finetuning_facts(run, final, SimpleNamespace(vocab_size=600))
    assert facts["validation"].startswith("accuracy 0.7000, loss 0.5000,")
    assert "3 epochs" in facts["trained"]


def test_commands_can_be_pasted(flags, finetuning, tmp_path, capsys):
    """Those on the screen and in the card, of a folder with a space in its name."""
    for script, make, more in ((train_mlm, flags, ()), (finetune, finetuning, ("single", "bert"))):
        out = tmp_path / f"my {script.__name__}"
        script.main(make(out, *more))
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
        assert shlex.split(line)[1:5] == ["python", "predict.py", "--checkpoint", str(out)]
        assert f"--out_dir '{out}'" in front_and_text(out)[1]


def test_a_card_that_somebody_wrote_stays(flags, tmp_path):
    """As in a clone of a repository on the hub, also with --overwrite; ours is replaced."""
    (tmp_path / "README.md").write_text("# My model")
    train_mlm.main(flags(tmp_path))
    train_mlm.main(flags(tmp_path, "roberta", "--overwrite"))
    assert (tmp_path / "README.md").read_text() == "# My model"
    (tmp_path / "README.md").unlink()
    train_mlm.main(flags(tmp_path, "roberta", "--overwrite"))
    train_mlm.main(flags(tmp_path, "roberta", "--overwrite", "--seed", "3"))
    assert "--seed 3" in front_and_text(tmp_path)[1]
    with open(tmp_path / "README.md", "a") as f:
        f.write("And notes of mine.\n")
    train_mlm.main(flags(tmp_path, "roberta", "--overwrite", "--seed", "4"))
    assert "And notes of mine." in front_and_text(tmp_path)[1]


def tracked(monkeypatch):
    """-> lists of the configurations and the lines that wandb gets from now on."""
    configs, lines = [], []
    run = SimpleNamespace(log=lines.append, define_metric=lambda name, step_metric: None)
    init = lambda project, config: configs.append(config) or run
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return configs, lines


def test_a_tracker_gets_the_numbers_of_the_log(flags, tmp_path, monkeypatch):
    configs, lines = tracked(monkeypatch)
    train_mlm.main(flags(tmp_path, "roberta", "--report", "wandb"))
    assert configs[0]["recipe"] == "fast"
    assert lines == [{name: value for name, value in line.items() if name != "final"}
                     for line in read_log(tmp_path) if "step" in line]


def test_a_tracker_tells_the_seeds_apart(finetuning, tmp_path, monkeypatch):
    _, lines = tracked(monkeypatch)
    more = ("--epochs", "1", "--seeds", "2", "--report", "wandb")
    finetune.main(finetuning(tmp_path, "single", "bert", *more))
    losses = {seed: [line["loss"] for line in read_log(tmp_path) if "loss" in line and line["seed"] == seed]
              for seed in (0, 1)}
    for seed in losses:
        assert [line[f"seed {seed}/loss"] for line in lines if f"seed {seed}/loss" in line] == losses[seed]


@pytest.mark.parametrize("name, module", [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_tracker_that_is_not_installed(name, module, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as exit:
        train_mlm.main(flags(tmp_path / "out", "roberta", "--report", name))
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"train_mlm.py: --report {name}: pip install {name}\n"
    assert not (tmp_path / "out").exists()


def test_a_tracker_without_a_key(flags, tmp_path, monkeypatch, capsys):
    def init(**options):
        raise RuntimeError("No API key configured. Use `wandb login` to log in.\nMore lines.")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(SystemExit) as exit:
        train_mlm.main(flags(tmp_path / "out", "roberta", "--report", "wandb"))
    assert exit.value.code == 2 and not (tmp_path / "out").exists()
    assert capsys.readouterr().err == (
        "train_mlm.py: --report wandb: No API key configured. Use `wandb login` to log in.\n")
