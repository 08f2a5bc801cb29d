"""
Fill the masks of a sentence with a checkpoint: one of ours, or any BERT, RoBERTa or ALBERT of the hub.

    python fill_mask.py --checkpoint out/roberta "The capital of France is <mask>."
    cat sentences.txt | python fill_mask.py --checkpoint roberta-base
"""

import argparse
import importlib
import json
import os
import sys

import torch

import tokenizer as tokenizers

MODELS = ("bert", "roberta", "albert")


def read_config(path_or_name):
    """config.json of a checkpoint, as a dict, and the module of its family: bert, roberta or albert."""
    file = os.path.join(tokenizers.local_directory(path_or_name), "config.json")
    if not os.path.exists(file):
        raise FileNotFoundError(f"{path_or_name} is no checkpoint: it has no config.json")
    config = tokenizers.read_json(file)
    family = config.get("model_type") if isinstance(config, dict) else None
    if family not in MODELS:
        raise ValueError(f"{file}: model_type is {family!r}, not one of {', '.join(MODELS)}")
    return config, importlib.import_module(family)


def load(path_or_name):
    """-> the pretraining model of a checkpoint, of whichever family, and its tokenizer."""
    _, module = read_config(path_or_name)
    model, tokenizer = module.ForPreTraining.from_pretrained(path_or_name), tokenizers.load(path_or_name)
    if tokenizer.mask_id is None or tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"{path_or_name}: the tokenizer does not fit the model")
    return model, tokenizer


@torch.no_grad()
def fill(model, tokenizer, text, top=5):
    """-> for each mask in the text, as [MASK] or <mask>, a list of (word, probability), best first.

    Several masks are filled independently of each other, as in pretraining. ValueError if there is none.
    """
    mask = tokenizer.special_tokens["mask"]
    ids = tokenizer.encode(text.replace("[MASK]", mask).replace("<mask>", mask), specials=True)
    ids = torch.tensor([[tokenizer.cls_id, *ids, tokenizer.sep_id]])
    positions = (ids[0] == tokenizer.mask_id).nonzero().T  # (1, K)
    if positions.numel() == 0:
        raise ValueError(f"no [MASK] or <mask> in {text!r}")
    logits, _ = model(ids, positions)
    logits = logits[0, :, :tokenizer.vocab_size]  # a model may have more ids, to fill up its matrix
    p, best = logits.softmax(-1).topk(min(top, tokenizer.vocab_size))  # (K, top)
    return [[(tokenizer.decode([i]), x) for i, x in zip(row_ids, row_p)]
            for row_ids, row_p in zip(best.tolist(), p.tolist())]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("text", nargs="*", help="sentences; without any, the lines of standard input")
    p.add_argument("--checkpoint", required=True, help="a directory or a name on the hub")
    p.add_argument("--top", type=int, default=5, help="how many words to show for a mask")
    p.add_argument("--json", action="store_true", help="one JSON object a sentence")
    args = p.parse_args(argv)
    if args.top < 1:
        p.error("--top must be at least 1")
    try:
        model, tokenizer = load(args.checkpoint)
        for text in args.text or sys.stdin:
            if not (text := text.strip()):
                continue
            masks = fill(model, tokenizer, text, args.top)
            if args.json:
                print(json.dumps({"text": text, "masks": masks}, ensure_ascii=False), flush=True)
                continue
            print(text)
            for i, words in enumerate(masks, 1):
                best = (f"{word.strip() or repr(word)} {x:.3f}" for word, x in words)
                print(f"  mask {i}: " + "  ".join(best), flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"fill_mask.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
