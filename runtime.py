"""
What the scripts need of the machine: flags, processes, precision, signals. Importing it, and Host(), change
settings of the whole process: it is for these scripts, not for your project.

Each script's main() reads

    with runtime.one_line_errors("train_mlm.py"):     # bad input is one line and exit status 2
        args = parse_arguments(argv)
        with runtime.Host(args) as host:              # device, precision, and the other processes
            train(args, host)
"""

import argparse
import ctypes
import importlib
import math
import os
import platform
import re
import shlex
import signal
import sys
import time
import traceback
import warnings
from contextlib import contextmanager, nullcontext
from datetime import timedelta

# OpenMP's threads wait for each other by spinning, and beside another busy program one spins while the core
# that it waits for is taken: a step of 100 ms takes 261 to 325. If they sleep after 10,000 turns it takes
# 226 to 236; after 2,000 about 170, but 128 when quiet (bench.py neighbour). OpenMP reads it as torch loads:
# import runtime before it.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

# cuDNN's attention plans anew for every length of a row, and before torch 2.12 may round dropout to
# sixteenths (https://github.com/pytorch/pytorch/pull/174245).
torch.backends.cuda.enable_cudnn_sdp(False)

import tokenizer as tokenizers

MODELS = ("bert", "roberta", "albert")  # the model files; a fourth is a new file, and its name here
SIGNALS = [signal.SIGINT, signal.SIGTERM]  # what asks a run to stop: Ctrl-C, a scheduler,
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    SIGNALS.append(signal.SIGHUP)          # and a terminal that closes, unless nohup holds it off

# -----------------------------------------------------------------------------
# Flags

class Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage; --help shows the script's docstring and every default."""

    class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action):
            shown = action.default is None or isinstance(action.default, bool) or "default" in action.help
            return action.help if shown else super()._get_help_string(action)

    def __init__(self, description):
        super().__init__(description=description, formatter_class=self.Help, usage="%(prog)s [flags]",
                         allow_abbrev=False)

    def error(self, message):
        raise ValueError(f"{message}; --help lists the flags" if "unrecognized" in message else message)

    def given(self, args, names):
        """Those of the flags that are not at their defaults, as --name."""
        return [f"--{name}" for name in names if getattr(args, name) != self.get_default(name)]


def number(kind, allowed, wanted):
    """A type for argparse: a number of that kind for which allowed(number) holds."""
    def parse(text):
        value = kind(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value
    parse.__name__ = kind.__name__  # which argparse names where text is no number at all
    return parse

LARGEST = 10**9  # beyond it a flag is a slip of the finger
positive = number(float, lambda x: 0 < x <= LARGEST, f"positive, at most {LARGEST:,}")
positive_int = number(int, lambda n: 0 < n <= LARGEST, f"a positive whole number, at most {LARGEST:,}")
not_negative = number(float, lambda x: 0 <= x <= LARGEST, f"zero or positive, at most {LARGEST:,}")
not_negative_int = number(int, lambda n: 0 <= n < 2**63, "zero or a positive whole number below 2^63")
fraction = number(float, lambda x: 0 < x < 1, "between 0 and 1")
probability = number(float, lambda x: 0 <= x < 1, "at least 0 and less than 1")


def add_training_flags(p, beta2, eps, length, batch_size=""):
    """The flags of a run's length, rate and optimizer. length, batch_size: what --help says of defaults that
    depend on the run."""
    group = p.add_argument_group("length and rate")
    add = group.add_mutually_exclusive_group().add_argument
    add("--max_steps", type=positive_int, help=f"length of the run, in optimizer steps; default: {length}")
    add("--epochs", type=positive, help="or in passes over the data")
    add("--max_minutes", type=positive, help="or in minutes, evaluation included, with the schedule fitted "
        "to them")
    add = group.add_argument
    add("--batch_size", type=positive_int, help=f"rows of an optimizer step, over all processes{batch_size}")
    add("--accumulation", type=positive_int, default=1, help="micro-batches per process and step")
    add("--lr", type=positive, help="peak learning rate; default: by the model's size and what is trained")
    add("--schedule", default="linear", choices=("linear", "cosine", "constant"),
        help="of the rate after the warmup; constant: until the last --decay of the run")
    add("--decay", type=fraction, default=0.2, help="last share of the run, where constant falls to 0")
    add("--warmup", type=probability, default=0.06, help="share of the run")
    add("--weight_decay", type=not_negative, default=0.01, help="of matrices, not of vectors")
    add("--beta1", type=fraction, default=0.9, help="AdamW's, and Muon's momentum")
    add("--beta2", type=fraction, default=beta2, help="AdamW's")
    add("--eps", type=positive, default=eps, help="AdamW's")
    add("--clip", type=not_negative, default=1.0, help="largest gradient norm; 0: no limit")
    add("--seed", type=not_negative_int, default=0, help="of fresh weights, order, masks and dropout")


def add_machine_flags(p, dtype=None):
    add = p.add_argument_group("machine").add_argument
    add("--device", help="cpu, cuda, cuda:1; default: cuda if there is one")
    add("--dtype", choices=("float32", "bfloat16"), default=dtype,
        help="of the forward pass; float32 is TF32 on a GPU"
        + "; default: bfloat16 where it is faster" * (dtype is None))
    add("--threads", type=positive_int, help="CPU threads of the model; default: torch's own number, "
        "or of several processes each its share of the cores")
    return add


def add_output_flags(add):
    add("--overwrite", action="store_true", help="replace what is in out_dir")
    add("--report", default="none", choices=("none", "tensorboard", "wandb"),
        help="send the numbers of log.jsonl there, too")
    add("--dry_run", action="store_true", help="set up, take three steps, write no checkpoint")


def add_text_flags(add):
    """How labelled files are read."""
    add("--text_columns", nargs="+",
        help="one or two, by name or counted from 1; default: by the usual names")
    add("--label_column", help="by name or counted from 1; default: by the usual names; where a "
        "text may have several labels, perhaps several, with commas between")
    add("--header", action=argparse.BooleanOptionalAction,
        help="in .csv and .tsv; default: if it has the usual names")
    add("--max_length", type=number(int, lambda n: n >= 8, "at least 8"),
        help="tokens; longer texts are cut; default: 256, in predict.py what the checkpoint was trained with")


def row_length(given, config, known=None):
    """--max_length, checked. Default: `known`, the length of the checkpoint's own rows, if it makes sense; or
    else 256, or the model's positions if they are fewer."""
    longest = config.longest_row
    if given and given > longest:
        raise ValueError(f"--max_length {given}: the model has positions for {longest} tokens")
    sensible = isinstance(known, int) and 8 <= known <= longest  # some published files say 10**30
    return given or (known if sensible else min(256, longest))


def split_commas(values):
    """["a,b", "c"] -> ["a", "b", "c"], for flags that take several names; None stays."""
    return values and [part.strip() for value in values for part in value.split(",") if part.strip()]


def command(script, argv):
    """What was typed, for the log and the card."""
    return shlex.join([script, *(sys.argv[1:] if argv is None else argv)])


def choose_device(name):
    """--device, checked; cuda if there is one."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    gpus = torch.cuda.device_count()
    if name != "cpu" and not (gpus and name in ["cuda", *(f"cuda:{i}" for i in range(gpus))]):
        raise ValueError(f"--device {name}: this machine has a cpu and {gpus} cuda devices")
    return name

# -----------------------------------------------------------------------------
# Model files

# beside an adapter: the config of its base, with the adapter's classes. As config.json it would make
# transformers look for a whole model there.
BASE_CONFIG = "base_config.json"

def read_config(path_or_name, name="config.json"):
    """config.json of a checkpoint, as a dict."""
    file = os.path.join(tokenizers.local_directory(path_or_name), name)
    if not os.path.exists(file):
        if os.path.exists(os.path.join(os.path.dirname(file), "adapter_config.json")):
            raise ValueError(f"{path_or_name} is an adapter: merge it by predict.py --merge, and take the "
                             "result")
        raise FileNotFoundError(f"{path_or_name} is no checkpoint: it has no {name}")
    config = tokenizers.read_json(file)
    model_type = config.get("model_type")
    if model_type not in MODELS:
        raise ValueError(f"{file}: model_type is {model_type!r}, not one of {', '.join(MODELS)}")
    return config


def model_module(path_or_name):
    """The module that reads a checkpoint: bert, roberta or albert."""
    return importlib.import_module(read_config(path_or_name)["model_type"])


def preset_names():
    return "; ".join(", ".join(importlib.import_module(name).PRESETS) for name in MODELS)


def sizes(module, preset):
    """The fields of a Config that a preset sets."""
    if preset not in module.PRESETS:
        raise ValueError(f"no preset {preset}; {module.__name__}.py has {', '.join(module.PRESETS)}")
    return module.PRESETS[preset]


def build_model(module, head, args, tokenizer, **options):
    """A model of the class named head: --preset from scratch, or the checkpoint --init_from, with --layers.
    options: fields of its Config. What would fail only later is found here: ids beyond the vocabulary, a
    parameter that has no name in a checkpoint."""
    if args.layers:
        options["num_hidden_layers"] = args.layers
    if args.init_from != "scratch":
        model = getattr(module, head).from_pretrained(args.init_from, **options)
    else:
        options = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id} | options
        model = getattr(module, head)(module.Config(**sizes(module, args.preset) | options))
    if model.config.vocab_size < tokenizer.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}")
    model.hf_keys()
    return set_dropout(model.train(), args.dropout)


def set_dropout(model, p):
    """In the modules, for this run, unless p is None. The config, and so the checkpoint, keeps its own."""
    for module in model.modules():
        if p is not None and isinstance(module, torch.nn.Dropout):
            module.p = p
    return model

# -----------------------------------------------------------------------------
# Processes

class Host:
    """This process among those that torchrun started: its device, and what all of them have to agree on.

    rank of world processes; local_rank among those of this machine. args.device is a checked device name;
    args.dtype None becomes the faster of float32 and bfloat16. One process alone needs no torchrun.
    """

    def __init__(self, args):
        self.args, self.group, self.signals, self.lock, self.began = args, None, [], None, time.time()
        said = lambda name, default: int(os.environ.get(name, default))  # by torchrun
        self.rank, self.world = said("RANK", 0), said("WORLD_SIZE", 1)
        self.local_rank, processes_here = said("LOCAL_RANK", 0), said("LOCAL_WORLD_SIZE", 1)
        self.device = torch.device(args.device)
        if self.device.type == "cuda":
            if processes_here > (gpus := torch.cuda.device_count()):
                raise ValueError(f"{processes_here} processes, and this machine has {gpus} GPUs; "
                                 "--nproc_per_node gives their number")
            # torch.cuda.set_device refuses a device without an index
            self.device = torch.device("cuda", self.local_rank if self.world > 1 else self.device.index or 0)
            torch.cuda.set_device(self.device)
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            # for what the CPUs agree on; reading a corpus may take long, and the others wait for it
            self.group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        if args.threads or self.world > 1:  # torchrun gives one; alone, torch's own number is the best guess
            torch.set_num_threads(args.threads or max(1, cores() // processes_here))
        torch.set_float32_matmul_precision("high")  # TF32 on the GPUs that have it
        if self.device.type == "cpu":
            keep_memory()
            draw_fast()
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # the CPU's, too: see autocast()
        # machines may differ: all take the first one's choice
        args.dtype = args.dtype or self.gather([pick_dtype(self.device)])[0]

    def __enter__(self):
        return self

    def __exit__(self, error, *rest):
        if self.lock is not None:
            os.close(self.lock)
        # NCCL waits here for all processes; one with an error may be alone
        if self.world > 1 and error in (None, Stop):
            dist.destroy_process_group()

    def say(self, *words):
        if self.rank == 0:
            try:
                print(*words, flush=True)
            except OSError:  # the terminal is gone, or what read the output; a run to be stopped still saves
                if not self.signals:
                    raise

    def once_per_machine(self, function):
        """Call function in one process of each machine; all get the result of the first, or an error."""
        result = None
        if self.local_rank == 0:
            try:
                result = function()
            except (ValueError, OSError) as error:
                result = error
        results = self.gather([result])
        if errors := [result for result in results if isinstance(result, Exception)]:
            raise errors[0]
        return results[0]

    def gather(self, items):
        """The lists of all processes, joined in the order of their ranks."""
        if self.world == 1:
            return items
        parts = [None] * self.world
        dist.all_gather_object(parts, items, group=self.group)
        return [item for part in parts for item in part]

    def sum(self, tensor):
        """The tensor summed over the processes, in place; one on the CPU by gloo, which waits for no GPU."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.group if tensor.device.type == "cpu" else None)
        return tensor

    def total(self, *numbers):
        """Each number summed over the processes."""
        return self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def wrap(self, model):
        """DistributedDataParallel; the model itself in a single process."""
        return torch.nn.parallel.DistributedDataParallel(model) if self.world > 1 else model

    def sync(self, parallel, last):
        """The context of a micro-batch: gradients are exchanged after the last one of a step only."""
        return parallel.no_sync() if self.world > 1 and not last else nullcontext()

    def autocast(self, length):
        return autocast(self.device, self.args.dtype, length)

    def to_device(self, batch):
        """{name: array} -> {name: tensor on the device}"""
        batch = {name: torch.from_numpy(array) for name, array in batch.items()}
        if self.device.type == "cuda":
            batch = {name: tensor.pin_memory().to(self.device, non_blocking=True)
                     for name, tensor in batch.items()}
        return batch

    def catch_signals(self):
        """From now on the first signal of each kind in SIGNALS is only noted in self.signals, so that a step
        can end and be saved; a second one of that kind ends the process."""
        def note(number, frame):
            self.signals.append(number)
            signal.signal(number, signal.SIG_DFL)
        for number in SIGNALS:
            signal.signal(number, note)

    def stopped(self, step, advice):
        """-> the Stop of a run that a signal ended, perhaps another process's."""
        return Stop(f"stopped at step {step:,}; {advice}", 128 + (self.signals or [signal.SIGTERM])[0])

    def describe(self):
        return (f"{self.device}, {self.args.dtype}, {torch.get_num_threads()} threads"
                + ", compiled" * self.args.compile + f", {self.world} processes" * (self.world > 1))


class Stop(BaseException):
    """The run ends before its time, by Stop(message, exit status); no `except Exception` may keep it."""


@contextmanager
def one_line_errors(script):
    """What is wrong with the input ends the process with one line and status 2; Ctrl-C with 130."""
    def interrupt(number, frame):
        raise Stop("interrupted", 128 + number)
    handlers = {number: signal.signal(number, interrupt) for number in SIGNALS}
    if hasattr(sys.stdout, "reconfigure"):  # where a terminal is not UTF-8 an accent is \xe9, and no error
        sys.stdout.reconfigure(errors="backslashreplace")
    status, speaks = 2, os.environ.get("LOCAL_RANK", "0") == "0"  # one process of a machine speaks for all
    try:
        yield
        return
    except Stop as stop:
        message, status = stop.args
    except BrokenPipeError:  # what reads the output has enough: head, or a pager that was left
        status, speaks = 128 + 13, False  # as SIGPIPE
    except (ValueError, OSError) as error:
        message, frames = error, traceback.extract_tb(error.__traceback__)
        folder = lambda file: os.path.dirname(os.path.realpath(file))
        at = [frame for frame in frames if folder(frame.filename) == folder(__file__)][-1]
        if isinstance(error, ValueError) and not (at is frames[-1] and (at.line or "").startswith("raise")):
            # of a library: more likely a mistake in the source than in the input
            message = f"{error} ({os.path.basename(at.filename)}, line {at.lineno})"
    except torch.OutOfMemoryError as error:
        speaks = True  # perhaps this process alone
        message = ("the GPU's memory is full; lower --batch_size, or in training raise --accumulation "
                   f"({first_line(error)})")
    except Exception as error:
        # BackendCompilerFailed and the like; by name, as to import them takes a second
        if not any(cls.__module__.startswith("torch._dynamo") for cls in type(error).__mro__):
            raise
        cause = getattr(error, "inner_exception", error)  # else only "backend=... raised:"
        message = f"torch.compile failed; leave out --compile, or give --no-compile: {first_line(cause)}"
        speaks = True
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if not speaks and status == 2:
        time.sleep(10)  # torchrun ends all processes with the first that ends: let it be the one that speaks
        speaks = True  # which has ended by now, unless the error is this process's alone
    if speaks:
        print(f"{script}: {message}", file=sys.stderr)
    if dist.is_available() and dist.is_initialized():
        # the others may wait for this process; torchrun ends them when it is gone
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]

# -----------------------------------------------------------------------------
# Precision and speed

def cores():
    """The cores that this process may use: taskset or SLURM may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_dtype(device):
    """bfloat16 where a GPU or an x86 processor has instructions for it. Asked, not timed: what else runs must
    not change the answer."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def keep_memory():
    """glibc returns every large block to the system when it is freed, and the next step waits for its pages
    to be zeroed, a sixth of its time. Here the process keeps what it had."""
    if platform.libc_ver()[0] == "glibc":
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


OVERRIDES = torch.library.Library("aten", "IMPL")  # they last as long as this object

def draw_fast():
    """Dropout's random numbers are a fifth of a step on the CPU. With 16 bits for each, and not 53 as
    PyTorch's, they take a fifth of that; a probability is then a multiple of 1/65,536."""
    def bernoulli_(tensor, p=0.5, *, generator=None):
        if p in (0, 1):
            return tensor.fill_(p)
        n = tensor.numel()
        bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-2**63, None, generator=generator)
        bits = bits.view(torch.int16)[:n].view(tensor.shape)
        return torch.lt(bits, min(round(p * 2**16) - 2**15, 2**15 - 1), out=tensor)
    with warnings.catch_warnings():  # that it takes the place of PyTorch's
        warnings.simplefilter("ignore")
        OVERRIDES.impl("bernoulli_.float", bernoulli_, "CPU", allow_override=True)


@contextmanager
def autocast(device, dtype, length):
    """The context of a forward pass of rows of `length` tokens: its precision and its attention kernel.

    On the CPU in bfloat16 PyTorch's fused kernel is slower than plain matrix products until the rows are
    long, and these are in float32 unless told otherwise, by a setting that is called cuda's, which Host()
    makes. 32 rows of 64 tokens, 4 heads of 64, forward and backward: 15.4 ms fused, 8.7 plain, 2.8 plain in
    bfloat16; with 256 tokens they draw.
    """
    plain = device.type == "cpu" and dtype == "bfloat16" and length < 256
    with torch.autocast(device.type, torch.bfloat16, dtype == "bfloat16"):
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            yield


def machine(device):
    """Its name: of the GPU, or of the CPU with the number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), cpu)
    return f"{cpu}, {cores()} cores"


# dense bfloat16 peak in TFLOP/s, from the data sheets; the first name that is in the GPU's counts
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
               "L40S": 362, "L4": 121, "RTX 4090": 165, "RTX 3090": 71}

def peak_flops(gpu):
    """FLOP/s of a GPU of that name; None for one that is not in the table."""
    gpu = gpu.replace("-", " ")
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", gpu)), None)


def flops_of_a_row(config, length, masked, sentence_task):
    """What a pretraining step needs at least for a row of `length` tokens, forward and backward: 6 for each
    weight and token that it multiplies, and in attention 12 T H for each token that asks T. In the last layer
    all tokens have keys and values; queries, output and MLP are only for those that a head reads, the masked
    ones and with a sentence task the first. Look-ups, norms, pooler and optimizer do not count."""
    T, H = length, config.hidden_size
    E = getattr(config, "embedding_size", H)  # ALBERT's; a matrix takes it to H
    layers = config.num_hidden_layers * getattr(config, "inner_group_num", 1)
    keys = layers * T  # tokens, over the layers
    queries = (layers - 1) * T + masked + sentence_task
    products = keys * 2 * H * H + queries * (2 * H * H + 2 * H * config.intermediate_size)
    products += masked * (H * E + E * config.vocab_size)
    if hasattr(config, "embedding_size"):
        products += T * E * H
    return 6 * products + 12 * T * H * queries

# -----------------------------------------------------------------------------
# Learning rates

def learning_rate(peak, progress, args):
    """progress: the share of the run that is over, 0 to 1. Up to the peak in the warmup, then by --schedule:
    down to 0 along a line or a cosine, or constant and in the end along a line."""
    if progress < args.warmup:
        return peak * progress / args.warmup
    after = (progress - args.warmup) / (1 - args.warmup)
    if args.schedule == "linear":
        return peak * (1 - after)
    if args.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * after))
    return peak * min(1.0, (1 - progress) / min(args.decay, 1 - args.warmup))


def run_length(args, steps_per_epoch, step=0):
    """The last step of a run that begins at `step`; None where it is measured in minutes. ValueError if it is
    over."""
    if args.dry_run:
        return step + 3
    last = max(1, round(args.epochs * steps_per_epoch)) if args.epochs else args.max_steps
    if last and step > last:
        raise ValueError(f"{args.out_dir} is at step {step:,} already, and the run ends at {last:,}")
    return last


def share_done(step, elapsed, max_steps, args):
    """How much of the run is over, 0 to 1: of its steps, counted at the middle of this one, or of its minutes
    (elapsed is in seconds). At 1 it ends."""
    return (step + 0.5) / max_steps if max_steps else elapsed / (60 * args.max_minutes)


def set_learning_rates(optimizers, progress, args):
    """Every group follows the schedule from its own peak: the rate that it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(group.setdefault("initial_lr", group["lr"]), progress, args)


def mean_of_steps(history, step, kept, host):
    """history: a tensor for each of the last steps, up to `step`: this process's share of the loss, of the
    gradient norm and so on -> a list of their means. Stop, saying what is `kept`, if one is not finite."""
    if not history:
        return []
    values = host.sum(torch.stack(history))
    if not values.isfinite().all():
        bad = step - len(history) + 1 + values.isfinite().all(1).tolist().index(False)
        raise Stop(f"the loss or its gradient is not finite at step {bad}; {kept}; try a lower --lr", 2)
    return values.mean(0).tolist()


def clock(seconds):
    """5025 -> 1:23:45"""
    return timedelta(seconds=max(0, int(seconds)))
