"""train_mlm.py from the command line: resuming, accumulation, processes, signals, errors."""

import argparse
import concurrent.futures
import importlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

import bert
import data
import inference
import predict
import roberta
import rundir
import runtime
import tokenizer as tokenizers
import soak
import train_mlm
from conftest import interrupt_the_fifth_step, read_log, same_run

ROOT = Path(train_mlm.__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
            "train_mlm.py"]


def run(argv):
    """A process of its own -> exit status, output, errors."""
    done = subprocess.run([sys.executable, "train_mlm.py", *argv], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    return done.returncode, done.stdout, done.stderr


# -----------------------------------------------------------------------------
# what a checkpoint claims

@pytest.mark.parametrize("model", ["bert", "roberta", "albert"])
def test_a_checkpoint_claims_the_positions_that_were_trained(model, flags, tmp_path):
    length = 96 if model == "albert" else 32
    for more, expected in (((), length), (("--positions", "100"), 100)):
        out_dir = tmp_path / str(expected)
        train_mlm.main(flags(out_dir, model, "--max_steps", "1", *more))
        config = transformers.AutoConfig.from_pretrained(out_dir)
        assert config.max_position_embeddings == expected + (2 if model == "roberta" else 0)
        assert transformers.AutoTokenizer.from_pretrained(out_dir).model_max_length == expected

# -----------------------------------------------------------------------------
# resuming

@pytest.mark.parametrize("recipe", ["fast", "paper"])
@pytest.mark.parametrize("model", ["bert", "roberta", "albert"])
def test_ten_steps_equal_five_and_five(model, recipe, flags, tmp_path):
    """Dropout is on: its masks are keyed by the step too. The schedule is that of ten steps in both."""
    more = ("--dropout", "0.1", "--recipe", recipe)
    train_mlm.main(flags(tmp_path / "ten", model, *more))
    interrupt_the_fifth_step(train_mlm, flags(tmp_path / "five", model, *more))
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path / "five")])
    same_run(tmp_path / "ten", tmp_path / "five")


def test_resuming_what_is_finished_says_so(flags, tmp_path, capsys):
    train_mlm.main(flags(tmp_path, "roberta", "--max_steps", "2"))
    before = capsys.readouterr().out.split("final, after")[1].split("eight masks")[0]
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert "its length is reached" in out and before.split(":")[-1] in out


def test_killed_at_any_moment_a_run_comes_to_the_same_end(tmp_path):
    """Two kills, one of them within a save; soak.py takes a hundred."""
    assert soak.pretraining(tmp_path, "bert", "fast", kills=2, rng=random.Random(0), steps=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_say_how_to_go_on(number, flags, tmp_path):
    out = tmp_path / "a run"
    argv = flags(out, "roberta", "--max_steps", 100000)
    process = subprocess.Popen([sys.executable, "train_mlm.py", *argv], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # no nohup
    for line in process.stdout:
        if line.startswith("step      5"):
            process.send_signal(number)
            break
    process.stdout.read()
    error = process.stderr.read()
    assert process.wait(60) == 128 + number
    assert error.count("\n") == 1 and f"python train_mlm.py --init_from resume --out_dir '{out}'" in error
    assert torch.load(out / "resume.pt", weights_only=True)["step"] >= 5


def test_a_run_whose_output_nobody_reads_any_more_saves(flags, tmp_path):
    """`train_mlm.py | tee log` and Ctrl-C, or a terminal that closes: the pipe is gone as well."""
    argv = flags(tmp_path, "roberta", "--max_steps", 100000, "--log_interval", 1)
    process = subprocess.Popen([sys.executable, "train_mlm.py", *argv], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if line.startswith("step      5"):
            process.send_signal(signal.SIGINT)
            process.stdout.close()
            break
    process.wait(60)
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] >= 5


@pytest.mark.parametrize("damage", ["truncated", "a flipped byte"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(damage, flags, tmp_path, capsys):
    """Saved at steps 3, 6, 9 and 10; from 9 on the run ends as before, and leaves a whole checkpoint."""
    train_mlm.main(flags(tmp_path / "hurt"))
    shutil.copytree(tmp_path / "hurt", tmp_path / "whole")
    file = tmp_path / "hurt" / "resume.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # it may be a link
    file.write_bytes(content if damage == "a flipped byte" else content[:-1000])
    capsys.readouterr()
    resume = ["--init_from", "resume", "--out_dir", str(tmp_path / "hurt")]
    train_mlm.main(resume)
    said = capsys.readouterr()
    assert str(file) in said.err and "going on from the save before it" in said.err
    assert "resuming" in said.out and "at step 9" in said.out
    same_run(tmp_path / "whole", tmp_path / "hurt")
    assert torch.load(tmp_path / "hurt" / rundir.PREVIOUS, weights_only=True)["step"] == 9


def test_ctrl_c_while_a_checkpoint_is_read_is_no_damage(flags, tmp_path, capsys, monkeypatch):
    train_mlm.main(flags(tmp_path))
    before, load = (tmp_path / "resume.pt").read_bytes(), torch.load
    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return load(*arguments, **options)
    monkeypatch.setattr(torch, "load", interrupted)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path)])
    assert exit.value.code == 130 and capsys.readouterr().err == "train_mlm.py: interrupted\n"
    assert (tmp_path / "resume.pt").read_bytes() == before


def test_a_second_run_in_the_same_folder_is_refused(flags, tmp_path, refused):
    argv = flags(tmp_path, "roberta", "--max_steps", 100000)
    first = subprocess.Popen([sys.executable, "train_mlm.py", *argv], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "resume.pt").exists():
            assert first.poll() is None, "it ended before it saved"
            time.sleep(0.01)
        log = (tmp_path / "log.jsonl").read_bytes()
        for more in (["--overwrite"], ["--init_from", "resume"]):
            assert "another run is under way there" in refused(train_mlm, [*argv, *more])
        assert (tmp_path / "log.jsonl").read_bytes().startswith(log) and first.poll() is None
    finally:
        first.kill()
        first.wait()
    train_mlm.main([*flags(tmp_path), "--overwrite"])  # what was killed holds nothing


def test_a_run_that_ended_while_this_one_prepared_is_not_overwritten(flags, tmp_path, refused, monkeypatch):
    """Both began in an empty folder."""
    prepare = train_mlm.validation_batches
    def slow(*arguments):
        tmp_path.joinpath("log.jsonl").write_text("of the other\n")
        return prepare(*arguments)
    monkeypatch.setattr(train_mlm, "validation_batches", slow)
    assert "another run has written there since this one began" in refused(train_mlm, flags(tmp_path))
    assert tmp_path.joinpath("log.jsonl").read_text() == "of the other\n"


@pytest.mark.parametrize("line", ["[1]", '{"step": "3"}', "{" * 100_000])
def test_a_damaged_log_is_named(line, flags, tmp_path, capsys, refused):
    train_mlm.main(flags(tmp_path))
    number = len(read_log(tmp_path)) + 1
    with open(tmp_path / "log.jsonl", "a") as f:
        f.write(line + "\n")
    capsys.readouterr()
    resume = ["--init_from", "resume", "--out_dir", str(tmp_path)]
    assert f"log.jsonl, line {number} is damaged" in refused(train_mlm, resume)


def test_resuming_a_finished_run_with_more_steps_goes_on(flags, tmp_path):
    train_mlm.main(flags(tmp_path))
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path), "--max_steps", "12"])
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines if "lr" in line and "step" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if line.get("final")] == [12]

# -----------------------------------------------------------------------------
# one batch, cut in different ways

@pytest.mark.parametrize("model, unit", [("roberta", "word"), ("bert", "token"), ("albert", "ngram")])
def test_accumulation_4x8_equals_a_batch_of_32(model, unit, flags, tmp_path):
    """Also where micro-batches differ in their number of targets, as with whole words."""
    for name, accumulation in (("a", 1), ("b", 4)):
        train_mlm.main(flags(tmp_path / name, model, "--dropout", 0, "--mask_unit", unit,
                             "--accumulation", accumulation))
    a, b = ([line for line in read_log(tmp_path / name) if "lr" in line and "step" in line] for name in "ab")
    for x, y in zip(a, b):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-6 if x["step"] < 4 else 1e-5)
        assert x["masked_accuracy"] == pytest.approx(y["masked_accuracy"], abs=0.005)
    assert a[0]["grad_norm"] == pytest.approx(b[0]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("model", ["roberta", "albert"])
def test_two_processes_equal_one(model, flags, tmp_path):
    more = ("--dropout", 0, "--mask_unit", "word", "--max_steps", 4, "--eval_interval", 2)
    train_mlm.main(flags(tmp_path / "one", model, *more))
    done = subprocess.run(TORCHRUN + flags(tmp_path / "two", model, *more), cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = (read_log(tmp_path / name)[1:] for name in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two):
        for name in ("loss", "val_loss", "val_sentence_accuracy"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-6), (name, a)


@pytest.mark.parametrize("name, index", [("cuda", 0), ("cuda:1", 1)])
def test_the_device_has_an_index(name, index, monkeypatch):
    """torch.cuda.set_device refuses a device without one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    args = train_mlm.parser().parse_args(["--device", name, "--threads", "1", "--dtype", "float32"])
    with runtime.Host(args) as host:
        assert chosen == [host.device] == [torch.device("cuda", index)]


@pytest.mark.parametrize("error, ends", [
    (OSError("the disk is full"), [2]), (runtime.Stop("stopped", 130), ["destroyed"])])
def test_after_an_error_no_process_waits_for_the_others(error, ends, monkeypatch):
    """NCCL's destroy_process_group() waits for all of them, and they may wait for this one. A Stop is
    agreed."""
    args, ended = train_mlm.parser().parse_args(["--device", "cpu", "--threads", "1"]), []
    host = runtime.Host(args)
    host.world = 2
    monkeypatch.setattr(runtime.dist, "is_initialized", lambda: ended == [])
    monkeypatch.setattr(runtime.dist, "destroy_process_group", lambda: ended.append("destroyed"))
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(SystemExit), runtime.one_line_errors("x.py"), host:
        raise error
    assert ended == ends


@pytest.mark.parametrize("environment, flags, threads", [
    ({"OMP_NUM_THREADS": "1"}, [], 1), ({"OMP_NUM_THREADS": "1"}, ["--threads", "2"], 2)])
def test_the_number_of_threads_is_torchs_own_unless_given(environment, flags, threads):
    """torch's heeds OMP_NUM_THREADS, and of a processor with two kinds of cores, or two threads a core, takes
    what is fast."""
    show = ("import runtime, torch, train_mlm\n"
            f"with runtime.Host(train_mlm.parser().parse_args(['--device', 'cpu', *{flags}])):\n"
            "    print(torch.get_num_threads())")
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, env=os.environ | environment, text=True,
                          capture_output=True, check=True)
    assert done.stdout == f"{threads}\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/cpuinfo")
def test_the_precision_does_not_depend_on_what_else_runs():
    """It was timed once: beside two busy programs bfloat16 lost to float32, and a run took twice as long."""
    with open("/proc/cpuinfo") as f:
        known = set(f.read().split())
    expected = "bfloat16" if known & {"avx512_bf16", "amx_bf16"} else "float32"
    assert runtime.pick_dtype(torch.device("cpu")) == expected


@pytest.mark.parametrize("dtype, length, fused", [
    ("bfloat16", 64, False), ("bfloat16", 256, True), ("float32", 64, True)])
def test_attention_on_the_cpu(dtype, length, fused):
    """Plain products where the fused kernel is slow: same numbers, and the fused one is allowed again."""
    torch.manual_seed(0)
    q, k, v, gradient = torch.randn(4, 2, 3, length, 16, dtype=torch.float64)
    inputs = [x.to(getattr(torch, dtype)).requires_grad_() for x in (q, k, v)]
    with torch.profiler.profile() as profile:
        with runtime.autocast(torch.device("cpu"), dtype, length):
            y = F.scaled_dot_product_attention(*inputs)
        y.backward(gradient.to(y.dtype))
    assert fused == any("flash" in event.key for event in profile.key_averages())
    assert torch.backends.cuda.flash_sdp_enabled()

    exact = [x.detach().double().requires_grad_() for x in inputs]  # by hand, in float64
    z = (exact[0] @ exact[1].mT / 4).softmax(-1) @ exact[2]
    z.backward(gradient)
    tolerance = dict(atol=0.02, rtol=0.02) if dtype == "bfloat16" else dict(atol=1e-5, rtol=1e-5)
    for ours, theirs in ((y, z), *((a.grad, b.grad) for a, b in zip(inputs, exact))):
        torch.testing.assert_close(ours.double(), theirs, **tolerance)


def test_learning_rate_by_hand():
    args = train_mlm.parser().parse_args(["--lr", "1", "--warmup", "0.1", "--decay", "0.4"])
    def rate(schedule, progress):
        args.schedule = schedule
        return round(runtime.learning_rate(args.lr, progress, args), 6)
    assert [rate("linear", p) for p in (0.05, 0.1, 0.55, 1.0)] == [0.5, 1.0, 0.5, 0.0]
    assert [rate("cosine", p) for p in (0.05, 0.1, 0.55, 1.0)] == [0.5, 1.0, 0.5, 0.0]
    assert [rate("constant", p) for p in (0.05, 0.5, 0.6, 0.8, 1.0)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    args.warmup, args.decay = 0.6, 0.9  # more than the run together: no jump where they meet
    assert [rate("constant", p) for p in (0.3, 0.6, 0.8, 1.0)] == [0.5, 1.0, 0.5, 0.0]


def test_the_recipes_are_what_they_say(flags, tmp_path):
    """A flag beats its recipe; from a checkpoint the recipe is paper; the log has the whole."""
    cases = {"fast": (), "mixed": ("--recipe", "fast", "--optimizer", "adamw", "--decay", 0.25),
             "paper": ("--recipe", "paper"), "more": ("--init_from", str(tmp_path / "fast"))}
    logs = {}
    for name, more in cases.items():
        train_mlm.main(flags(tmp_path / name, "roberta", "--max_steps", 1, *more))
        logs[name] = read_log(tmp_path / name)[0]
    fast, paper = train_mlm.RECIPES["fast"], train_mlm.RECIPES["paper"]
    own = {"batch_size": 32}  # among the flags
    assert logs["fast"] | fast | own == logs["fast"]
    assert logs["mixed"] | fast | own | {"optimizer": "adamw", "decay": 0.25} == logs["mixed"]
    for name in ("paper", "more"):
        assert logs[name] | paper | own == logs[name] and logs[name]["recipe"] == "paper"


@pytest.mark.parametrize("model", ["bert", "roberta", "albert"])
def test_dropout_is_of_the_run_and_not_of_its_checkpoint(model, flags, tmp_path, monkeypatch):
    """What is fine-tuned from a run without dropout has the preset's."""
    seen, backward = [], torch.Tensor.backward
    def look(loss, *arguments):
        backward(loss, *arguments)
        seen.append({node.p for node in built[-1].modules() if isinstance(node, torch.nn.Dropout)}
                    | {node.dropout.p for node in built[-1].modules() if hasattr(node, "num_heads")})
    built, make = [], train_mlm.make_optimizers
    monkeypatch.setattr(train_mlm, "make_optimizers", lambda model, args: built.append(model)
                        or make(model, args))
    monkeypatch.setattr(torch.Tensor, "backward", look)
    train_mlm.main(flags(tmp_path, model, "--max_steps", 2, "--dropout", 0.3))
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path), "--max_steps", "4"])
    assert len(built) == 2 and seen == [{0.3}] * 4
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    own = importlib.import_module(model).Config()
    assert config.hidden_dropout_prob == own.hidden_dropout_prob
    assert config.attention_probs_dropout_prob == own.attention_probs_dropout_prob


def test_a_fast_run_starts_at_the_unigram_line(flags, tmp_path):
    """The output bias is the training tokens' log-frequencies, counted by hand; position t has the sines and
    cosines of t / 10000^(2i / H), beginning at any multiple."""
    argv = flags(tmp_path / "run", "roberta", "--max_steps", 1, "--lr", 1e-9)
    train_mlm.main(argv)
    log = read_log(tmp_path / "run")
    gap = math.log(600) - log[0]["unigram_nats"]  # where a run begins that knows no frequencies
    assert gap > 1.4 and abs(log[1]["loss"] - log[0]["unigram_nats"]) < gap / 2
    model = roberta.ForPreTraining.from_pretrained(tmp_path / "run")
    cache = Path(argv[argv.index("--cache_dir") + 1])
    [folder] = cache.glob(f"*-{log[0]['fingerprint']}")
    counts = Counter(np.fromfile(folder / "train.bin", np.uint16).tolist())
    n = sum(counts.values()) + 600
    for token in (4, 50, 300, 599):
        assert model.mlm.bias[token].item() == pytest.approx(math.log((counts[token] + 1) / n), abs=1e-5)
    table = model.encoder.embeddings.position.weight
    H = table.shape[1]
    scale = table[0, 1].item()  # cos 0
    for t, i in ((1, 0), (7, 3), (20, 40)):
        angle = t / 10000 ** (2 * i / H)
        assert table[t, 2 * i].item() == pytest.approx(scale * math.sin(angle), abs=1e-5)
        assert table[t, 2 * i + 1].item() == pytest.approx(scale * math.cos(angle), abs=1e-5)


def test_sentence_weight_by_hand(flags, tmp_path):
    """The gradient is g + w s, so the square of its norm at the same weights is a parabola in w."""
    squares = []
    for w in (0, 10, 20, 30):
        train_mlm.main(flags(tmp_path / str(w), "albert", "--max_steps", 1, "--sentence_weight", w))
        log = read_log(tmp_path / str(w))
        squares.append(next(line["grad_norm"] for line in log if "grad_norm" in line) ** 2)
    third = squares[3] - 3 * squares[2] + 3 * squares[1] - squares[0]
    assert third == pytest.approx(0, abs=1e-4 * squares[3])
    assert squares[2] - 2 * squares[1] + squares[0] > 0.01  # 2 |s|^2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_is_on_matrices_only(optimizer):
    args = train_mlm.parser().parse_args(["--lr", "1", "--weight_decay", "0.5", "--optimizer", optimizer,
                                          "--dtype", "float32"])
    model = bert.ForPreTraining(bert.Config(**bert.PRESETS["bert-tiny"]))
    adamw, *muon = train_mlm.make_optimizers(model, args)
    decayed, kept = adamw.param_groups
    assert decayed["weight_decay"] == 0.5 and all(p.dim() == 2 for p in decayed["params"])
    assert kept["weight_decay"] == 0.0 and all(p.dim() == 1 for p in kept["params"])
    count = len(decayed["params"]) + len(kept["params"])
    if optimizer == "muon":  # the matrices of two layers, the pooler's and the MLM head's
        [group] = muon[0].param_groups
        assert group["weight_decay"] == 0.5 and group["lr"] == 1 and len(group["params"]) == 2 * 6 + 2
        count += len(group["params"])
    assert count == len(list(model.parameters()))


def test_flops_by_hand():
    """bert-base, rows of 512 tokens with 77 masks: eleven layers of 12 H^2 weights and attention to 512
    tokens; of the twelfth keys and values everywhere, the rest at 78 positions, the head at the masks."""
    config = bert.Config(**bert.PRESETS["bert-base"])
    products = 512 * (11 * 12 + 2) * 768 ** 2 + 78 * 10 * 768 ** 2 + 77 * (768 * 768 + 768 * 30522)
    by_hand = 6 * products + 12 * 512 * 768 * (11 * 512 + 78)
    assert runtime.flops_of_a_row(config, 512, 77, True) == pytest.approx(by_hand)

# -----------------------------------------------------------------------------
# what a run leaves

@pytest.mark.parametrize("model", ["bert", "roberta", "albert"])
def test_a_run_is_a_checkpoint_that_transformers_opens(model, flags, tmp_path, capsys):
    train_mlm.main(flags(tmp_path, model, "--max_steps", 4))
    text = "The function returns a <mask> of the list."
    theirs, report = transformers.AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours, our_tokenizer = inference.open_model(str(tmp_path))
    ids = tokenizer(text.replace("<mask>", tokenizer.mask_token), return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [our_tokenizer.cls_id, *our_tokenizer.encode(
        text.replace("<mask>", our_tokenizer.special_tokens["mask"]), specials=True), our_tokenizer.sep_id]
    with torch.no_grad():
        output = theirs.eval()(ids)
        logits, _ = ours(ids)
    reference = output.logits if model == "roberta" else output.prediction_logits
    assert (logits - reference).abs().max() <= 1e-5

    capsys.readouterr()
    predict.main(["--checkpoint", str(tmp_path), "--json", "--top", "3", text, "Two <mask> [MASK]."])
    one, two = map(json.loads, capsys.readouterr().out.splitlines())
    position = ids[0].tolist().index(tokenizer.mask_token_id)
    p, best = reference[0, position].softmax(-1).topk(3)
    assert [x for _, x in one["masks"][0]] == pytest.approx(p.tolist(), abs=1e-5) and len(two["masks"]) == 2
    assert [word for word, _ in one["masks"][0]] == [our_tokenizer.decode([i]) for i in best.tolist()]


def test_the_log_has_what_it_promises(flags, tmp_path):
    train_mlm.main(flags(tmp_path, "bert"))
    first, *lines, final = read_log(tmp_path)
    assert first["model"] == "bert" and first["unigram_nats"] > 3 and "torch" in first
    training = [line for line in lines if "lr" in line]
    assert len(training) == 10 and training[-1]["tokens"] == 10 * 32 * 32
    assert {"step", "tokens", "loss", "masked_accuracy", "lr", "grad_norm", "tokens_per_s",
            "elapsed_s"} <= set(training[0])
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 8]
    assert {"tokens", "elapsed_s", "val_masked_accuracy", "val_sentence_accuracy"} <= set(lines[4])
    assert final["final"] and {"val_loss", "perplexity", "val_masked_accuracy", "nats_per_byte", "tokens",
                               "elapsed_s"} <= set(final)


def test_screen_and_log_have_the_same_numbers(flags, tmp_path, capsys):
    """Means over the steps since the last line, whatever the interval, also through a resume in between."""
    train_mlm.main(flags(tmp_path / "each", "albert"))
    each = [line for line in read_log(tmp_path / "each") if "lr" in line and "step" in line]
    capsys.readouterr()
    train_mlm.main(flags(tmp_path / "some", "albert", "--log_interval", 4, "--max_steps", 6))
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path / "some"), "--max_steps", "10"])
    train_mlm.main(flags(tmp_path / "whole", "albert", "--log_interval", 4))
    out = capsys.readouterr().out
    shown = [line for line in out.splitlines() if line.startswith("step") and "lr" in line]
    lines = [line for line in read_log(tmp_path / "whole") if "lr" in line and "step" in line]
    assert [line["step"] for line in lines] == [1, 4, 8, 10]
    for line, text, first in zip(lines, shown[-4:], (0, 1, 4, 8)):
        steps = each[first:line["step"]]
        for name in ("loss", "masked_accuracy", "sentence_accuracy", "grad_norm"):
            assert line[name] == pytest.approx(sum(step[name] for step in steps) / len(steps), rel=1e-6)
        assert f"loss {line['loss']:.3f} | masked acc {line['masked_accuracy']:.3f}" in text
        assert f"sop acc {line['sentence_accuracy']:.3f}" in text and f"lr {line['lr']:.2e}" in text


def test_steps_without_a_pair_say_nothing_of_the_sentence_task(flags, tmp_path):
    """ALBERT's rows may have no two whole sentences to put in order: no accuracy of 0, and none in a mean."""
    (tmp_path / "val.txt").write_text("\n\n".join([" ".join(["one long line without an end"] * 40)] * 10))
    more = ["--batch_size", 1, "--val_data", tmp_path / "val.txt", "--cache_dir", tmp_path / "cache"]
    train_mlm.main(flags(tmp_path / "each", "albert", *more))
    train_mlm.main(flags(tmp_path / "whole", "albert", *more, "--log_interval", 10))
    each, whole = ([line for line in read_log(tmp_path / name) if "lr" in line and "step" in line]
                   for name in ("each", "whole"))
    judged = [line for line in each[1:] if "sentence_accuracy" in line]
    assert 0 < len(judged) < len(each[1:]) and whole[-1]["step"] == 10
    for name in ("sentence_loss", "sentence_accuracy"):
        assert whole[-1][name] == pytest.approx(sum(line[name] for line in judged) / len(judged), rel=1e-6)
    assert not any("val_sentence_accuracy" in line for line in read_log(tmp_path / "each"))
    assert "sentence task" not in (tmp_path / "each" / "README.md").read_text()


def test_the_unigram_line_is_of_all_validation_targets(flags, tmp_path, capsys):
    """However few rows are evaluated; and the screen says on which side of it a loss is."""
    for name, rows in (("few", 32), ("all", 0)):
        train_mlm.main(flags(tmp_path / name, "roberta", "--eval_rows", rows, "--max_steps", 4))
    few, every = (read_log(tmp_path / name) for name in ("few", "all"))
    assert few[0]["unigram_nats"] == every[0]["unigram_nats"] and few[-1]["val_loss"] != every[-1]["val_loss"]
    args = argparse.Namespace(**every[0])
    splits, tokenizer = data.load(next(str(path) for path in Path(args.cache_dir).iterdir()
                                       if path.name.endswith(args.fingerprint)))
    rows = data.Rows(splits["val"], tokenizer, 32)
    labels = rows.batch(np.arange(len(rows)))["labels"].ravel()
    counts = Counter(labels[labels >= 0].tolist())
    entropy = sum(-n / counts.total() * math.log(n / counts.total()) for n in counts.values())
    assert every[0]["unigram_nats"] == pytest.approx(entropy, rel=1e-9)
    gap = every[-1]["val_loss"] - every[0]["unigram_nats"]
    assert f"{abs(gap):.3f} {'above' if gap > 0 else 'under'} the unigram line" in capsys.readouterr().out


def test_nats_per_byte_by_hand(flags, tmp_path):
    """Every document ends with a [SEP], which no model has to predict and no byte stands for."""
    file = tmp_path / "val.txt"
    file.write_text("\n\n".join(f"A tale of {i} cities." for i in range(100)))
    train_mlm.main(flags(tmp_path / "run", "roberta", "--max_steps", "1", "--val_data", file))
    tokenizer, documents = tokenizers.load(tmp_path / "run"), file.read_text().split("\n\n")
    tokens, size = (sum(map(len, map(of, documents))) for of in (tokenizer.encode, str.encode))
    final = read_log(tmp_path / "run")[-1]
    assert final["nats_per_byte"] == pytest.approx(final["val_loss"] * tokens / size, rel=1e-9)


def test_a_mistake_in_the_source_says_where(flags, tmp_path, refused, monkeypatch):
    """Python and PyTorch raise ValueErrors, too, which are not about the input: the last line of ours."""
    def cross_entropy(*arguments, **options):
        raise ValueError("Expected input batch_size (9) to match target batch_size (8).")
    monkeypatch.setattr(F, "cross_entropy", cross_entropy)
    error = refused(train_mlm, flags(tmp_path, "roberta"))
    [line] = [i for i, text in enumerate((ROOT / "roberta.py").read_text().splitlines(), 1)
              if "F.cross_entropy(" in text]
    assert error.endswith(f"to match target batch_size (8). (roberta.py, line {line})")


def test_a_run_speaks_before_it_reads(flags, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_mlm.main(flags(tmp_path, "roberta", "--data", "nothing.txt"))
    said = capsys.readouterr()
    assert said.out == "roberta, roberta-tiny from scratch; cpu, float32, 1 threads; text: nothing.txt\n"
    assert "nothing.txt: no such file" in said.err


def test_help_has_every_default_and_preset(capsys):
    with pytest.raises(SystemExit) as exit:
        train_mlm.main(["--help"])
    assert exit.value.code == 0
    help = " ".join(capsys.readouterr().out.split())
    for text in ("model:", "length and rate:", "(default: 0.98)", "bert-medium", "roberta-18m", "albert-8m"):
        assert text in help, text
    parser = train_mlm.parser()
    for action in parser._actions:  # a default is said, by argparse or in words
        if action.option_strings and action.default is None and action.nargs != 0:
            said = action.help and "default" in action.help
            assert said or action.dest in ("epochs", "max_minutes"), action.dest


def test_dry_run_writes_no_checkpoint(flags, tmp_path, capsys):
    train_mlm.main(flags(tmp_path / "dry", "albert", "--dry_run"))
    assert not (tmp_path / "dry").exists() and "next:" not in capsys.readouterr().out


def test_a_folder_called_scratch(flags, tmp_path, monkeypatch):
    text = flags(tmp_path)
    monkeypatch.chdir(tmp_path)
    train_mlm.main([*text, "--out_dir", "scratch", "--max_steps", "1"])
    assert (tmp_path / "scratch" / "resume.pt").exists()


def test_training_goes_on_from_a_checkpoint(flags, tmp_path):
    train_mlm.main(flags(tmp_path / "a", "bert", "--recipe", "paper"))
    train_mlm.main(flags(tmp_path / "b", "bert", "--init_from", tmp_path / "a"))
    a, b = (read_log(tmp_path / name) for name in "ab")
    assert b[1]["step"] == 0 and b[1]["val_loss"] == pytest.approx(a[-1]["val_loss"], rel=1e-6)
    assert b[2]["loss"] < a[1]["loss"] - 0.2 and b[0]["model"] == "bert" and b[0]["preset"] is None
    assert (tmp_path / "a" / "vocab.txt").read_bytes() == (tmp_path / "b" / "vocab.txt").read_bytes()


def test_the_default_rate_of_a_checkpoint():
    """5e-5 if it is 768 wide, more if it is narrower; with Muon a quarter of what a fresh one takes."""
    def rate(init_from, optimizer, width):
        config = SimpleNamespace(hidden_size=width, num_hidden_layers=6)
        return train_mlm.default_lr(SimpleNamespace(init_from=init_from, optimizer=optimizer), config)
    assert [rate("out", "adamw", width) for width in (768, 256)] == pytest.approx([5e-5, 1.5e-4])
    for width in (768, 256):
        assert rate("out", "muon", width) == rate("scratch", "muon", width) / 4


def test_max_minutes_ends_a_run(flags, tmp_path):
    argv = flags(tmp_path)
    at = argv.index("--max_steps")
    train_mlm.main(argv[:at] + argv[at + 2:] + ["--max_minutes", "0.03"])
    final = read_log(tmp_path)[-1]
    assert final["final"] and 1.8 <= final["elapsed_s"] < 30

# -----------------------------------------------------------------------------
# bad input: one line, status 2, nothing written

@pytest.mark.parametrize("more, message", [
    (["--data", "nothing.txt"], "nothing.txt: no such file"),
    (["--data", "nobody/nothing"], "nobody/nothing: no such file, and the hub did not give it"),
    (["--preset", "roberta-huge"], "no preset roberta-huge; roberta.py has roberta-tiny"),
    (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
    (["--positions", "16"], "--seq_length 32 is more than the model's 16 positions"),
    (["--batch_size", "1000000"], "less than one batch"),
    (["--sentence_weight", "2"], "roberta has no sentence task"),
    (["--batch_size", "10", "--accumulation", "4"], "does not divide"),
    (["--vocab_size", "100"], "no room for 256 bytes"),
    (["--epochs", "1"], "not allowed with argument --max_steps"),
    (["--max_steps", "0"], "argument --max_steps: 0 is not a positive whole number"),
    (["--mask_prob", "1.5"], "argument --mask_prob: 1.5 is not between 0 and 1"),
    (["--tokenizer", "/no/such/directory"], "no such directory"),
    (["--init_from", "resume"], "holds no run to resume"),
    (["--init_from", "/no/such/checkpoint"], "no such directory"),
    (["--device", "nonsense"], "nonsense"),
    (["--device", "cpu:x"], "--device cpu:x"),
    (["--device", "cpu:"], "--device cpu:"),
    (["--lr", "inf"], "argument --lr: inf is not positive"),
    (["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
    (["--init_from", "CHECKPOINT", "--preset", "bert-tiny"], "--preset: a checkpoint has its own size"),
    (["--init_from", "CHECKPOINT", "--layers", "3"], "--layers: a checkpoint has its own size"),
    (["--init_from", "CHECKPOINT", "--sinusoids"], "--sinusoids: a checkpoint has its own size and weights"),
    (["--init_from", "CHECKPOINT", "--recipe", "fast", "--neighbours"], "--neighbours: a checkpoint has its"),
    (["--recipe", "paper", "--neighbours"], "--neighbours: heads find a neighbour by --sinusoids; give both"),
    (["--no-sinusoids"], "give both, or --no-neighbours"),
    (["--tokenizer", "out/some", "--vocab_size", "500"], "--vocab_size: only a tokenizer that is trained"),
    (["--device", "cuda:99"], "--device cuda:99"),
    (["--threads", "-1"], "argument --threads: -1 is not a positive whole number"),
    (["--lr", "0"], "argument --lr: 0 is not positive"),
    (["--max_steps", "9" * 30], "is not a positive whole number, at most 1,000,000,000"),
    (["--max_steps", "1", "--weight_decay", "1e307"], "1e307 is not zero or positive, at most 1,000,000,000"),
    (["--clip", "-1"], "argument --clip: -1 is not zero or positive"),
    (["--seed", "-1"], "argument --seed: -1 is not zero or a positive whole number"),
    (["--cache_dir", "/proc/nothing"], "--cache_dir /proc/nothing cannot be written"),
])
def test_bad_input(more, message, flags, tmp_path, refused):
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    more = [str(tmp_path) if word == "CHECKPOINT" else word for word in more]
    error = refused(train_mlm, flags(tmp_path / "out", "roberta", *more))
    assert message in error and error.startswith("train_mlm.py: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--out_dir", "--cache_dir"])
def test_what_cannot_be_written_is_found_before_the_text_is_read(flag, flags, tmp_path, refused):
    (tmp_path / "file").write_text("")
    more = [flag, tmp_path / "file" / "inside", "--data", tmp_path / "file"]  # which is empty, too
    assert f"{flag} {tmp_path}/file/inside cannot be written: " in refused(
        train_mlm, flags(tmp_path / "out", "roberta", *more))


@pytest.mark.parametrize("name, content, message", [
    ("a.txt", b"", "is empty"),
    ("a.txt", b"caf\xe9\n", "a.txt, line 1: not UTF-8"),
    ("a.txt", b"Just one short line.\nAnd another.\n", "do not fill"),
    ("a.jsonl", b'{"text": "x"}\nnot json\n', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"body": "x"}\n', "a.jsonl, line 1: no column 'text' among body"),
    ("a.csv", b"id,text\n1,Hello, world\n", "a.csv, line 2: 3 columns; the first line has 2"),
])
def test_bad_files(name, content, message, flags, tmp_path, refused):
    (tmp_path / name).write_bytes(content)
    error = refused(train_mlm, flags(tmp_path / "out", "roberta", "--data", tmp_path / name))
    assert message in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_too_little_validation_text(flags, tmp_path, refused):
    (tmp_path / "val.txt").write_text("A few words.")
    error = refused(train_mlm, flags(tmp_path / "out", "roberta", "--val_data", tmp_path / "val.txt"))
    assert "validation: " in error and "give more by --val_data" in error


def test_a_run_that_fails_leaves_the_one_it_was_to_replace(flags, tmp_path, capsys):
    train_mlm.main(flags(tmp_path))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train_mlm.main(flags(tmp_path, "roberta", "--overwrite", "--lr", "1e9", "--save_interval", "10"))
    assert "is not finite at step" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    train_mlm.main(flags(tmp_path, "roberta", "--overwrite", "--seed", "1", "--max_steps", "4"))
    log = read_log(tmp_path)
    assert log[0]["seed"] == 1 and log[-1]["step"] == 4 and all("seed" not in line for line in log[1:])


def test_ctrl_c_before_the_first_step_leaves_the_run_it_was_to_replace(flags, tmp_path, capsys):
    train_mlm.main(flags(tmp_path))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    submit = concurrent.futures.ThreadPoolExecutor.submit
    def interrupt(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return submit(*arguments)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", interrupt)
        train_mlm.main(flags(tmp_path, "roberta", "--overwrite", "--seed", "1"))
    assert exit.value.code == 130 and "stopped at step 0; nothing was saved" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_run_that_saved_nothing_is_not_in_the_way(flags, tmp_path, refused):
    assert "nothing had been saved" in refused(train_mlm, flags(tmp_path, "roberta", "--lr", "1e9"))
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]
    train_mlm.main(flags(tmp_path, "roberta", "--max_steps", "4"))
    log = read_log(tmp_path)
    assert log[-1]["step"] == 4 and all("seed" not in line for line in log[1:])


def test_validation_text_is_not_trained_on(flags, tmp_path, refused):
    (tmp_path / "text").mkdir()
    valid = tmp_path / "text" / "valid.txt"
    valid.write_text("Some text.")
    for name in (tmp_path / "text", valid):
        assert f"--val_data {valid} is in --data {name}, and would be trained on" in refused(
            train_mlm, flags(tmp_path / "out", "roberta", "--data", name, "--val_data", valid))
    copy = tmp_path / "copy.txt"
    copy.write_text(valid.read_text())
    assert f"the text of --val_data {copy} is the training text" in refused(
        train_mlm, flags(tmp_path / "out", "roberta", "--data", valid, "--val_data", copy))
    assert f"--data {valid} is in --val_data {tmp_path / 'text'}, and would be" in refused(
        train_mlm, flags(tmp_path / "out", "roberta", "--data", valid, "--val_data", tmp_path / "text"))


def test_data_and_out_dir_apart(flags, text_file, tmp_path, refused):
    shutil.copy(text_file, tmp_path / "log.jsonl")
    for more, message in (
            (["--data", str(tmp_path)], f"train_mlm.py: --data {tmp_path} holds --out_dir {tmp_path}/out"),
            (["--val_data", str(tmp_path / "log.jsonl"), "--out_dir", str(tmp_path), "--overwrite"],
             f"--val_data {tmp_path}/log.jsonl is in --out_dir, and would be lost")):
        assert message in refused(train_mlm, flags(tmp_path / "out", "roberta", *more))
    assert (tmp_path / "log.jsonl").read_bytes() == text_file.read_bytes()


def test_an_out_dir_in_use_is_left_alone(flags, tmp_path, capsys, refused):
    train_mlm.main(flags(tmp_path))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    capsys.readouterr()
    assert "holds a run already" in refused(train_mlm, flags(tmp_path))
    resume = ["--init_from", "resume", "--out_dir", str(tmp_path)]
    assert "--model roberta, and bert does not go on" in refused(train_mlm, [*resume, "--model", "bert"])
    assert "--seq_length 32, and 64 does not" in refused(train_mlm, [*resume, "--seq_length", "64"])
    assert "or with another tokenizer" in refused(train_mlm, [*resume, "--vocab_size", "500"])
    assert "is at step 10 already" in refused(train_mlm, [*resume, "--max_steps", "9"])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    train_mlm.main(flags(tmp_path, "roberta", "--overwrite"))


def test_the_checkpoint_to_start_from_is_not_written_over(flags, tmp_path, capsys, refused):
    train_mlm.main(flags(tmp_path, "roberta", "--max_steps", 1))
    before = (tmp_path / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert "is where this starts from, and would be lost" in refused(
        train_mlm, flags(tmp_path, "roberta", "--init_from", str(tmp_path), "--overwrite"))
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_run_of_an_older_version_is_refused(flags, tmp_path, capsys, refused):
    train_mlm.main(flags(tmp_path, "roberta", "--max_steps", 1))
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    del state["args"]["decay"]
    torch.save(state, tmp_path / "resume.pt")
    capsys.readouterr()
    assert "a run of an older version, without --decay" in refused(
        train_mlm, ["--init_from", "resume", "--out_dir", str(tmp_path)])


def test_no_row_with_two_sentences(flags, tmp_path, refused):
    """ALBERT's second task has nothing to put in order."""
    (tmp_path / "long.txt").write_text("\n\n".join(["and so on " * 60] * 60), encoding="utf-8")
    error = refused(train_mlm, flags(tmp_path / "run", "albert", "--data", str(tmp_path / "long.txt")))
    assert "no row of 96 tokens has two whole sentences" in error and not (tmp_path / "run").exists()


def test_a_rate_given_at_resume_counts(flags, tmp_path):
    """For the optimizer as for the log: the peak of every group, and so the rate."""
    train_mlm.main(flags(tmp_path, "roberta", "--max_steps", 3))
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path), "--max_steps", "6", "--lr", "1e-5"])
    adamw, muon = torch.load(tmp_path / "resume.pt", weights_only=True)["optimizers"]
    logged = [line["lr"] for line in read_log(tmp_path) if line.get("step") == 6 and "lr" in line]
    for group in adamw["param_groups"] + muon["param_groups"]:
        assert group["initial_lr"] == 1e-5 and logged == [group["lr"]]


def test_flags_of_the_optimizer_count_when_resumed(flags, tmp_path):
    """And the log says them; the run may have moved, and its data. What a resumed run said that ended before
    it saved is not kept."""
    text = tmp_path / "text.txt"
    text.write_bytes(Path(flags(tmp_path)[flags(tmp_path).index("--data") + 1]).read_bytes())
    train_mlm.main(flags(tmp_path / "a", "roberta", "--max_steps", 3, "--data", str(text)))
    (tmp_path / "a").rename(tmp_path / "b")
    text.rename(tmp_path / "moved.txt")
    with open(tmp_path / "b" / "log.jsonl", "a") as f:
        f.write('{"resumed_at": 3, "weight_decay": 0.5}\n')
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path / "b"), "--max_steps", "6", "--data",
                    str(tmp_path / "moved.txt"), "--weight_decay", "0.3", "--beta2", "0.9", "--eps", "1e-5"])
    group = torch.load(tmp_path / "b" / "resume.pt", weights_only=True)["optimizers"][0]["param_groups"][0]
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.3, (0.9, 0.9), 1e-5)
    [resumed] = [line for line in read_log(tmp_path / "b") if "resumed_at" in line]
    assert resumed["resumed_at"] == 3 and resumed["weight_decay"] == 0.3
    assert not (tmp_path / "a").exists()


def test_rows_without_a_token_to_predict(flags, tmp_path, capsys, refused):
    """Of words that the tokenizer does not know: no loss from them, and the run goes on."""
    train_mlm.main(flags(tmp_path / "a", "bert", "--max_steps", 1))
    text = Path(flags(tmp_path)[flags(tmp_path).index("--data") + 1])
    strange = "\u12a0\u121b\u122d\u129b " * 40
    lines = text.read_text(encoding="utf-8").split("\n\n")
    (tmp_path / "mixed.txt").write_text("\n\n".join(
        part + f"\n\n{strange}" * 2 for part in lines[:150]), encoding="utf-8")
    more = ["--init_from", str(tmp_path / "a"), "--max_steps", 4, "--batch_size", 4, "--accumulation", 4]
    train_mlm.main(flags(tmp_path / "b", "bert", *more, "--data", str(tmp_path / "mixed.txt")))
    final = read_log(tmp_path / "b")[-1]
    assert final["final"] and final["val_loss"] > 0
    (tmp_path / "strange.txt").write_text("\n\n".join([strange] * 200), encoding="utf-8")
    capsys.readouterr()
    assert "no token to predict" in refused(
        train_mlm, flags(tmp_path / "c", "bert", *more, "--data", str(tmp_path / "strange.txt")))


def test_the_parts_of_a_loss_without_targets():
    nothing = torch.full((2, 3), -100)
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = F.cross_entropy(logits.flatten(0, 1), nothing.flatten(), ignore_index=-100)
    assert loss.isnan()
    parts = {"mlm_loss": loss, "mlm_accuracy": torch.tensor(float("nan"))}
    shares = train_mlm.weighted(parts, 0.0, 1.0)
    shares[0].backward()
    assert shares.tolist() == [0, 0, 0, 0] and not logits.grad.any()


def test_a_compiler_that_fails_says_why(flags, tmp_path, monkeypatch, refused):
    def broken(graph, inputs):
        raise RuntimeError("there is no C++ compiler")
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compile(model, backend=broken))
    torch._dynamo.reset()
    error = refused(train_mlm, flags(tmp_path, "bert", "--compile"))
    assert "torch.compile failed; leave out --compile, or give --no-compile: there is no C++" in error


def test_a_compiled_run(flags, tmp_path, monkeypatch):
    """The same losses, from a graph for the first step's shapes, one for all later ones, one to evaluate; all
    compiled before the clock starts."""
    compile, stats = torch.nn.Module.compile, torch._dynamo.utils.counters["stats"]
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda model: compile(model, backend="aot_eager"))  # without a C++ compiler
    open_log, before_the_clock = train_mlm.open_log, []
    monkeypatch.setattr(train_mlm, "open_log", lambda *arguments: (
        before_the_clock.append(stats["unique_graphs"]), open_log(*arguments))[1])
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        torch._dynamo.reset()
        stats.clear()
        train_mlm.main(flags(tmp_path / name, "bert", *more))
    assert before_the_clock == [0, 3] and stats["unique_graphs"] == 3
    assert not torch._dynamo.utils.counters["graph_break"]
    plain, compiled = ([line["loss"] for line in read_log(tmp_path / name) if "loss" in line]
                       for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_a_process_that_does_not_speak_lets_the_other_speak_first(monkeypatch, capsys):
    """torchrun ends all processes with the first that ends, and the line of the one that speaks was lost."""
    waited = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(runtime.time, "sleep", lambda s: waited.append((s, capsys.readouterr().err)))
    with pytest.raises(SystemExit) as exit, runtime.one_line_errors("x.py"):
        raise OSError("of this process alone")
    assert exit.value.code == 2 and waited == [(10, "")]
    assert capsys.readouterr().err == "x.py: of this process alone\n"


def test_a_compilation_that_fails_is_one_line(capsys):
    """Inductor's own error, of a machine without a compiler, is not in torch._dynamo."""
    from torch._inductor.exc import InductorError
    with pytest.raises(SystemExit) as exit, runtime.one_line_errors("x.py"):
        raise InductorError(RuntimeError("no C++ compiler"), None)
    assert exit.value.code == 2
    assert re.fullmatch(r"x\.py: torch\.compile failed; leave out --compile, .*no C\+\+ compiler.*\n",
                        capsys.readouterr().err)


def test_a_process_without_a_gpu(monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    assert "4 processes, and this machine has 2 GPUs" in refused(train_mlm, ["--device", "cuda"])


def test_a_checkpoint_says_what_model_it_is(flags, tmp_path, capsys):
    train_mlm.main(flags(tmp_path / "a", "bert", "--max_steps", 1))
    _, _, *argv = flags(tmp_path / "b", "bert", "--init_from", tmp_path / "a")  # without --model
    train_mlm.main(argv)
    assert tokenizers.read_json(tmp_path / "b" / "config.json")["model_type"] == "bert"


def test_the_padding_id_of_a_given_tokenizer(flags, tmp_path):
    """RoBERTa's positions begin after it: with a larger one the table has more of them."""
    train_mlm.main(flags(tmp_path / "a", "roberta", "--max_steps", 1))
    vocab = tokenizers.read_json(tmp_path / "a" / "vocab.json")
    other = next(token for token, i in vocab.items() if i == 7)
    vocab |= {"<pad>": 7, other: vocab["<pad>"]}
    (tmp_path / "a" / "vocab.json").write_text(json.dumps(vocab))
    train_mlm.main(flags(tmp_path / "b", "roberta", "--tokenizer", tmp_path / "a", "--max_steps", 1))
    config = tokenizers.read_json(tmp_path / "b" / "config.json")
    assert (config["pad_token_id"], config["max_position_embeddings"]) == (7, 32 + 8)


def test_a_checkpoint_of_another_family_or_a_small_vocabulary_is_refused(flags, tmp_path, capsys, refused):
    train_mlm.main(flags(tmp_path / "a", "roberta", "--max_steps", 1))
    capsys.readouterr()
    out = tmp_path / "out"
    assert "model_type is 'roberta'" in refused(train_mlm, flags(out, "bert", "--init_from", tmp_path / "a"))
    more = ["--init_from", tmp_path / "a", "--vocab_size", 500]
    assert "--vocab_size: only a tokenizer" in refused(train_mlm, flags(out, "roberta", *more))
    more = ["--init_from", tmp_path / "a", "--tokenizer", "bpe"]  # its ids would mean other tokens
    assert "bpe is not the tokenizer of" in refused(train_mlm, flags(out, "roberta", *more))
    train_mlm.main(flags(tmp_path / "large", "roberta", "--max_steps", 1, "--vocab_size", "700"))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "large" / name).read_bytes())
    capsys.readouterr()
    more = ["--init_from", tmp_path / "a"]
    assert "the tokenizer has 700 ids, the model 600" in refused(train_mlm, flags(out, "roberta", *more))
    torch.save({"model": {}}, tmp_path / "a" / "resume.pt")
    (tmp_path / "a" / rundir.PREVIOUS).unlink(missing_ok=True)
    assert "not what this script writes" in refused(
        train_mlm, ["--init_from", "resume", "--out_dir", str(tmp_path / "a")])
    (tmp_path / "a" / "resume.pt").write_bytes(b"PK\x03\x04 cut short")
    assert "resume.pt is damaged" in refused(
        train_mlm, ["--init_from", "resume", "--out_dir", str(tmp_path / "a")])
    assert not out.exists()


def test_heads_that_do_not_divide_the_width(flags, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(roberta.PRESETS, "odd", roberta.preset(2, 100, 3))
    argv = flags(tmp_path / "o", "roberta", "--preset", "odd")
    assert "3 heads do not divide a width of 100" in refused(train_mlm, argv)


def test_a_loss_that_is_not_finite_stops_the_run(flags, tmp_path, refused, monkeypatch):
    """It breaks down at the fifth step; the checkpoint of the third is left."""
    clip, calls = torch.nn.utils.clip_grad_norm_, []
    def spoil_the_fifth(parameters, limit):
        parameters = list(parameters)
        calls.append(1)
        if len(calls) == 5:
            parameters[0].grad.fill_(float("nan"))
        return clip(parameters, limit)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoil_the_fifth)
    error = refused(train_mlm, flags(tmp_path, "roberta", "--log_interval", 7))
    assert "not finite at step 5; what was saved at step 3 is kept" in error
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert state["step"] == 3 and all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_full_disk_is_said_before_training(flags, tmp_path, refused, monkeypatch):
    class Usage:
        free = 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    assert "checkpoints need" in refused(train_mlm, flags(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()  # with a file that is not a run's, and so gives no room
    with open(tmp_path / "out" / "corpus.bin", "wb") as f:
        f.truncate(10**9)
    (tmp_path / "out" / "link").symlink_to("nowhere")
    assert "checkpoints need" in refused(train_mlm, flags(tmp_path / "out"))


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(flags, tmp_path):
    """The kernel refuses to write more than a file's share, as a full disk does: first of resume.pt, which is
    the largest file, then of model.safetensors."""
    train_mlm.main(flags(tmp_path, "roberta", "--max_steps", 3))
    sizes = {name: (tmp_path / name).stat().st_size for name in ("resume.pt", "model.safetensors")}
    limited = ("import resource, signal, sys, train_mlm; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
               "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
               "train_mlm.main(sys.argv[2:])")
    for limit in (sizes["resume.pt"] - 100_000, sizes["model.safetensors"] - 100_000):
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name in sizes}
        argv = [str(limit), "--init_from", "resume", "--out_dir", str(tmp_path), "--max_steps", "6"]
        done = subprocess.run([sys.executable, "-c", limited, *argv], cwd=ROOT, capture_output=True,
                              text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "the disk may be full; what was saved before is kept" in done.stderr
        assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name in sizes}
        assert not [file for file in tmp_path.iterdir() if file.name.endswith(".tmp")]


def test_resuming_a_run_that_began_from_a_checkpoint_keeps_its_sizes(flags, tmp_path):
    """Its config and tokenizer are the checkpoint's, not the preset's."""
    train_mlm.main(flags(tmp_path / "a", "bert", "--max_steps", 2))
    config = bert.ForPreTraining.from_pretrained(str(tmp_path / "a")).config
    config.num_hidden_layers = 1  # a size without a preset
    bert.ForPreTraining(config).save_pretrained(str(tmp_path / "a"))
    train_mlm.main(flags(tmp_path / "b", "bert", "--init_from", tmp_path / "a", "--max_steps", 3))
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path / "b"), "--max_steps", "4"])
    assert json.loads((tmp_path / "b" / "config.json").read_text())["num_hidden_layers"] == 1


def test_overwriting_leaves_no_file_of_the_run_before(flags, tmp_path):
    """A stale vocabulary would give the new model another's ids."""
    train_mlm.main(flags(tmp_path, "bert", "--max_steps", 1))
    train_mlm.main(flags(tmp_path, "roberta", "--max_steps", 1, "--overwrite"))
    assert not (tmp_path / "vocab.txt").exists() and (tmp_path / "merges.txt").exists()
    assert tokenizers.load(str(tmp_path)).special_tokens["mask"] == "<mask>"


def test_an_epochs_run_can_be_resumed(flags, tmp_path, text_file):
    argv = flags(tmp_path)
    at = argv.index("--max_steps")
    argv = argv[:at] + argv[at + 2:]
    train_mlm.main([*argv, "--epochs", "0.1"])
    steps = [line["step"] for line in read_log(tmp_path) if "lr" in line and "step" in line]
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path), "--epochs", "0.2"])
    train_mlm.main(["--init_from", "resume", "--out_dir", str(tmp_path)])
    again = [line["step"] for line in read_log(tmp_path) if "lr" in line and "step" in line]
    assert steps == list(range(1, len(steps) + 1)) and len(again) == pytest.approx(2 * len(steps), abs=1)


def test_a_changed_corpus_is_not_resumed(flags, tmp_path, text_file, capsys, refused):
    """Also where the tokenizer was not trained on it."""
    train_mlm.main(flags(tmp_path / "a", "bert", "--max_steps", 1))
    corpus = tmp_path / "copy.txt"
    corpus.write_bytes(text_file.read_bytes())
    more = ("--init_from", tmp_path / "a", "--data", corpus, "--max_steps", 2)
    train_mlm.main(flags(tmp_path / "b", "bert", *more))
    corpus.write_bytes(text_file.read_bytes() + b"One more paragraph.\n")
    capsys.readouterr()
    resume = ["--init_from", "resume", "--out_dir", str(tmp_path / "b"), "--max_steps", "3"]
    assert "trained on other text" in refused(train_mlm, resume)
    state = torch.load(tmp_path / "b" / "resume.pt", weights_only=True)
    del state["args"]["fingerprint"]  # as an older version saved it
    torch.save(state, tmp_path / "b" / "resume.pt")
    assert "trained on other text" in refused(train_mlm, resume)


def test_the_random_numbers_of_dropout():
    """runtime.draw_fast: of a million draws as many as asked for, within four deviations; none at 0, all at
    1; pairs of neighbours are independent; any layout; the same for the same seed."""
    runtime.draw_fast()
    torch.manual_seed(0)
    for p in (0.1, 0.5, 0.9):
        ones = torch.empty(1_000_003).bernoulli_(p)
        assert set(ones.unique().tolist()) == {0, 1}
        assert abs(ones.mean().item() - p) < 4 * (p * (1 - p) / 1e6) ** 0.5
        pairs = (ones[1:] * ones[:-1]).mean().item()
        assert abs(pairs - p * p) < 4 * (3 * p * p * (1 - p * p) / 1e6) ** 0.5
    assert not torch.empty(10_000).bernoulli_(0.0).any() and torch.empty(10_000).bernoulli_(1.0).all()

    x = torch.ones(300, 200, dtype=torch.bfloat16).t().requires_grad_()
    torch.manual_seed(1)
    y = torch.nn.functional.dropout(x, 0.25)
    torch.manual_seed(1)
    assert torch.equal(y, torch.nn.functional.dropout(x, 0.25))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()) and y[y > 0].unique().item() == pytest.approx(1 / 0.75, rel=4e-3)


def test_a_large_seed(flags, tmp_path):
    train_mlm.main(flags(tmp_path, "roberta", "--max_steps", 1, "--seed", 2**40))


def test_a_text_of_one_document_has_no_next_sentence_task(flags, tmp_path, refused):
    text = "\n".join(f"Paragraph {i} has a sentence. It has another one, too." for i in range(3000))
    (tmp_path / "book.txt").write_text(text)
    book = ("--data", tmp_path / "book.txt", "--max_steps", 1)
    assert "too few documents" in refused(train_mlm, flags(tmp_path / "out", "bert", *book))
    train_mlm.main(flags(tmp_path / "out", "roberta", *book))


def test_whole_words_of_a_script_without_spaces_can_be_masked(flags, tmp_path):
    """Each row is one word then; a part of it is masked."""
    (tmp_path / "a.txt").write_text("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 400)
    train_mlm.main(flags(tmp_path / "out", "roberta", "--data", tmp_path / "a.txt", "--mask_unit", "word"))
    assert read_log(tmp_path / "out")[-1]["final"]


def test_bad_input_under_torchrun_ends_every_process(flags, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    argv = flags(tmp_path / "out", "roberta", "--data", tmp_path / "empty.txt")
    done = subprocess.run(TORCHRUN + argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and done.stderr.count("empty.txt is empty") == 1
