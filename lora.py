"""
LoRA in one file: train a pair of thin matrices beside a frozen one.

    lora.inject(model, r=8, alpha=16)          # freeze the model; adapters on query and value, head trainable
                                               # (PEFT's default alpha is 8)
    ...                                        # train as ever: the optimizer gets what requires_grad
    lora.save(model, "out/adapter")            # 1.2 MB of bert-base's 440, in PEFT's layout
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
import warnings

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
        self.dropout = nn.Dropout(dropout)  # of the adapter's input. (With DoRA PEFT drops some of W's, too.)
        # float32 beside a weight of 16 bits, too, in which small steps would round to nothing
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
            x = x.to(torch.get_autocast_dtype(device))  # else both products cast it and keep a copy
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
        return self.lora_magnitude_vector / length.clamp_min(1e-12)  # a row of zeros stays one

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

    targets: module names, or their last parts ("query"); or "all-linear": every linear layer outside
    modules_to_save. modules_to_save: modules that are trained and saved whole; default: those whose names end
    in "classifier"; where there is none, in a model without hf_keys, the last linear layer stays plain, as it
    is likely to be a head. A module that is used several times, as ALBERT's layers, has one adapter, applied
    at each.
    ValueError for a target that names no linear layer, for one whose weight is used without a call, and for a
    model that has adapters already.
    """
    if not (isinstance(r, int) and r > 0 and alpha > 0 and 0 <= dropout < 1):
        raise ValueError(f"LoRA: r = {r}, alpha = {alpha}, dropout = {dropout}: r must be a positive whole "
                         "number, alpha positive, dropout at least 0 and less than 1")
    # in a model of another kind, where no head is named, the last linear layer is likely to be one
    guess_head = modules_to_save is None and not hasattr(model, "hf_keys")
    if modules_to_save is None:
        modules_to_save = [name for name, _ in model.named_children() if name.endswith("classifier")]
    modules_to_save = [modules_to_save] if isinstance(modules_to_save, str) else list(modules_to_save)
    if missing := set(modules_to_save) - {name for name, _ in model.named_modules()}:
        raise ValueError(f"LoRA: modules_to_save: there is no module {min(missing)!r}; give whole names")
    heads = [model.get_submodule(name) for name in modules_to_save]
    targets = [targets] if isinstance(targets, str) else list(targets)
    layers = layers_to_adapt(model, targets, heads, guess_head)
    model.requires_grad_(False)
    for head in heads:
        head.requires_grad_(True)
    replace(model, {base: LoRALinear(base, r, alpha, dropout, rslora, dora) for base in layers})
    model.lora = dict(r=r, alpha=alpha, dropout=dropout, rslora=rslora, dora=dora,
                      modules_to_save=modules_to_save)
    return model


def layers_to_adapt(model, targets, heads, guess_head):
    """-> the linear layers outside the heads that the targets name; ValueError as inject()."""
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has LoRA adapters already; merge them first")
    if not targets:
        raise ValueError("LoRA: no targets, so there is nothing to adapt")
    inside_heads = {module for head in heads for module in head.modules()}
    tied = hasattr(model, "hf_keys") and hasattr(model, "mlm")  # one of our models for masks
    if tied and model.encoder.embeddings.word in inside_heads:
        raise ValueError("LoRA: PEFT would train the word embeddings apart from the output matrix, and here "
                         "both are one: leave them out of modules_to_save")
    saved = {id(p) for head in heads for p in head.parameters()}
    for name, module in model.named_modules():
        if module not in inside_heads and any(id(p) in saved for p in module.parameters(recurse=False)):
            raise ValueError(f"LoRA: {name} has a weight of a module in modules_to_save, and PEFT would "
                             "train them apart")
    linears = {name: module for name, module in model.named_modules()
               if isinstance(module, nn.Linear) and module not in inside_heads}
    likely_head = list(linears)[-1] if linears and guess_head and not heads else None
    if targets == ["all-linear"]:
        targets = [name for name in linears if name != likely_head]
    adapted = {}
    for target in targets:
        matches = {name: linear for name, linear in linears.items() if target in (name, name.split(".")[-1])}
        if not matches:
            names = sorted({name.split(".")[-1] for name in linears})
            raise ValueError(f"LoRA: no linear layer is called {target!r}; there are {', '.join(names)}")
        adapted.update(matches)
    if not adapted:
        raise ValueError("LoRA: no linear layer but the head, so there is nothing to adapt")
    for name, linear in adapted.items():
        is_plain = type(linear).forward is nn.Linear.forward and "weight" in linear._parameters
        if not is_plain or linear._forward_hooks or linear._forward_pre_hooks:
            raise ValueError(f"LoRA: {name} is no plain nn.Linear: it has hooks, or a forward or weight of "
                             "its own, which an adapter in its place would lose")
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            raise ValueError(f"LoRA: {type(parent).__name__} takes the weight of {name} without calling it; "
                             "an adapter there would do nothing")
    if likely_head and likely_head not in adapted:
        warnings.warn(f"LoRA: {likely_head}, the last linear layer, stays as it is; a new head is to be "
                      "named in modules_to_save", stacklevel=3)
    return list(adapted.values())


def merge(model):
    """Add every adapter to its weight and put plain linear layers back, trainable; returns the model."""
    adapters = [module for module in model.modules() if isinstance(module, LoRALinear)]
    if not adapters:
        raise ValueError("the model has no LoRA adapters to merge")
    replace(model, {module: module.merged() for module in adapters})
    for module in model.modules():  # perhaps the adapters were given to a part of the model
        vars(module).pop("lora", None)
    return model.requires_grad_(True)


def replace(model, new):
    """Put new[module] wherever the model has that module: one may stand in several places."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                setattr(parent, name, new[child])

# -----------------------------------------------------------------------------
# Files, as PEFT has them

# Fields of adapter_config.json: those that are read or change nothing here, and those that must have one of a
# few values for this file to compute what PEFT computes. Any other field has to be empty: set, it asks for
# something that this file does not compute.
KNOWN = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "base_model_name_or_path", "task_type",
         "inference_mode", "revision", "auto_mapping", "peft_version", "megatron_core", "qalora_group_size",
         "runtime_config",
         # the keys of the weights say which modules
         "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
ACCEPTED = {"peft_type": ("LORA",), "bias": ("none",), "fan_in_fan_out": (False, None),
            # others change the base weights
            "init_lora_weights": (True, False, "gaussian", "orthogonal", None)}
EMPTY = (None, False, "", [], {})
# endings of transformers' class names, and what PEFT's AutoPeftModel looks for
TASK_TYPES = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS",
              "ForQuestionAnswering": "QUESTION_ANS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
              "ForConditionalGeneration": "SEQ_2_SEQ_LM"}


def their_names(model):
    """{parameter: its name in transformers}, or in the model itself where it knows no others: of a module in
    several places the first."""
    if hasattr(model, "hf_keys"):
        return model.hf_keys()
    modules = dict(model.named_modules())  # each once
    return {name: name for name in model.state_dict() if name.rpartition(".")[0] in modules}


def their_module(names, module):
    """The name in transformers of a module: the start that those of its parameters have in common."""
    inside = [theirs.split(".")[:-1] for name, theirs in names.items() if name.startswith(module + ".")]
    return ".".join(os.path.commonprefix(inside))


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
    state, options, names = model.state_dict(), model.lora, their_names(model)
    weights = {key: state[name].cpu().contiguous() for name, key in file_keys(model).items()}
    linears = {their_module(names, name): module for name, module in model.named_modules()
               if isinstance(module, nn.Linear)}
    adapted = [name for name, module in linears.items() if isinstance(module, LoRALinear)]
    endings = {name.split(".")[-1] for name in adapted}  # "query" says it, unless other layers end so too
    alike = [name for name in linears if name.split(".")[-1] in endings]
    task_type = next((task_type for ending, task_type in TASK_TYPES.items()
                      if type(model).__name__.endswith(ending)), None)
    whole = {name.split(".")[-1] for name in options["modules_to_save"]}
    if task_type in ("SEQ_CLS", "TOKEN_CLS") and not whole & {"classifier", "score"}:
        task_type = None  # PEFT would want the head in the file
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base, "inference_mode": True, "bias": "none",
        "task_type": task_type,
        "r": options["r"], "lora_alpha": options["alpha"], "lora_dropout": options["dropout"],
        "use_rslora": options["rslora"], "use_dora": options["dora"], "fan_in_fan_out": False,
        "target_modules": sorted(endings) if alike == adapted else adapted,
        "modules_to_save": [their_module(names, name) for name in options["modules_to_save"]] or None}
    os.makedirs(path, exist_ok=True)
    for name, content in (("adapter_model.safetensors", serialize(weights, metadata={"format": "pt"})),
                          ("adapter_config.json", json.dumps(config, indent=2).encode() + b"\n")):
        with open(os.path.join(path, name), "wb") as f:
            f.write(content)


def is_adapter(path):
    return os.path.isfile(os.path.join(path, "adapter_config.json"))


def read_config(path):
    """adapter_config.json of a directory. ValueError for what would be computed wrongly."""
    file = os.path.join(path, "adapter_config.json")
    with open(file, encoding="utf-8") as f:
        try:
            config = json.load(f)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict) or not {"r", "lora_alpha"} <= set(config):
        raise ValueError(f"{file} is not the configuration of a LoRA adapter")
    config["lora_dropout"] = config.get("lora_dropout") or 0.0
    for name, kinds in (("r", int), ("lora_alpha", (int, float)), ("lora_dropout", (int, float)),
                        ("base_model_name_or_path", (str, type(None)))):
        if not isinstance(config.get(name), kinds) or isinstance(config.get(name), bool):
            raise ValueError(f"{file}: {name} is {config.get(name)!r}")
    for name, value in config.items():
        if name not in KNOWN and value not in ACCEPTED.get(name, EMPTY):
            raise ValueError(f"{file}: {name} is {value!r}; lora.py does not compute that")
    return config


def read_weights(file):
    """{key: tensor} of an adapter_model.safetensors. ValueError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    for key, tensor in weights.items():
        counts = key.endswith(".num_batches_tracked")  # a BatchNorm's, in a module that is saved whole
        if not ((tensor.is_floating_point() or counts) and tensor.isfinite().all()):
            raise ValueError(f"{file}: {key} is {tensor.dtype}, or has a number that is not finite")
    return weights


def load(model, path):
    """Give a model without adapters those of a directory, ours or PEFT's, and the modules saved with them;
    returns the model, frozen as inject leaves it. ValueError where the adapter is another model's."""
    config, file = read_config(path), os.path.join(path, "adapter_model.safetensors")
    weights = read_weights(file)
    names = {f"base_model.model.{theirs}": name for name, theirs in their_names(model).items()}
    state, r, dora = model.state_dict(), config["r"], bool(config.get("use_dora"))
    targets, shapes = [], {}  # shapes: those that the model expects
    for key in weights:
        place = key.removesuffix(".lora_A.weight")
        target = names.get(place + ".weight", "").removesuffix(".weight")  # the layer of the adapter
        if key in names:
            shapes[key] = tuple(state[names[key]].shape)
        elif target and isinstance(model.get_submodule(target), nn.Linear):
            targets.append(target)
            rows, columns = state[target + ".weight"].shape
            shapes[f"{place}.lora_A.weight"] = (r, columns)
            shapes[f"{place}.lora_B.weight"] = (rows, r)
            if dora:
                shapes[f"{place}.lora_magnitude_vector"] = (rows,)
    if not targets:
        raise ValueError(f"{file} is an adapter for another model: it has {min(weights, default='nothing')}")
    given = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    for key in sorted(shapes.keys() | given.keys()):
        if shapes.get(key) != given.get(key):
            raise ValueError(f"{file} does not fit the model: {key} is {given.get(key, 'missing')} there and "
                             f"{shapes.get(key, 'missing')} here")

    stored, whole = {names[key] for key in weights if key in names}, []
    for name, module in model.named_modules():  # the largest modules of which the file holds every parameter
        inside = {f"{name}.{parameter}" for parameter in module.state_dict()}
        if inside and inside <= stored and not name.startswith(tuple(f"{outer}." for outer in whole)):
            whole.append(name)
    if alone := [name for name in stored if not name.startswith(tuple(f"{module}." for module in whole))]:
        raise ValueError(f"{file} does not fit the model: it has {min(alone)} without the rest of its module")
    if others := [name for name, module in model.named_modules() if isinstance(module, nn.Linear)
                  and name.split(".")[-1] in targets and name not in targets]:
        raise ValueError(f"{file} adapts {others[0].split('.')[-1]}, and not {others[0]}; inject() cannot")
    inject(model, r, config["lora_alpha"], config["lora_dropout"], targets,
           config.get("use_rslora", False), dora, whole)
    state = model.state_dict()
    for name, key in file_keys(model).items():
        state[name].copy_(weights[key])
    return model
