"""
Speed, beside the libraries that do the same: always a ratio, both measured in turn in one run.

    python bench.py tokenizers --text wiki.txt        # encoding and training, beside Hugging Face tokenizers
    python bench.py pretraining                       # a training step, beside transformers
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

import numpy as np
import torch

import bert
import data
import tokenizer as tokenizers


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
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
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


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("tokenizers", "pretraining"))
    p.add_argument("--text", help="a text file; default: the pydoc corpus")
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    try:
        {"tokenizers": bench_tokenizers, "pretraining": bench_pretraining}[args.what](args)
    except (ValueError, OSError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
