"""
LoRA in one file: train a pair of thin matrices beside a frozen one.

    lora.inject(model, r=8, alpha=16)          # freeze the model; adapters on query and value, head trainable
    ...                                        # train as ever: the optimizer gets what requires_grad
    lora.save(model, "out/adapter")            # a few hundred kB, in PEFT's layout
    lora.merge(model)                          # or: add the adapters to the weights and be rid of them
    lora.load(fresh_model, "out/adapter")      # ours, or one that PEFT wrote

Paper: Hu et al. 2021, https://arxiv.org/abs/2106.09685. A linear layer y = W x + b becomes

    y = W x + b + s B A x      A (r, in), B (out, r), s = alpha / r

A starts random and B at zero, so that training starts from the pretrained model. Rank-stabilised scaling
takes s = alpha / sqrt(r) (Kalajdzievski 2023). DoRA learns the length of every row of W + s B A apart from
its direction (Liu et al. 2024).

Works on any model that calls its nn.Linear layers. (nn.TransformerEncoderLayer and nn.MultiheadAttention take
their weights without a call; they are refused.) Where the model has a method hf_keys() -> {parameter: its
name in transformers}, as bert.py, roberta.py and albert.py, the files carry those names, and PEFT opens them.
"""

import json
import math
import os

import torch
import torch.nn as nn
from torch.nn import functional as F


class LoRALinear(nn.Linear):
    """A linear layer with an adapter. It shares weight and bias with `base`, under the names they had."""

    def __init__(self, base, r=8, alpha=16, dropout=0.0, rslora=False, dora=False):
        nn.Module.__init__(self)  # not nn.Linear's, which would make a weight of its own
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale = alpha / math.sqrt(r) if rslora else alpha / r
        self.dropout = nn.Dropout(dropout)  # on the adapter's input; every token has a mask of its own
        new = dict(device=base.weight.device, dtype=torch.float32)
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, **new))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, **new))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as the authors' code and PEFT
        self.lora_magnitude_vector = nn.Parameter(base.weight.detach().float().norm(dim=1)) if dora else None
        self.train(base.training)

    def forward(self, x):
        """(..., in) -> (..., out)"""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))  # once; the two products would keep a copy each
            z = self.dropout(x)
        else:  # the adapter computes in float32, beside a weight of 16 bits too
            z = self.dropout(x).to(self.lora_A.dtype)
        update = F.linear(F.linear(z, self.lora_A) * self.scale, self.lora_B)  # (..., r) between them
        if self.lora_magnitude_vector is None:
            y = F.linear(x, self.weight, self.bias)
            return y + update.to(y.dtype)
        y = F.linear(x, self.weight)
        y = self.row_scale().to(y.dtype) * (y + update.to(y.dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def row_scale(self):
        """DoRA: what every row of W + s B A is multiplied by (out,). The row's length is a constant for the
        gradient (paper, section 4.3)."""
        with torch.no_grad():
            length = self.adapted_weight().norm(dim=1)
        return self.lora_magnitude_vector / length

    def adapted_weight(self):
        """W + s B A (out, in), in float32."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.weight.float() + self.scale * self.lora_B.float() @ self.lora_A.float()

    @torch.no_grad()
    def merged(self):
        """-> a plain nn.Linear that computes the same: added up in float32, stored in the weight's dtype."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        matrix = self.adapted_weight()
        if self.lora_magnitude_vector is not None:
            matrix = self.row_scale()[:, None] * matrix
        linear.weight = nn.Parameter(matrix.to(self.weight.dtype))
        linear.bias = self.bias
        return linear


def inject(model, r=8, alpha=16, dropout=0.0, targets=("query", "value"), rslora=False, dora=False,
           modules_to_save=None):
    """Freeze the model and give the linear layers named in targets an adapter; returns the model.

    targets: last parts of module names ("query"), or whole ones. modules_to_save: names of modules that are
    trained and saved whole; default: the classifier, where there is one. A module that is used at several
    depths, as ALBERT's, has one adapter, applied at each use. ValueError for a target that names no linear
    layer, for one whose weight is used without a call, and for a model that has adapters already.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has LoRA adapters already; merge them first")
    if modules_to_save is None:
        modules_to_save = [name for name, _ in model.named_children() if name == "classifier"]
    if not (isinstance(r, int) and r > 0 and alpha > 0 and 0 <= dropout < 1):
        raise ValueError(f"LoRA: r = {r}, alpha = {alpha}, dropout = {dropout}: r must be a positive whole "
                         "number, alpha positive, dropout at least 0 and less than 1")
    saved = [model.get_submodule(name) for name in modules_to_save]
    if not targets:
        raise ValueError("LoRA: no targets, so there is nothing to adapt")
    apart = {id(module) for head in saved for module in head.modules()}
    linears = {name: module for name, module in model.named_modules()
               if isinstance(module, nn.Linear) and id(module) not in apart}
    chosen = {}
    for target in targets:
        found = [name for name in linears if name == target or name.rpartition(".")[2] == target]
        if not found:
            names = sorted({name.rpartition(".")[2] for name in linears})
            raise ValueError(f"LoRA: no linear layer is called {target!r}; there are {', '.join(names)}")
        chosen.update((name, linears[name]) for name in found)
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in chosen}
    for name, parent in parents.items():
        if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            raise ValueError(f"LoRA: {type(parent).__name__} takes the weight of {name} without calling it; "
                             "an adapter there would do nothing")
    model.requires_grad_(False)
    for head in saved:
        head.requires_grad_(True)
    for name, base in chosen.items():
        setattr(parents[name], name.rpartition(".")[2], LoRALinear(base, r, alpha, dropout, rslora, dora))
    model.lora = dict(r=r, alpha=alpha, dropout=dropout, rslora=rslora, dora=dora,
                      modules_to_save=list(modules_to_save))
    return model


def merge(model):
    """Add every adapter to its weight and put plain linear layers back, trainable; returns the model."""
    adapters = [(name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    if not adapters:
        raise ValueError("the model has no LoRA adapters to merge")
    for name, module in adapters:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.merged())
    del model.lora
    return model.requires_grad_(True)


# -----------------------------------------------------------------------------
# Files, as PEFT has them

# What adapter_config.json may say, for this file to compute what PEFT computes. Fields that are not here and
# not empty are refused: they name something that LoRALinear does not do.
ACCEPTED = {"peft_type": ("LORA",), "bias": ("none",), "fan_in_fan_out": (False, None),
            "init_lora_weights": (True, False, "gaussian", None)}  # others change the base weights
READ = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
IGNORED = ("base_model_name_or_path", "task_type", "inference_mode", "revision", "auto_mapping",
           "peft_version", "megatron_core", "qalora_group_size", "runtime_config",
           # the keys of the weights say which modules
           "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")


def their_names(model):
    """{parameter: its name in transformers}, or in the model itself where it knows no others."""
    return model.hf_keys() if hasattr(model, "hf_keys") else {name: name for name in model.state_dict()}


def their_modules(model, modules):
    """[names of modules] -> [their names in transformers]"""
    theirs, found = their_names(model), []
    for module in modules:
        name = next(name for name in theirs if name.startswith(module + "."))
        depth = name.count(".") - module.count(".")  # of the parameter below the module
        found.append(theirs[name].rsplit(".", depth)[0])
    return found


def file_keys(model):
    """{parameter of a model with adapters: its key in an adapter file}."""
    heads = tuple(name + "." for name in model.lora["modules_to_save"])
    keys = {}
    for name, theirs in their_names(model).items():
        if name.endswith((".lora_A", ".lora_B")):
            keys[name] = f"base_model.model.{theirs}.weight"
        elif name.endswith(".lora_magnitude_vector") or name.startswith(heads):
            keys[name] = f"base_model.model.{theirs}"
    return keys


def save(model, path, base=None):
    """Write adapter_config.json and adapter_model.safetensors, with the modules that are saved whole, into
    the directory path. base: a directory or hub name, of the model without adapters, for the reader."""
    from safetensors.torch import save as serialize
    state, options = model.state_dict(), model.lora
    weights = {key: state[name].detach().cpu().contiguous() for name, key in file_keys(model).items()}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    places = their_modules(model, [name for name in linears if isinstance(linears[name], LoRALinear)])
    last = {place.rpartition(".")[2] for place in places}  # "query" says it, unless other layers end so too
    every = [place for place in their_modules(model, linears) if place.rpartition(".")[2] in last]
    architecture = getattr(model, "architecture", "")
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base, "inference_mode": True, "bias": "none",
        "task_type": "SEQ_CLS" if architecture.endswith("ForSequenceClassification") else
                     "TOKEN_CLS" if architecture.endswith("ForTokenClassification") else None,
        "r": options["r"], "lora_alpha": options["alpha"], "lora_dropout": options["dropout"],
        "use_rslora": options["rslora"], "use_dora": options["dora"], "fan_in_fan_out": False,
        "target_modules": sorted(last) if set(every) == set(places) else places,
        "modules_to_save": their_modules(model, options["modules_to_save"]) or None}
    os.makedirs(path, exist_ok=True)
    for name, content in (("adapter_model.safetensors", serialize(weights, metadata={"format": "pt"})),
                          ("adapter_config.json", json.dumps(config, indent=2).encode() + b"\n")):
        file = os.path.join(path, name)
        with open(file + ".tmp", "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(file + ".tmp", file)  # whole or not at all


def read_config(path):
    """adapter_config.json of a directory. ValueError for what would be computed wrongly."""
    file = os.path.join(path, "adapter_config.json")
    with open(file, encoding="utf-8") as f:
        try:
            config = json.load(f)
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict) or not {"r", "lora_alpha"} <= set(config):
        raise ValueError(f"{file} is not the configuration of a LoRA adapter")
    for name, value in config.items():
        if value not in ACCEPTED[name] if name in ACCEPTED else value and name not in READ + IGNORED:
            raise ValueError(f"{file}: {name} is {value!r}; lora.py does not compute that")
    return config


def load(model, path):
    """Give a model without adapters those of a directory, ours or PEFT's, and the modules saved with them;
    returns the model, frozen as inject leaves it. ValueError where the adapter is another model's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    config, file = read_config(path), os.path.join(path, "adapter_model.safetensors")
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    modules = dict(zip(their_modules(model, linears), linears))
    names = {f"base_model.model.{theirs}": name for name, theirs in their_names(model).items()}
    state, r, dora = model.state_dict(), config["r"], bool(config.get("use_dora"))
    targets, expected = [], {}  # expected: {key: shape}
    for key in weights:
        place = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if key.endswith(".lora_A.weight") and place in modules:
            targets.append(modules[place])
            rows, columns = model.get_submodule(targets[-1]).weight.shape
            prefix = f"base_model.model.{place}.lora_"
            expected |= {prefix + "A.weight": (r, columns), prefix + "B.weight": (rows, r)}
            expected |= {prefix + "magnitude_vector": (rows,)} if dora else {}
        elif key in names:
            expected[key] = tuple(state[names[key]].shape)
    if not targets:
        raise ValueError(f"{file} is an adapter for another model: it has {min(weights, default='nothing')}")
    misfit = set(weights) ^ set(expected)
    if misfit:
        raise ValueError(f"{file} does not fit the model: only one of them has {min(misfit)}")
    for key, shape in expected.items():
        if tuple(weights[key].shape) != shape:
            raise ValueError(f"{file} does not fit the model: {key} is {tuple(weights[key].shape)} there and "
                             f"{shape} here")

    held, whole = {names[key] for key in weights if key in names}, []
    for name, module in model.named_modules():  # the largest modules of which the file holds every parameter
        inside = {f"{name}.{parameter}" for parameter in module.state_dict()}
        if inside and inside <= held and not name.startswith(tuple(f"{w}." for w in whole)):
            whole.append(name)
    inject(model, r, config["lora_alpha"], config.get("lora_dropout", 0.0), targets,
           config.get("use_rslora", False), dora, whole)
    state = model.state_dict()
    for name, key in file_keys(model).items():
        state[name].copy_(weights[key])
    return model
