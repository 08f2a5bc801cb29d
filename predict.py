"""
Use a checkpoint: one of ours, or any BERT, RoBERTa or ALBERT of the hub; an adapter of ours or PEFT's.

    python predict.py --checkpoint out/roberta "The capital of France is <mask>."   # pretrained: words
    python predict.py --checkpoint out/mine "What a film."                          # fine-tuned: labels
    python predict.py --checkpoint out/mine --file new.csv --json > predictions.jsonl
    python predict.py --checkpoint out/mine --evaluate test.csv                     # or a task: sst2
    python predict.py --checkpoint out/lora --merge out/merged                      # adapter into its base

Texts are arguments, a file, or the lines of standard input; a tab separates the two of a pair.
"""

import json
import os
import sys

import runtime  # before torch: it sets how torch's threads wait

import numpy as np

import files
import inference
import lora
import tasks


def parser():
    p = runtime.Parser(__doc__)
    p.add_argument("text", nargs="*", help="texts; default: --file, or the lines of standard input")
    p.add_argument("--checkpoint", required=True, help="a directory or a name on the hub")
    add = p.add_argument_group("input").add_argument
    add("--file", help=f"{', '.join(files.FORMATS)}: the texts; of .txt the lines")
    runtime.add_text_flags(add)
    add = p.add_argument_group("what to do; default: fill masks, or give labels").add_argument
    add("--evaluate", metavar="FILE_OR_TASK", help="metrics on labelled rows, or on a task's validation rows")
    add("--task", choices=tasks.TASKS, help="its class names, or their numbers, are the labels of the file")
    add("--held_out", action="store_true", help="only the rows that finetune.py holds out of that file")
    add("--merge", metavar="OUT_DIR", help="write the checkpoint, an adapter, as a plain one")
    add("--overwrite", action="store_true", help="replace what is in OUT_DIR")
    add = p.add_argument_group("output").add_argument
    add("--top", type=runtime.positive_int, default=5, help="how many words to show for a mask")
    add("--json", action="store_true", help="one JSON object a text")
    add = runtime.add_machine_flags(p, dtype="float32")
    add("--batch_size", type=runtime.positive_int, default=32, help="texts computed at a time")
    return p


def parse_arguments(argv):
    p = parser()
    args = p.parse_args(argv)
    args.device = runtime.choose_device(args.device)
    args.text_columns = runtime.split_commas(args.text_columns)
    sources = [bool(args.text), args.file is not None, args.evaluate is not None, args.merge is not None]
    if sum(sources) > 1:
        raise ValueError("give one of texts, --file, --evaluate and --merge")
    idle = p.given(args, ["task", "held_out"] if not args.evaluate else ["json"])
    idle += [] if args.merge else p.given(args, ["overwrite"])
    if idle:
        raise ValueError(f"{', '.join(idle)}: no effect here; see --help")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("this runs in one process; leave torchrun out")
    return args

# -----------------------------------------------------------------------------
# Merging

def merge(args, model, tokenizer):
    if not inference.is_adapter(args.checkpoint):
        raise ValueError(f"--merge: {args.checkpoint} is no adapter: it has no adapter_config.json")
    def write(folder):
        lora.merge(model).save_pretrained(folder)
        tokenizer.save(folder)
    runtime.remove_outputs(args.merge, keep=runtime.save_files(args.merge, write))
    print(f"{args.merge}: {args.checkpoint} and its base, merged\n\n"
          f"next: python predict.py --checkpoint {args.merge} \"...\"")

# -----------------------------------------------------------------------------
# Masks

def read_texts(args):
    """Yields (parts, where) of arguments, --file or standard input: a text, or the two of a pair."""
    if args.file and args.file.endswith(files.TABLES):
        examples = tasks.read_file(args.file, args.header, args.text_columns, labelled=False)
        yield from zip(examples.texts, examples.where)
        return
    if args.text:
        lines = (("the text", text) for text in args.text)
    elif args.file:
        lines = ((where, record["text"]) for where, record in files.records(args.file))
    else:
        lines = ((f"standard input, line {i}", line.rstrip("\r\n")) for i, line in enumerate(sys.stdin, 1))
    for where, line in lines:
        yield tuple(line.split("\t")), where


def fill_masks(args, model, tokenizer, host):
    if tokenizer.mask_id is None:
        raise ValueError(f"{args.checkpoint}: the tokenizer has no mask token")
    for parts, where in read_texts(args):
        text = "\t".join(map(str, parts)).strip()
        if not text:
            continue
        with host.autocast(args.max_length):
            masks = inference.fill(model, tokenizer, text, args.top)
        if args.json:
            print(json.dumps({"text": text, "masks": masks}, ensure_ascii=False), flush=True)
            continue
        print(text)
        for i, words in enumerate(masks, 1):
            best = (f"{word.strip() or repr(word)} {p:.3f}" for word, p in words)
            print(f"  mask {i}: " + "  ".join(best), flush=True)

# -----------------------------------------------------------------------------
# Labels

def make_rows(args, examples, kind, tokenizer, model):
    max_length = min(args.max_length, model.config.longest_row)
    return tasks.Rows(examples, kind, tokenizer, max_length, model.config.type_vocab_size > 1)


def give_labels(args, model, tokenizer, kind, host):
    classes = list(model.config.id2label.values())
    examples = tasks.Examples([], None, [])
    for parts, where in read_texts(args):
        if len(parts) > 2 or any(isinstance(part, str) and not part.strip() for part in parts):
            raise ValueError(f"{where}: a text, or two with a tab between, is wanted")
        examples.texts.append(parts)
        examples.where.append(where)
    if not examples.texts:
        raise ValueError("there are no texts")
    tasks.check_texts(examples, kind)
    rows = make_rows(args, examples, kind, tokenizer, model)
    outputs = tasks.outputs(model, rows, args.batch_size, host)
    for text, where, output in zip(examples.texts, examples.where, outputs):
        p = np.exp(output - output.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        if kind == "tokens":
            cut = [None] * (len(text) - len(p))
            if cut:
                print(f"{where}: the last {len(cut)} words are beyond --max_length and get no tag",
                      file=sys.stderr)
            tags = [classes[i] for i in output.argmax(-1)] + cut
            best = [round(float(x), 4) for x in p.max(-1)] + cut
            line = {"words": text, "tags": tags, "probabilities": best}
            plain = " ".join(f"{word}/{tag}" for word, tag in zip(text, tags))
        elif kind == "regression":
            line = {"text": list(text), "score": round(float(output[0]), 4)}
            plain = f"{output[0]:.4f}\t" + "\t".join(text)
        else:
            label = classes[output.argmax()]
            line = {"text": list(text), "label": label,
                    "probabilities": {name: round(float(x), 4) for name, x in zip(classes, p)}}
            plain = f"{label}\t{p.max():.4f}\t" + "\t".join(text)
        print(json.dumps(line, ensure_ascii=False) if args.json else plain)


def evaluate(args, model, tokenizer, kind, host):
    """Metrics on a file, or on the validation rows of a task."""
    classes = [] if kind == "regression" else list(model.config.id2label.values())
    if args.evaluate in tasks.TASKS:
        args.task, name = args.evaluate, "val"
        examples = tasks.read_task(args.task)["val"]
    else:
        name = args.evaluate
        examples = tasks.read_file(args.evaluate, args.header, args.text_columns, args.label_column)
    labels = tasks.TASKS[args.task].labels if args.task else ()
    if len(labels) == len(classes) and all(label.startswith("LABEL_") for label in classes):
        classes = list(labels)  # a checkpoint that does not name its classes
    examples = tasks.prepare({"test": examples}, kind, classes or None).splits["test"]
    if args.held_out:
        examples = tasks.hold_out(examples, kind)[1]
    rows = make_rows(args, examples, kind, tokenizer, model)
    if rows.cut_words:
        print(f"{rows.cut_words:,} words of {name} are beyond --max_length: not scored")
    outputs = tasks.outputs(model, rows, args.batch_size, host)
    print(f"{args.checkpoint}, {len(rows):,} rows of {name}: " + ", ".join(
        f"{metric} {value:.4f}" for metric, value in rows.scores(outputs, classes).items()))
    tasks.report(rows, outputs, classes)


def predict(args, host):
    if args.merge:
        runtime.check_out_dir("merge", args.merge, args.checkpoint, args.overwrite)
    model, tokenizer = inference.open_model(args.checkpoint)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"{args.checkpoint}: the tokenizer has {tokenizer.vocab_size} ids, the model "
                         f"{model.config.vocab_size}")
    kind = inference.kind_of(model, args.checkpoint)
    if args.merge:
        return merge(args, model, tokenizer)
    model.to(host.device)
    if args.evaluate and kind == "words":
        raise ValueError(f"{args.checkpoint} has no classifier to evaluate; fine-tune it first")
    if args.evaluate:
        evaluate(args, model, tokenizer, kind, host)
    elif kind == "words":
        fill_masks(args, model, tokenizer, host)
    else:
        give_labels(args, model, tokenizer, kind, host)


def main(argv=None):
    with runtime.one_line_errors("predict.py"):
        args = parse_arguments(argv)
        with runtime.Host(args) as host:
            predict(args, host)


if __name__ == "__main__":
    main()
