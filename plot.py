"""
Pictures: the curves of runs, several in one picture; attention maps.

    python plot.py out/roberta                               # pretraining: losses and rate, in plot.png
    python plot.py out/fast out/paper --out recipes.svg      # the legend says in which flags they differ
    python plot.py out/mine-full out/mine-lora               # fine-tuning: the validation metric
    python plot.py --attention out/roberta "The cat sat on the <mask>."
    python plot.py --attention bert-base-uncased "The cat sat." --layer 3 --head 1

A run is an out_dir of train_mlm.py or finetune.py, or its log.jsonl; it may be under way.
"""

import os
import re
import shlex
import textwrap

import runtime  # before torch: it sets how torch's threads wait

import numpy as np

import inference
import rundir

SUFFIXES = (".png", ".svg", ".pdf")
STYLE = {"font.size": 10, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.color": "0.9", "axes.axisbelow": True, "text.parse_math": False,
         "path.simplify_threshold": 0.5}  # smaller .svg
LARGEST = 30  # inches, of a grid of attention maps

# flags that change no curve: a legend does not name them
IDLE = {"out_dir", "overwrite", "cache_dir", "log_interval", "eval_interval", "save_interval", "report",
        "seeds"}


def parse_arguments(argv):
    p = runtime.Parser(__doc__)
    p.add_argument("runs", nargs="*", metavar="RUN", help="out_dir or log.jsonl; with --attention: a text")
    p.add_argument("--names", nargs="+", help="of the runs, for the legend; default: the flags that differ")
    p.add_argument("--attention", metavar="CHECKPOINT", help="draw its attention maps of a text")
    p.add_argument("--layer", type=runtime.positive_int, help="counted from 1; default: all")
    p.add_argument("--head", type=runtime.positive_int, help="counted from 1; default: all")
    p.add_argument("--out", help=f"the picture: {', '.join(SUFFIXES)}; default: plot.png or attention.png")
    args = p.parse_args(argv)
    args.out = args.out or ("attention.png" if args.attention else "plot.png")
    if not args.out.lower().endswith(SUFFIXES):
        raise ValueError(f"--out {args.out}: the name of a picture ends in {', '.join(SUFFIXES)}")
    if idle := p.given(args, ["names"] if args.attention else ["layer", "head"]):
        raise ValueError(f"{', '.join(idle)}: no effect here; see --help")
    if args.attention and len(args.runs) != 1:
        raise ValueError(f"--attention takes one text, in quotes; here are {len(args.runs)}")
    if not args.runs:
        raise ValueError("name a run: an out_dir of train_mlm.py or finetune.py")
    if args.names and len(args.names) != len(args.runs):
        raise ValueError(f"--names: {len(args.names)} for {len(args.runs)} runs")
    return args

# -----------------------------------------------------------------------------
# Logs

def drawable_log(run):
    """The lines of a log, as dicts: the configuration, then what was measured."""
    log = rundir.read_log(*os.path.split(run)) if os.path.isfile(run) else rundir.read_log(run)
    if not log or not log[0].keys() & {"unigram_nats", "trained"}:
        raise ValueError(f"{run} holds no log of train_mlm.py or finetune.py")
    drawn = "tokens" if "unigram_nats" in log[0] else f"val_{log[0]['metric']}"
    if not any(drawn in line for line in log):
        raise ValueError(f"{run} has nothing to draw yet")
    return log


def points(log, x, y):
    """-> the two as arrays, of the lines that have both."""
    pairs = np.array([(line[x], line[y]) for line in log if x in line and y in line], float).reshape(-1, 2)
    return pairs[np.isfinite(pairs).all(1)].T


def name_runs(runs, configs):
    """A name for each run: the flags in which the runs differ, of those that were typed for any of them; the
    others differ only in consequence. Runs that would be called the same get their folder's name, too."""
    typed = {re.sub("^--(no-)?|=.*", "", word) for config in configs
             for word in shlex.split(config.get("command", "")) if word.startswith("--")}
    flags = [flag for flag in configs[0] if flag in typed - IDLE
             and len({flag_text(flag, config) for config in configs}) > 1]
    names = []
    for config in configs:
        texts = [flag_text(flag, config) for flag in flags]
        names.append(", ".join(filter(None, texts)) or "default" * bool(flags))
    folders = [folder_of(run) for run in runs]
    folders = folders if len(set(folders)) == len(runs) else runs
    return [name if names.count(name) == 1 else f"{name} {folder}".strip()
            for name, folder in zip(names, folders)]


def flag_text(flag, config):
    """As it could be typed; "" where it is not set or has no effect."""
    value = config.get(flag)
    if value is None or flag.startswith("lora_") and config.get("train") != "lora":
        return ""
    if isinstance(value, bool):
        return flag if value else f"no-{flag}"
    values = value if isinstance(value, list) else [value]
    return " ".join([flag, *(f"{x:g}" if isinstance(x, float) else str(x) for x in values)])


def folder_of(run):
    path = os.path.abspath(run)
    return os.path.basename(os.path.dirname(path) if os.path.isfile(path) else path)


def title_of(run, config):
    """Of a picture of one run."""
    start = config.get("preset") if config["init_from"] == "scratch" else f"from {config['init_from']}"
    task = [config["train_file"] or config["task"], config["train"]] if "train" in config else []
    return f"{folder_of(run)}: {', '.join([start, *task])}"

# -----------------------------------------------------------------------------
# Curves

def draw_runs(args):
    logs = [drawable_log(run) for run in args.runs]
    configs = [log[0] for log in logs]
    finetuned = ["trained" in config for config in configs]
    if len(set(finetuned)) > 1:
        raise ValueError(f"{args.runs[finetuned.index(False)]} is a pretraining and "
                         f"{args.runs[finetuned.index(True)]} a fine-tuning: draw them apart")
    figure, keys = draw_finetuning(logs) if finetuned[0] else draw_pretraining(logs)
    if len(logs) == 1:
        title, names = args.names[0] if args.names else title_of(args.runs[0], configs[0]), []
    else:
        title, names = None, args.names or name_runs(args.runs, configs)
    runs = [(name, dict(color=f"C{i}", linewidth=3)) for i, name in enumerate(names)]
    add_legend(figure, title, [*runs, *keys])
    return figure


def open_figure(width, height):
    try:
        import matplotlib
        from matplotlib.figure import Figure  # without pyplot: no window, nothing to close
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install matplotlib") from None
    matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
    matplotlib.rcParams.update(STYLE)
    return Figure((width, height), dpi=110, layout="constrained", facecolor="white")


def add_legend(figure, title, keys):
    """Above the panels. keys: pairs of a text and the style of its line."""
    from matplotlib.lines import Line2D
    lines = [Line2D([], [], label=textwrap.fill(text, 60), **style) for text, style in keys]
    longest = max((len(text) for text, _ in keys), default=0)
    figure.legend(handles=lines, title=title, loc="outside upper center", title_fontsize=11,
                  ncols=max(1, 110 // (longest + 8)))


def draw_pretraining(logs):
    """Losses and learning rates, against tokens and against time -> a figure, keys for its legend."""
    seconds = max(line.get("elapsed_s", 0) for log in logs for line in log)
    unit, size = ("hours", 3600) if seconds > 7200 else ("minutes", 60) if seconds > 120 else ("seconds", 1)
    styles = {"val_loss": dict(marker="o", markersize=4, zorder=3), "loss": dict(linewidth=0.8, alpha=0.5),
              "lr": {}}
    unigrams, dashed = [log[0]["unigram_nats"] for log in logs], dict(linestyle="--", linewidth=1)
    same = len(set(unigrams)) == 1
    figure = open_figure(10, 5)
    panels = figure.subplots(2, 2, sharex="col", sharey="row", height_ratios=(4, 1))
    for i, log in enumerate(logs):
        for column, x, scale in zip(panels.T, ("tokens", "elapsed_s"), (1e6, size)):
            for y, style in styles.items():
                at, values = points(log, x, y)
                column[int(y == "lr")].plot(at / scale, values, color=f"C{i}", **style)
            column[0].axhline(unigrams[i], color="0.3" if same else f"C{i}", **dashed)
    panels[0, 0].set(ylabel="masked-LM loss, nats", ylim=loss_limits(logs))
    panels[1, 0].set(ylabel="learning rate", ylim=(0, None), xlabel="million tokens")
    panels[1, 0].ticklabel_format(axis="y", scilimits=(0, 0))
    panels[1, 1].set(xlabel=unit)
    unigram = f"unigram line {unigrams[0]:.2f}" if same else "unigram lines"
    color = "0.3" if len(logs) > 1 else "C0"
    sampled = any(log[0].get("softmax") == "sampled" for log in logs)
    training = "training" + (", over a sample of the vocabulary" if sampled else "")
    return figure, [("validation", dict(color=color, **styles["val_loss"])),
                    (training, dict(color=color, **styles["loss"])), (unigram, dict(color="0.3", **dashed))]


def loss_limits(logs):
    """From the lowest loss to the unigram line: the way down to it is steep and says little. A run that has
    not come below it is shown from its first validation on."""
    shown = []
    for log in logs:
        unigram = log[0]["unigram_nats"]
        validation, training = (points(log, "step", y)[1] for y in ("val_loss", "loss"))
        below = [loss for loss in (*validation, *training) if loss < unigram]
        judged = validation if len(validation) else training
        shown += [unigram, *below, *(judged if judged.min() >= unigram else ())]
    margin = 0.07 * (max(shown) - min(shown))
    return min(shown) - margin, max(shown) + margin


def draw_finetuning(logs):
    """The validation metric over the steps, a line for each seed; of several runs, too, the best against the
    number of trained parameters -> a figure, keys for its legend."""
    metrics = {log[0]["metric"] for log in logs}
    if len(metrics) > 1:
        raise ValueError(f"the runs have different metrics, {' and '.join(sorted(metrics))}: draw them apart")
    [metric] = metrics
    several = len(logs) > 1
    figure = open_figure(10 if several else 6, 4)
    panels = figure.subplots(1, 1 + several, squeeze=False)[0]
    for i, log in enumerate(logs):
        best = []
        for seed in dict.fromkeys(line["seed"] for line in log if f"val_{metric}" in line):
            own = [line for line in log if line.get("seed") == seed]
            steps, values = points(own, "step", f"val_{metric}")
            panels[-1].plot(steps, 100 * values, marker=".", color=f"C{i}", alpha=0.8)
            best.append(100 * values.max())
        if several:
            deviation = np.std(best, ddof=1) if len(best) > 1 else None
            panels[0].errorbar(log[0]["trained"], np.mean(best), deviation, fmt="o", capsize=4, color=f"C{i}")
    panels[-1].set(xlabel="step", ylabel=f"validation {metric} × 100")
    if several:
        from matplotlib.ticker import EngFormatter, NullFormatter
        decades = np.log10([log[0]["trained"] for log in logs])
        panels[0].set(xlabel="trained parameters", ylabel=f"best validation {metric} × 100", xscale="log",
                      xlim=(10 ** np.floor(decades.min() - 0.1), 10 ** np.ceil(decades.max() + 0.1)))
        panels[0].xaxis.set(major_formatter=EngFormatter(sep=""), minor_formatter=NullFormatter())
    return figure, []

# -----------------------------------------------------------------------------
# Attention

def draw_attention(args):
    """A map for each head: its rows are the tokens that attend, its columns those that they attend to."""
    encoder, tokenizer = inference.open_encoder(args.attention)
    tokens, maps = inference.attention(encoder, tokenizer, args.runs[0])
    maps = maps.numpy()
    for flag, count in zip(("layer", "head"), maps.shape):
        if (getattr(args, flag) or 1) > count:
            raise ValueError(f"--{flag} {getattr(args, flag)}: {args.attention} has {count}")
    layers, heads = ([number - 1] if number else range(count)
                     for number, count in zip((args.layer, args.head), maps.shape))
    shown = [(layer, head) for layer in layers for head in heads]
    n, rows = len(shown), len(layers)
    if 1 in (rows, len(heads)):  # of one layer or one head: a block about as high as wide
        rows = max(rows for rows in range(1, n + 1) if n % rows == 0 and rows * rows <= n)
    columns, T = n // rows, len(tokens)
    side, fontsize = (max(4, 0.25 * T), 10) if n == 1 else (max(1.5, 0.14 * T), 8)  # inches, points
    if max(rows, columns) * side > LARGEST:
        raise ValueError(f"{rows} x {columns} maps of {T} tokens are too much for a picture: shorten the "
                         "text, or choose by --layer and --head")
    figure = open_figure(columns * side + 1.8, rows * (side + 0.3) + 1)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    labels = [token.strip() or repr(token) for token in tokens]
    largest = max(maps[layer, head].max() for layer, head in shown)
    for axes, (layer, head) in zip(panels.flat, shown):
        image = axes.imshow(maps[layer, head], cmap="Blues", vmin=0, vmax=largest)
        axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=10)
        axes.set_xticks(range(T), labels, rotation=90, fontsize=fontsize)
        axes.set_yticks(range(T), labels, fontsize=fontsize)
        axes.label_outer(remove_inner_ticks=True)
        axes.grid(False)
    figure.supxlabel("attended to", fontsize=10)
    figure.supylabel("attends", fontsize=10)
    figure.colorbar(image, ax=panels, aspect=40, pad=0.02)
    return figure


def save(figure, out):
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    figure.savefig(out)
    if out.lower().endswith(".png"):  # with a palette the file is a third as large
        from PIL import Image
        picture = Image.open(out).convert("RGB")
        picture.quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=1).save(out, optimize=True)
    print(out)


def main(argv=None):
    with runtime.one_line_errors("plot.py"):
        args = parse_arguments(argv)
        save(draw_attention(args) if args.attention else draw_runs(args), args.out)


if __name__ == "__main__":
    main()
