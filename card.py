"""
The README.md of a checkpoint: a model card for the hub, made of what log.jsonl says. A run ends with it.

    hf auth login
    hf upload you/my-roberta out/roberta --exclude "resume*.pt"
"""

import json
import os

import runtime
import tokenizer as tokenizers

PIPELINES = {"tokens": "token-classification"}  # other kinds are text-classification


def model_card(out_dir):
    """The text of it. out_dir holds a run that has ended."""
    lines = runtime.read_log(out_dir)
    run, final = dict(lines[0]), lines[-1]
    for line in lines:
        run |= line if "resumed_at" in line else {}  # flags may have changed
    model_type = runtime.read_config(out_dir)[0]["model_type"]
    start = "from scratch" if run["init_from"] == "scratch" else f"from {run['init_from']}"
    pretraining = "unigram_nats" in run
    tags, facts = (pretrained if pretraining else finetuned)(run, final, tokenizers.load(out_dir))
    if run["init_from"] != "scratch" and not os.path.isdir(run["init_from"]):
        tags["base_model"] = run["init_from"]
    tags["tags"] = [model_type]
    front = "\n".join(f"{name}: {json.dumps(value)}" for name, value in tags.items())
    use = f"predict.py --checkpoint {out_dir}"
    if tags["library_name"] != "peft":
        use = f"transformers.pipeline({tags['pipeline_tag']!r}, {out_dir!r})` or `{use}"
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (f"---\n{front}\n---\n\n# {os.path.basename(os.path.abspath(out_dir))}\n\n"
            f"{model_type}, {run['parameters'] / 1e6:.1f} M parameters, trained {start} {runtime.CARD}. "
            f"Use it by `{use}`.\n\n| | |\n|---|---|\n{table}\n\n"
            f"The command: `python {run['command']}`\n\n"
            "Not evaluated for bias or safety; it repeats what its training text says.\n")


def pretrained(run, final, tokenizer):
    """-> front matter, facts"""
    facts = {
        "text": " ".join(run["data"]),
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids",
        "training": f"{final['tokens']:,} tokens in {final['step']:,} steps of {run['batch_size']} rows of "
                    f"{run['seq_length']}; {final['elapsed_s'] / 60:.1f} minutes",
        "recipe": f"{run['recipe']}: {run['optimizer']}, rate {run['lr']:g} ({run['schedule']}), "
                  f"{100 * run['mask_prob']:g}% of the tokens masked, by the {run['mask_unit']}",
        "validation loss": f"{final['val_loss']:.3f} nats per token (a model of token frequencies: "
                           f"{run['unigram_nats']:.3f}), perplexity {final['perplexity']:.2f}, "
                           f"{final['nats_per_byte']:.3f} nats per byte",
        "masked accuracy": f"{final['val_masked_accuracy']:.3f}"}
    if "val_sentence_accuracy" in final:
        facts["sentence task"] = f"accuracy {final['val_sentence_accuracy']:.3f}"
    return {"library_name": "transformers", "pipeline_tag": "fill-mask"}, facts


def finetuned(run, final, tokenizer):
    best = max(final["seeds"], key=lambda seed: seed["score"])
    scores = ", ".join(f"{name} {value:.4f}" for name, value in best["scores"].items())
    facts = {
        "task": run["task"] or run["train_file"],
        "labels": ", ".join(run["classes"]) or "a number",
        "trained": f"{final['trained']:,} parameters ({run['train']}), {best['epochs']:.3g} epochs of "
                   f"{run['rows']['train']:,} rows, rate {run['lr']:g}",
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids",
        "validation": f"{scores}, on {run['rows']['val']:,} rows, by which these weights were chosen"}
    if len(final["seeds"]) > 1:
        facts["all seeds"] = f"{final['metric']} {final['mean']:.4f} ± {final['std']:.4f}"
    if "test" in best:
        facts["test"] = ", ".join(f"{name} {value:.4f}" for name, value in best["test"].items())
    return {"library_name": "peft" if run["train"] == "lora" else "transformers",
            "pipeline_tag": PIPELINES.get(run["kind"], "text-classification")}, facts


def write(out_dir):
    """README.md in out_dir, which holds a run that has ended."""
    text = model_card(out_dir)
    if os.path.exists(os.path.join(out_dir, "README.md")) and not runtime.is_own_card(out_dir):
        return  # somebody has written one
    def save(folder):
        with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as f:
            f.write(text)
    runtime.save_files(out_dir, save)
