"""
What a run leaves in its out_dir: log.jsonl, checkpoints that appear whole, and the model card.

    log = Log(args, host)                      # locks the folder
    log.write("step 1 ...", step=1, loss=9.1)  # the text on the screen, the numbers in log.jsonl
    log.checkpoint(write)                      # of the files that write(folder) writes
    write_card(out_dir)                        # a README.md for the hub, made of the log, as the last thing

    hf auth login
    hf upload you/my-roberta out/roberta --exclude "resume*.pt"
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows nothing keeps two runs apart
    fcntl = None

import runtime
import tokenizer as tokenizers

PREVIOUS = "resume-previous.pt"  # the resume.pt of the save before, should the newest be damaged
# what a run may write into its out_dir
OUTPUTS = ("config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors",
           runtime.BASE_CONFIG, "tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt",
           "vocab.txt", "spiece.model", "resume.pt", PREVIOUS, "log.jsonl", "README.md")


class Log:
    """log.jsonl, an object a line. replace: until the first checkpoint, which takes the place of what an
    older run left, the lines stay in memory."""

    def __init__(self, args, host, replace=False):
        self.out_dir, self.host, self.replace, self.lines = args.out_dir, host, replace, []
        self.writes = host.rank == 0 and not args.dry_run
        self.track = tracker(args) if self.writes and args.report != "none" else None
        if self.writes:
            os.makedirs(args.out_dir, exist_ok=True)
            host.lock = lock(args.out_dir)
            files = [Path(args.out_dir, name) for name in OUTPUTS]
            if any(file.exists() and file.stat().st_mtime > host.began for file in files):
                raise ValueError(f"{args.out_dir}: another run has written there since this one began")

    def write(self, text=None, **line):
        """The line; and the text, which has the same numbers, on the screen."""
        if text:
            self.host.say(text)
        if not self.writes:
            return
        self.lines.append(json.dumps(line) + "\n")
        if not self.replace:
            self.append(self.out_dir)
        if self.track and "step" in line:
            prefix = f"seed {line['seed']}/" if "seed" in line else ""  # each begins at step 1
            self.track({name if name == "step" else prefix + name: value for name, value in line.items()
                        if isinstance(value, (int, float)) and name != "final"})

    def append(self, folder):
        with open(os.path.join(folder, "log.jsonl"), "a", encoding="utf-8") as f:
            f.writelines(self.lines)
        self.lines = []

    def checkpoint(self, write):
        """Into out_dir what write(folder) writes; the first time in place of what an older run has left."""
        if not self.writes:
            return
        def write_all(folder):
            write(folder)
            if self.replace:
                self.append(folder)
        save_files(self.out_dir, write_all, replace=self.replace)
        self.replace = False


def read_log(out_dir, name="log.jsonl"):
    """The lines of a log, as dicts. FileNotFoundError, or ValueError for a damaged line."""
    file, log = os.path.join(out_dir, name), []
    if not os.path.exists(file):
        raise FileNotFoundError(f"{out_dir} holds no run: there is no {file}")
    with open(file, "rb") as f:
        for number, line in enumerate(f, 1):
            if line.endswith(b"\n"):  # else SIGKILL left half of it, or it is being written
                try:
                    log.append(json.loads(line))
                    if not isinstance(log[-1], dict) or not isinstance(log[-1].get("step", 0), int):
                        raise ValueError
                except (ValueError, RecursionError):
                    raise ValueError(f"{file}, line {number} is damaged") from None
    return log


def tracker(args):
    """--report -> a function that takes the numbers of a line of the log, a dict with the step."""
    try:
        if args.report == "wandb":
            import wandb
            run = wandb.init(project="flatbert", config=vars(args))
            run.define_metric("*", step_metric="step")
            return run.log
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"--report {args.report}: pip install {args.report}") from error
    except Exception as error:  # wandb's own: no key, no network
        raise ValueError(f"--report {args.report}: {runtime.first_line(error)}") from error
    folder = os.path.join(args.out_dir, "tensorboard", time.strftime("%Y-%m-%d-%H-%M-%S"))  # one for each run
    writer = SummaryWriter(folder, flush_secs=10)
    return lambda line: [writer.add_scalar(name, value, line["step"]) for name, value in line.items()]


def lock(out_dir, shared=False):
    """-> a file descriptor. Until it is closed, or the process ends, any other run of this machine that asks
    for the folder gets a ValueError. shared: several may hold one, if all of them are shared."""
    if fcntl is None or not os.path.isdir(out_dir):
        return None
    descriptor = os.open(out_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"{out_dir}: another run is under way there") from None
    except OSError:  # some file systems have no locks
        pass
    return descriptor


def check_unlocked(out_dir):
    """ValueError while a run is under way in the folder."""
    if (descriptor := lock(out_dir, shared=True)) is not None:
        os.close(descriptor)


def check_out_dir(flag, out_dir, source, overwrite):
    """Errors for an out_dir that cannot be written, that holds a run, or that is what the run starts from."""
    check_unlocked(out_dir)
    check_disk(flag, out_dir)
    found = outputs_in(out_dir)
    if found - {"log.jsonl"} and not overwrite:  # a log alone: that run saved nothing
        resume = "go on with it by train_mlm.py --init_from resume, " if "resume.pt" in found else ""
        raise ValueError(f"{out_dir} holds a run already: {resume}choose another --{flag}, or replace it by "
                         "--overwrite")
    if source != "scratch" and os.path.realpath(out_dir) == os.path.realpath(source):
        raise ValueError(f"--{flag} {out_dir} is where this starts from, and would be lost: choose another")


def outputs_in(out_dir):
    """Names of what a run has left there, but for its card, which is written anew."""
    return (set(OUTPUTS) - {"README.md"}) & set(os.listdir(out_dir) if os.path.isdir(out_dir) else ())


def check_sources(out_dir, **flags):
    """flags: the paths of each flag that names data. ValueError for those that the run would write to."""
    out_dir = Path(out_dir).resolve()
    for flag, names in flags.items():
        for path in (Path(name).resolve() for name in names or () if name):
            if path.is_dir() and out_dir.is_relative_to(path):
                raise ValueError(f"--{flag} {path} holds --out_dir {out_dir}, and its log would be read as "
                                 "text: choose another --out_dir")
            if path.parent == out_dir and path.name in OUTPUTS:
                raise ValueError(f"--{flag} {path} is in --out_dir, and would be lost: choose another")


def remove_outputs(out_dir, names):
    """Remove these files from out_dir; but not a README.md that somebody wrote."""
    for name in names:
        if name != "README.md" or not foreign_card(out_dir):
            Path(out_dir, name).unlink(missing_ok=True)


def check_disk(flag, folder, needed=0):
    """OSError that names the flag if the folder takes no files, or if the disk has no room for that many
    bytes. What a run before has left there is room, too."""
    place = os.path.abspath(folder)
    while not os.path.exists(place) and place != os.path.dirname(place):  # it is made later
        place = os.path.dirname(place)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(f"--{flag} {folder} cannot be written: {error.strerror}") from error
    free = shutil.disk_usage(place).free
    if os.path.isdir(folder):
        free += sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder)
                    if entry.name in OUTPUTS)
    if needed > free:
        raise OSError(f"--{flag} {folder}: checkpoints need {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB "
                      "are free")


def save_files(out_dir, write, replace=False, temporary="saving.tmp"):
    """Call write(folder) on an empty folder, then move what it wrote into out_dir: each file appears whole,
    and out_dir stays as it was where the disk is full. replace: other files of an older run go."""
    folder = os.path.join(out_dir, temporary)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        os.makedirs(folder)
        write(folder)
        names = os.listdir(folder)
        for name in names:
            with open(os.path.join(folder, name), "r+b") as f:  # Windows flushes no file that is open to read
                os.fsync(f.fileno())
        if replace:  # a process that is killed now leaves no mixture that could be taken for a run
            remove_outputs(out_dir, set(OUTPUTS) - set(names) | {"resume.pt"})
        for name in sorted(names, key=lambda name: name == "resume.pt"):  # from which a run goes on: the last
            os.replace(os.path.join(folder, name), os.path.join(out_dir, name))
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise OSError(f"{out_dir} could not be written, the disk may be full; what was saved before is kept "
                      f"({runtime.first_line(error)})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)

# -----------------------------------------------------------------------------
# The model card

def write_card(out_dir):
    """README.md in out_dir, once its run has ended; but not in place of one that somebody wrote."""
    log = read_log(out_dir)
    if "final" not in log[-1] or foreign_card(out_dir):
        return
    text = model_card(out_dir, log)
    def write(folder):
        with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as f:
            f.write(text + signature(text))
    save_files(out_dir, write)


def signature(text):
    """The last line of a card, which shows whether somebody has changed it."""
    return f"<!-- by flatbert, {hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"


def foreign_card(out_dir):
    """Whether there is a README.md that somebody wrote or changed."""
    file = Path(out_dir, "README.md")
    if not file.exists():
        return False
    text, mark, last = file.read_text(encoding="utf-8", errors="replace").rpartition("<!--")
    return mark + last != signature(text)


def model_card(out_dir, log):
    run, final = dict(log[0]), log[-1]
    for line in log:
        if "resumed_at" in line:  # some flags may have changed
            run |= line
    is_adapter = os.path.exists(os.path.join(out_dir, runtime.BASE_CONFIG))
    config = runtime.read_config(out_dir, runtime.BASE_CONFIG if is_adapter else "config.json")
    model_type = config["model_type"]
    facts_of = pretraining_facts if "unigram_nats" in run else finetuning_facts
    tags, facts = facts_of(run, final, tokenizers.load(out_dir))
    if run["init_from"] != "scratch" and not os.path.isdir(run["init_from"]):
        tags["base_model"] = run["init_from"]
    tags |= {"tags": [model_type], "library_name": "peft" if is_adapter else "transformers"}
    front = "\n".join(f"{name}: {json.dumps(value)}" for name, value in tags.items())
    use = "predict.py --checkpoint NAME"
    if is_adapter:
        head = "TokenClassification" if run["kind"] == "tokens" else "SequenceClassification"
        classes = dict(enumerate(run["classes"])) or {0: "LABEL_0"}
        use += f"` or `peft.AutoPeftModelFor{head}.from_pretrained('NAME', id2label={classes})"
    else:
        use += f"` or `transformers.pipeline({tags['pipeline_tag']!r}, 'NAME')"
    cells = [(name, str(value).replace("|", "\\|")) for name, value in facts.items()]  # a label may have one
    table = "\n".join(f"| {name} | {value} |" for name, value in cells)
    return (f"---\n{front}\n---\n\n# {os.path.basename(os.path.abspath(out_dir))}\n\n"
            f"{model_type}, {run['parameters'] / 1e6:.1f} M parameters, trained from {run['init_from']} by "
            f"flatbert. Use it by `{use}`, where NAME is this folder or its name on the hub."
            f"\n\n| | |\n|---|---|\n{table}\n\n"
            f"The command: `python {run['command']}`\n\n"
            "Not evaluated for bias or safety; it repeats what its training text says.\n\n")


def pretraining_facts(run, final, tokenizer):
    """-> front matter, facts"""
    facts = {
        "text": " ".join(run["data"]),
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids",
        "training": f"{final['tokens']:,} tokens in {final['step']:,} steps of {run['batch_size']} rows of "
                    f"{run['seq_length']}; {final['elapsed_s'] / 60:.1f} minutes",
        "recipe": f"{run['recipe']}: {run['optimizer']}, rate {run['lr']:g} ({run['schedule']}), "
                  f"{100 * run['mask_prob']:g}% of the tokens masked, by the {run['mask_unit']}"
                  + (", a softmax over a sample of the vocabulary" if run["softmax"] == "sampled" else ""),
        "validation loss": f"{final['val_loss']:.3f} nats per token (a model of token frequencies: "
                           f"{run['unigram_nats']:.3f}), perplexity {final['perplexity']:.2f}, "
                           f"{final['nats_per_byte']:.3f} nats per byte",
        "masked accuracy": f"{final['val_masked_accuracy']:.3f}"}
    if "val_sentence_accuracy" in final:
        facts["sentence task"] = f"accuracy {final['val_sentence_accuracy']:.3f}"
    return {"pipeline_tag": "fill-mask"}, facts


def finetuning_facts(run, final, tokenizer):
    best = max(final["seeds"], key=lambda seed: (seed["score"], -seed["scores"]["loss"]))  # as Best.rank
    scores = ", ".join(f"{name} {value:.4f}" for name, value in best["scores"].items())
    facts = {
        "task": run["train_file"] or run["task"],
        "labels": ", ".join(run["classes"]) or "a number",
        "trained": f"{final['trained']:,} parameters ({run['train']}), {best['epochs']:.3g} epochs of "
                   f"{run['rows']['train']:,} rows, rate {run['lr']:g}",
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids",
        "validation": f"{scores}, on {run['rows']['val']:,} rows, by which these weights were chosen"}
    if len(final["seeds"]) > 1:
        facts["all seeds"] = f"{final['metric']} {final['mean']:.4f} ± {final['std']:.4f}"
    if "test" in best:
        facts["test"] = ", ".join(f"{name} {value:.4f}" for name, value in best["test"].items())
    return {"pipeline_tag": f"{'token' if run['kind'] == 'tokens' else 'text'}-classification"}, facts
