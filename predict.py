"""
Use a checkpoint: one of ours, or any BERT, RoBERTa or ALBERT of the hub; an adapter of ours or PEFT's.

    python predict.py --checkpoint out/roberta "The capital of France is <mask>."   # pretrained: words
    python predict.py --checkpoint out/roberta --score "The cats sleep." "The cats sleeps."
    python predict.py --checkpoint out/mine "What a film."                          # fine-tuned: labels
    python predict.py --checkpoint out/mine --file new.csv --json > predictions.jsonl
    python predict.py --checkpoint out/mine --file new.csv --embed out.npy          # any: vectors
    python predict.py --checkpoint out/mine --evaluate test.csv                     # or a task: sst2
    python predict.py --checkpoint out/lora --merge out/merged                      # adapter into its base

Texts are arguments, a file, or the lines of standard input; a tab separates the two of a pair.

A line of --json has the columns of the row as they came, or {"text": the line}, and then what is predicted:
label (of several: labels) and probabilities; score, of a regression; tags and probabilities, and words if
they came as one string; masks; score, pseudo_perplexity and tokens. A name that is a column of the file
already gets predicted_ before it, as in predicted_label.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import sys
from contextlib import suppress

import runtime  # before torch: it sets how torch's threads wait

import numpy as np

import files
import inference
import lora
import rundir
import tasks
import tokenizer as tokenizers

# flags that do not go with everything, and what they go with
WITH = {"task": ["evaluate"], "held_out": ["evaluate"], "overwrite": ["merge", "embed"], "pooling": ["embed"],
        "normalize": ["embed"], "top": ["masks"], "json": ["masks", "labels", "score"],
        "threshold": ["labels", "evaluate"],
        "max_length": ["labels", "embed", "evaluate"], "stride": ["labels", "embed", "evaluate"]}
BLOCK = 1000  # texts that are labelled before their lines are printed


def parser():
    p = runtime.Parser(__doc__)
    p.add_argument("text", nargs="*", help="texts; default: --file, or the lines of standard input")
    p.add_argument("--checkpoint", required=True, help="a directory or a name on the hub")
    add = p.add_argument_group("input").add_argument
    add("--file", help=f"{', '.join(files.FORMATS)}: the texts; of .txt the lines; -: standard input")
    runtime.add_text_flags(add)
    add("--stride", type=runtime.not_negative_int, metavar="N",
        help="read longer texts whole, in windows of --max_length tokens; neighbours share N of them")
    group = p.add_argument_group("what to do; default: fill masks, or give labels")
    add = group.add_mutually_exclusive_group().add_argument
    add("--score", action="store_true", help="pseudo-log-likelihood of each text in nats, sum and mean")
    add("--embed", metavar="FILE.npy", help="write a vector for each text, float32 (texts, hidden size)")
    add("--evaluate", metavar="FILE_OR_TASK", help="metrics on labelled rows, or on a task's validation rows")
    add("--merge", metavar="OUT_DIR", help="write the adapter and its base as one plain checkpoint")
    add = group.add_argument
    add("--pooling", choices=("mean", "cls"),
        help="of --embed: all tokens, or the first; default: as sentence-transformers pools this checkpoint")
    add("--normalize", action=argparse.BooleanOptionalAction,
        help="of --embed: vectors of length 1; default: as sentence-transformers does with this checkpoint")
    add("--task", choices=tasks.TASKS, help="of --evaluate FILE: the task that its labels are of")
    add("--held_out", action="store_true", help="only the rows that finetune.py holds out of that file")
    add("--overwrite", action="store_true", help="replace FILE.npy, or what is in OUT_DIR")
    add = p.add_argument_group("output").add_argument
    add("--threshold", type=runtime.fraction, default=0.5,
        help="where a text may have several labels: give those with a probability above this")
    add("--top", type=runtime.positive_int, default=5, help="how many words to show for a mask")
    add("--json", action="store_true", help="one JSON object a text, numbers in full")
    add = runtime.add_machine_flags(p, dtype="float32")
    add("--batch_size", type=runtime.positive_int, default=32, help="rows computed at a time")
    return p


def parse_arguments(argv):
    p = parser()
    args = p.parse_args(argv)
    args.device = runtime.choose_device(args.device)
    args.text_columns = runtime.split_commas(args.text_columns)
    sources = [bool(args.text), args.file is not None, args.evaluate is not None, args.merge is not None]
    if sum(sources) > 1:
        raise ValueError("give one of texts, --file, --evaluate and --merge")
    if empty := [name for name in ("file", "embed", "evaluate", "merge") if getattr(args, name) == ""]:
        raise ValueError(f"--{empty[0]}: the name is empty")
    named = [name for name in ("score", "embed", "evaluate", "merge") if getattr(args, name)]
    args.does = named or ["masks", "labels"]  # which of the two the checkpoint tells
    check_flags(args)
    if args.embed:
        check_npy(args.embed, args.overwrite)
    if args.merge:
        rundir.check_out_dir("merge", args.merge, args.checkpoint, args.overwrite)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("this runs in one process; leave torchrun out")
    return args


def check_flags(args):
    names = [name for name, goes in WITH.items() if not set(goes) & set(args.does)]
    if args.evaluate in (None, *tasks.TASKS) and not (args.file or "").endswith(files.TABLES):
        names += ["text_columns", "label_column", "header"]  # no table is read
    if idle := parser().given(args, names):
        raise ValueError(f"{', '.join(idle)}: no effect here; see --help")

# -----------------------------------------------------------------------------
# Texts in, lines out

def read_table(args, file, labelled, kind=None):
    """-> tasks.Examples, of the columns that the checkpoint was trained with, or else it says so."""
    trained = trained_columns(args.checkpoint)
    examples = tasks.read_file(file, args.header, args.text_columns, args.label_column, labelled, kind,
                               like=trained)
    if trained and trained[0] and not args.text_columns and examples.columns[0] != trained[0]:
        print(f"{file}: the text is taken from {' and '.join(examples.columns[0])}; in training it was "
              f"{' and '.join(trained[0])}", file=sys.stderr)
    return examples


def read_texts(args, pairs=False):
    """Yields (text, where, row) of arguments, --file or standard input. text: a tuple of one string, with
    `pairs` perhaps of two, and of a table perhaps of a list of words; row: {column: cell}, all as it came."""
    if args.file and args.file.endswith(files.TABLES):
        examples = read_table(args, args.file, labelled=False)
        for text, where, row in zip(examples.texts, examples.where, examples.rows):
            if not pairs and (len(text) > 1 or not isinstance(text[0], str)):
                raise ValueError(f"{where}: one column of strings is wanted here; name it by --text_columns")
            yield text, where, row
        return
    if args.text:
        lines = ((f"text {i}", text) for i, text in enumerate(args.text, 1))
    elif args.file and args.file != "-":
        lines = ((where, record["text"]) for where, record in files.records(args.file))
    else:
        if sys.stdin.isatty():
            print("texts, one a line; Ctrl-D ends", file=sys.stderr)
        lines = ((f"standard input, line {i}", line) for i, line in files.lines("-"))
    for where, line in lines:
        yield tuple(line.split("\t")) if pairs else (line,), where, {"text": line}


def trained_columns(checkpoint):
    """-> the text columns, and the label's, of the file that this folder's model was fine-tuned on; None
    where there is no log of it."""
    try:
        return rundir.read_log(checkpoint)[0]["columns"]
    except (FileNotFoundError, LookupError):
        return None


def read_all(args, pairs=False):
    """-> tasks.Examples. ValueError for a text of white space, and where there are none."""
    examples = tasks.Examples([], None, [], [])
    for text, where, row in read_texts(args, pairs):
        if any(isinstance(part, str) and not part.strip() for part in text):
            raise ValueError(f"{where}: the text is blank")
        if len(text) > 2:
            raise ValueError(f"{where}: {len(text)} texts with tabs between; one or two are wanted")
        examples.texts.append(text)
        examples.where.append(where)
        examples.rows.append(row)
    if not examples.texts:
        raise ValueError("there are no texts")
    return examples


def answer(args, row, columns, plain, **predicted):
    """Print the line of one text: `plain`, or with --json the row and what is predicted, under names that are
    not among the columns."""
    if args.json:
        row = finite(row)
        for name, value in predicted.items():
            while name in columns:
                name = "predicted_" + name
            row[name] = value
        is_utf8 = "utf" in (sys.stdout.encoding or "").lower()
        plain = json.dumps(row, ensure_ascii=not is_utf8)
    print(plain, flush=True)


def finite(row):
    """What JSON has no number for becomes null; what else a .parquet holds, such as a date, a string."""
    return json.loads(json.dumps(row, default=str), parse_constant=lambda name: None)


def say_cut(cut, total, args, words=0):
    if cut:
        print(f"{cut:,} of {total:,} texts were cut at --max_length {args.max_length}"
              + f"; {words:,} words have no tag" * (words > 0), file=sys.stderr)

# -----------------------------------------------------------------------------
# A pretrained model: masks, scores

def fill_masks(args, model, tokenizer, host):
    table, nothing = (args.file or "").endswith(files.TABLES), True
    texts = list(read_texts(args)) if table else read_texts(args)  # a line is answered as it comes
    columns = set().union(*(row for *_, row in texts)) if table else {"text"}
    for [text], where, row in texts:
        if not text.strip():
            continue
        nothing = False
        try:
            with host.autocast(model.config.longest_row):
                masks = inference.fill(model, tokenizer, text, args.top)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        plain = [text]
        for i, words in enumerate(masks, 1):
            best = (f"{word.strip() or repr(word)} {p:.3f}" for word, p in words)
            plain.append(f"  mask {i}: " + "  ".join(best))
        answer(args, row, columns, "\n".join(plain), masks=masks)
    if nothing:
        raise ValueError("there are no texts")


def score_texts(args, model, tokenizer, host):
    examples = read_all(args)
    texts, columns = [text for text, in examples.texts], set().union(*examples.rows)
    with host.autocast(model.config.longest_row):
        scores = inference.score(model, tokenizer, texts, args.batch_size, examples.where)
        for text, row, tokens in zip(texts, examples.rows, scores):
            total = math.fsum(value for _, value in tokens)
            mean = total / len(tokens)
            plain = f"{total:.4f}\t{mean:.4f}\t{text}".replace("\n", " ")  # a line for each text
            answer(args, row, columns, plain, score=total,
                   pseudo_perplexity=math.exp(min(-mean, 700)),  # a float's limit is about 709
                   tokens=tokens)

# -----------------------------------------------------------------------------
# Any checkpoint: embeddings

def check_npy(path, overwrite):
    folder = os.path.dirname(path) or "."
    if not path.endswith(".npy"):
        raise ValueError(f"--embed {path}: the name of a .npy file is wanted")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--embed {path}: there is no folder {folder}")
    if os.path.exists(path) and not (overwrite and os.path.isfile(path)):
        raise ValueError(f"{path} is there already: choose another --embed, or replace it by --overwrite")
    rundir.check_disk("embed", folder)


def embed_texts(args, host):
    encoder, tokenizer = inference.open_encoder(args.checkpoint)
    normalize, prompt = inference.sentence_settings(args.checkpoint)
    texts = [prompt + text for text, in read_all(args).texts]
    args.max_length = runtime.row_length(args.max_length, encoder.config, tokenizer.max_length)
    encoder.to(host.device)
    with host.autocast(args.max_length):
        vectors, cut = inference.embed(encoder, tokenizer, texts, args.max_length, args.stride,
                                       args.pooling or inference.pooling_of(args.checkpoint),
                                       normalize if args.normalize is None else args.normalize,
                                       args.batch_size)
    folder, name = os.path.split(args.embed)
    rundir.save_files(folder or ".", lambda place: np.save(os.path.join(place, name), vectors),
                      temporary=name + ".tmp")
    say_cut(cut, len(texts), args)
    print(f"{args.embed}: {vectors.shape[0]:,} texts, {vectors.shape[1]} numbers each")

# -----------------------------------------------------------------------------
# A fine-tuned model: labels, metrics, merging

def outputs_of(args, examples, kind, tokenizer, model, host):
    """-> tasks.Rows, and their outputs as tasks.logits_of gives them; with --stride one of each text."""
    rows, numbers = inference.make_rows(examples, kind, tokenizer, model.config, args.max_length, args.stride)
    outputs = tasks.logits_of(model, rows, args.batch_size, host)
    return rows, inference.mean_of_windows(outputs, rows, numbers)


def give_labels(args, model, tokenizer, kind, host):
    classes, examples = list(model.config.id2label.values()), read_all(args, pairs=True)
    if len(set(classes)) < len(classes):
        raise ValueError(f"{args.checkpoint}: several classes have one name; rename them in config.json")
    trained = trained_columns(args.checkpoint)
    if trained and len(trained[0]) == 2 and any(len(text) == 1 for text in examples.texts):
        print(f"{args.checkpoint} was trained on pairs of texts; here are single ones", file=sys.stderr)
    came, columns = list(examples.texts), set().union(*examples.rows)  # the columns that any row has
    tasks.check_texts(examples, kind)  # for tokens, a text becomes a list of words, in place
    inference.check_stride(examples, kind, args.max_length, args.stride)  # before a line is printed
    cut, cut_words, n = 0, 0, len(came)
    for i in range(0, n, BLOCK):
        part = tasks.Examples(examples.texts[i:i + BLOCK], None, examples.where[i:i + BLOCK])
        rows, outputs = outputs_of(args, part, kind, tokenizer, model, host)
        cut, cut_words = cut + rows.cut_texts, cut_words + rows.cut_words
        for j, output in enumerate(outputs, i):
            predicted, plain = prediction(kind, classes, examples.texts[j], output, args.threshold)
            if kind == "tokens" and isinstance(came[j][0], str):
                predicted = {"words": examples.texts[j], **predicted}
            answer(args, examples.rows[j], columns, plain.replace("\n", " "), **predicted)
    say_cut(cut, n, args, cut_words)


def prediction(kind, classes, text, output, threshold):
    """Logits (classes,), for tokens (words, classes), which may end before the text -> what is predicted, a
    dict, and the plain line."""
    logits = output.astype(np.float64)
    if kind == "multilabel":
        labels = [name for name, is_above in zip(classes, tasks.above(logits, threshold)) if is_above]
        probabilities = dict(zip(classes, (1 / (1 + np.exp(-logits))).tolist()))
        return {"labels": labels, "probabilities": probabilities}, "|".join(labels) + "\t" + "\t".join(text)
    if kind == "regression":
        return {"score": float(output[0])}, f"{output[0]:.4f}\t" + "\t".join(text)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if kind == "tokens":
        cut = [None] * (len(text) - len(p))
        tags = [classes[i] for i in output.argmax(-1)] + cut
        plain = " ".join(f"{word}/{tag}" for word, tag in zip(text, tags))
        return {"tags": tags, "probabilities": p.max(-1).tolist() + cut}, plain
    label = classes[output.argmax()]
    return ({"label": label, "probabilities": dict(zip(classes, p.tolist()))},
            f"{label}\t{p.max():.4f}\t" + "\t".join(text))


def evaluate(args, model, tokenizer, kind, host):
    """Metrics on a file, or on the validation rows of a task."""
    classes = [] if kind == "regression" else list(model.config.id2label.values())
    name = args.evaluate
    if name in tasks.TASKS:
        if args.held_out:
            raise ValueError(f"--held_out: {name} has validation rows of its own")
        args.task, examples = name, tasks.read_task(name)["val"]
    else:
        examples = read_table(args, name, labelled=True, kind=kind)
        texts, labels = examples.columns
        print(f"columns: {' and '.join(texts)}; {', '.join(labels)}")
        if kind == "multilabel" and len(labels) == 1 < len(classes) and labels[0] in classes:
            raise ValueError(f"--label_column {labels[0]} is one class alone; all are {','.join(classes)}")
    task_classes = list(tasks.TASKS[args.task].labels) if args.task else []
    if len(task_classes) == len(classes) and all(label.startswith("LABEL_") for label in classes):
        classes = task_classes  # a checkpoint that does not name its classes
    lower, task_lower = [label.lower() for label in classes], [label.lower() for label in task_classes]
    same_classes = kind == "classification" and sorted(lower) == sorted(task_lower)
    if task_classes and not same_classes and name not in tasks.TASKS:
        raise ValueError(f"--task {args.task}: its classes are {', '.join(task_classes)}; those of "
                         f"{args.checkpoint} are {', '.join(classes) or 'none'}")
    known = task_classes if same_classes else classes
    examples = tasks.prepare({"test": examples}, kind, known).splits["test"]
    if same_classes:  # ids in the file are the task's; the checkpoint may have the classes in another order
        examples.labels = [lower.index(task_lower[i]) for i in examples.labels]
    if args.held_out:
        with suppress(FileNotFoundError, IndexError):  # no log, or an empty one
            if rundir.read_log(args.checkpoint)[0].get("val_file"):
                raise ValueError("--held_out: this model's training had a --val_file, and held nothing out")
        examples = tasks.hold_out(examples, kind)[1]
    rows, outputs = outputs_of(args, examples, kind, tokenizer, model, host)
    say_cut(rows.cut_texts, len(outputs), args)
    if rows.cut_words:
        print(f"{rows.cut_words:,} words of {name} are beyond --max_length: not scored")
    print(f"{args.checkpoint}, {len(outputs):,} rows of {name}: " + ", ".join(
        f"{metric} {value:.4f}" for metric, value in rows.scores(outputs, classes, args.threshold).items()))
    tasks.report(rows, outputs, classes, args.threshold)


def merge(args, model, tokenizer):
    path = tokenizers.local_directory(args.checkpoint)
    if not lora.is_adapter(path):
        raise ValueError(f"--merge: {args.checkpoint} is no adapter: it has no adapter_config.json")
    base = lora.read_config(path)["base_model_name_or_path"]
    if os.path.realpath(base) == os.path.realpath(args.merge):
        raise ValueError(f"--merge {args.merge} is the adapter's base, and would be lost: choose another")
    def write(folder):
        lora.merge(model).save_pretrained(folder)
        tokenizer.save(folder)
        with suppress(FileNotFoundError):  # PEFT's have none
            shutil.copy(os.path.join(path, "log.jsonl"), folder)  # for trained_columns
    rundir.save_files(args.merge, write, replace=True)
    with suppress(FileNotFoundError, IndexError):  # no log, or an empty one
        rundir.write_card(args.merge)
    print(f"{args.merge}: {args.checkpoint} and its base, merged\n\n"
          f"next: python predict.py --checkpoint {shlex.quote(args.merge)} \"...\"")


def predict(args, host):
    if args.embed:
        return embed_texts(args, host)
    model, tokenizer = inference.open_model(args.checkpoint)
    kind = inference.kind_of(model)
    if args.merge:
        return merge(args, model, tokenizer)
    model.to(host.device)
    if args.score and kind != "words":
        raise ValueError(f"--score: {args.checkpoint} gives labels; a masked language model is wanted")
    if kind != "multilabel" and args.threshold != 0.5:
        raise ValueError(f"--threshold: {args.checkpoint} does not give several labels to a text")
    if args.evaluate and kind == "words":
        raise ValueError(f"{args.checkpoint} has no classifier to evaluate; fine-tune it first")
    if kind == "words" and tokenizer.mask_id is None:
        raise ValueError(f"{args.checkpoint}: the tokenizer has no mask token")
    if args.does == ["masks", "labels"]:
        args.does = ["masks" if kind == "words" else "labels"]
        check_flags(args)
    if kind == "words":
        return (score_texts if args.score else fill_masks)(args, model, tokenizer, host)
    args.max_length = runtime.row_length(args.max_length, model.config, tokenizer.max_length)
    (evaluate if args.evaluate else give_labels)(args, model, tokenizer, kind, host)


def main(argv=None):
    with runtime.one_line_errors("predict.py"):
        args = parse_arguments(argv)
        with runtime.Host(args) as host:
            predict(args, host)


if __name__ == "__main__":
    main()
