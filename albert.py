"""
ALBERT in one file: the model, its heads, its sizes, and its Hugging Face checkpoints.

Paper: Lan et al. 2019, https://arxiv.org/abs/1909.11942. Reference: google-research/albert, modeling.py.

What sets ALBERT apart (`diff bert.py albert.py` is the lesson):
  - factorised embeddings: tokens have E numbers, and one matrix takes them to H
  - layers share their weights: one group of layers, run num_hidden_layers times
  - the second task is sentence order (SOP): have the two segments changed places?
  - the GELU is the tanh approximation (transformers' choice: Google's code has it in BERT, too), and dropout
    is 0, except 0.1 before a classifier, as in the v2 checkpoints

Shapes: B rows in a batch, T tokens in a row, H hidden size, nh heads of size D = H / nh,
Q positions returned (in pretraining the K masked ones), V vocabulary, L labels, E embedding size.
"""

import json
import os
import re
import sys
import warnings
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import torch
import torch.nn as nn
from torch.nn import functional as F

# -----------------------------------------------------------------------------
# Configuration, with the field names of Hugging Face's config.json

MODEL_TYPE = "albert"      # in config.json
SENTENCE_TASK = "sop"      # the second pretraining task
TOKENIZER = "unigram"      # the kind to train, as published
DEFAULT_PRESET = {"cpu": "albert-laptop", "cuda": "albert-8m"}  # what to pretrain on each
ACTIVATIONS = {"gelu": F.gelu, "gelu_new": partial(F.gelu, approximate="tanh"), "relu": F.relu}

@dataclass
class Config:
    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 768
    num_hidden_layers: int = 12                  # how many times a group is applied
    num_hidden_groups: int = 1                   # sets of weights that those share
    inner_group_num: int = 1                     # layers in a group
    num_attention_heads: int = 12
    intermediate_size: int = 3072                # width of the MLP in each layer
    hidden_act: str = "gelu_new"                 # one of ACTIVATIONS
    max_position_embeddings: int = 512           # the longest row
    type_vocab_size: int = 2                     # token types
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout_prob: float = 0.1
    initializer_range: float = 0.02              # standard deviation of fresh weights
    pad_token_id: int = 0
    num_labels: int = 2                          # of a classifier; 1 is a regression
    id2label: dict = None                        # their names; sets num_labels; None: LABEL_0, ...
    problem_type: str = None                     # see classification_loss

    def __post_init__(self):
        check_config(self)
        if not 0 < self.num_hidden_groups <= self.num_hidden_layers or self.inner_group_num > 1000:
            raise ValueError(f"config: {self.num_hidden_groups} groups of {self.inner_group_num} for "
                             f"{self.num_hidden_layers} layers")

    @property
    def longest_row(self):
        """The most tokens that a row can have."""
        return self.max_position_embeddings


def preset(layers, hidden, heads, **more):
    return {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
            "intermediate_size": 4 * hidden, **more}

PRESETS = {
    "albert-tiny": preset(2, 128, 2),  # not published; for tests
    "albert-base-v2": preset(12, 768, 12),
    "albert-large-v2": preset(24, 1024, 16),
    "albert-xlarge-v2": preset(24, 2048, 16),
    "albert-8m": preset(6, 576, 9, intermediate_size=2048),  # a size to pretrain at home
    # best for four minutes on two cores: one layer, larger initial weights
    "albert-laptop": preset(1, 256, 8, initializer_range=0.06),
}

# -----------------------------------------------------------------------------
# The encoder

class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.longest_row = config.longest_row

    def forward(self, input_ids, token_type_ids):
        T = input_ids.shape[1]
        if T > self.longest_row:
            raise ValueError(f"a row of {T} tokens is longer than the model's {self.longest_row} positions")
        types = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        # Padding on the left shifts a row's positions, as in the reference. Pad on the right.
        x = self.word(input_ids) + types + self.position.weight[:T]  # (B, T, E)
        return self.dropout(self.norm(x))


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)  # holds p; the fused kernel drops

    def forward(self, x, context, attn_mask):
        """Queries come from x (B, Q, H), keys and values from context (B, T, H) -> (B, Q, H). Both are the
        same, but in the last layer x may be a few positions of it. attn_mask (B, 1, 1, T): where to look;
        None: everywhere."""
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, T, H) -> (B, nh, T, D)
                   for y in (self.query(x), self.key(context), self.value(context)))
        dropout = self.dropout.p if self.training else 0.0
        # no causal mask, unlike GPT: every token sees those before it and those after it
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, nh, Q, D) -> (B, Q, H)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACTIVATIONS[config.hidden_act]
        self.fc_out = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.fc_out(self.act(self.fc_in(x)))


class Layer(nn.Module):
    """Post-LN, as published: normalise after adding. (GPT-2 and most since normalise before.)"""

    def __init__(self, config):
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, attn_mask, positions=None):
        """(B, T, H) -> (B, T, H); with positions (B, Q) -> (B, Q, H), computed only there."""
        context = x
        if positions is not None:
            x = x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))  # (B, T, H) -> (B, Q, H)
        x = self.attention_norm(x + self.dropout(self.attention(x, context, attn_mask)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


def init_module(module, std):
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, (nn.Linear, nn.LayerNorm, MLMHead)):
        nn.init.zeros_(module.bias)


class Pretrained(nn.Module):
    """What all models below share; the functions stand at the end of this file."""

    def init_weights(self):
        for module in self.modules():
            init_module(module, self.config.initializer_range)

    def hf_keys(self):
        return hf_keys(self)

    def save_pretrained(self, path):
        """Write config.json and model.safetensors into the directory path; transformers opens it."""
        save_checkpoint(self, path)

    @classmethod
    def from_pretrained(cls, path_or_name, **overrides):
        """Load a directory, or a name on the Hugging Face hub; float32, eval mode. overrides replace fields
        of its config: num_labels=3, hidden_dropout_prob=0.0. A head that the checkpoint lacks, or has for
        another num_labels, gets fresh weights, a line on stderr and a place in the list model.fresh.
        ValueError or OSError, in one line, for a damaged file, a parameter that is missing or misshapen, and
        a key that nothing uses."""
        return load_checkpoint(cls, path_or_name, overrides)


class Encoder(Pretrained):
    def __init__(self, config, pooler=True):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.embedding_to_hidden = nn.Linear(config.embedding_size, config.hidden_size)
        self.groups = nn.ModuleList(nn.ModuleList(Layer(config) for _ in range(config.inner_group_num))
                                    for _ in range(config.num_hidden_groups))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if pooler else None
        self.init_weights()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, positions=None):
        """input_ids, attention_mask, token_type_ids (B, T) -> (B, T, H). attention_mask: 1 for tokens, 0 for
        padding; None: no padding, which is faster. positions (B, Q): return only these -> (B, Q, H), the same
        numbers for less work: the last layer computes keys and values everywhere, and the rest only there."""
        x = self.embedding_to_hidden(self.embeddings(input_ids, token_type_ids))  # (B, T, E) -> (B, T, H)
        attn_mask = None if attention_mask is None else attention_mask[:, None, None].bool()  # (B, 1, 1, T)
        groups, depth = self.config.num_hidden_groups, self.config.num_hidden_layers
        # rounded as in transformers: of 14 groups for 18 layers, layer 9 takes group 6, not 7
        layers = [layer for i in range(depth) for layer in self.groups[int(i / (depth / groups))]]
        for layer in layers[:-1]:
            x = layer(x, attn_mask)
        return layers[-1](x, attn_mask, positions)

    def pool(self, x):
        """(B, T, H) -> (B, H), a summary of each row, read from its first token, [CLS] or <s>."""
        return torch.tanh(self.pooler(x[:, 0]))

# -----------------------------------------------------------------------------
# Heads

class MLMHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.act = ACTIVATIONS[config.hidden_act]
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x, word_embeddings, candidates=None, corrections=None):
        """(B, K, H) -> logits (B, K, V); with candidates (C,) -> (B, K, C), over these ids only, with
        corrections (C,) added. The output matrix is that of the word embeddings (tied)."""
        x, bias = self.norm(self.act(self.dense(x))), self.bias
        if candidates is not None:
            word_embeddings, bias = F.embedding(candidates, word_embeddings), bias[candidates] + corrections
        return F.linear(x, word_embeddings, bias)


class ForPreTraining(Pretrained):
    """Masked language model and sentence order prediction."""

    def __init__(self, config):
        super().__init__()
        # in transformers the sentence head has as many outputs as the config has labels
        self.config = config = replace(config, num_labels=2, id2label=None)
        self.encoder = Encoder(config)
        self.mlm = MLMHead(config)
        self.sop = nn.Linear(config.hidden_size, 2)
        self.dropout = head_dropout(config)
        self.init_weights()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, positions=None, labels=None,
                sentence_labels=None, candidates=None, corrections=None):
        """input_ids (B, T), already masked (data.mask_tokens); positions (B, K), of the masks, None: all T;
        labels (B, K), the tokens that stood there, -100 ignored; sentence_labels (B,): 0 if the segments are
        in order, 1 if they have changed places.

        Without labels -> logits (B, K, V), sentence_logits (B, 2). With -> the loss, and a dict of its parts
        and the accuracies. The loss is the sum of the tasks' losses, each a mean over its own targets.

        candidates (C,), corrections (C,): a sample of the vocabulary to train with, and what is added to
        their logits (data.sampled_softmax). Then logits are (B, K, C), and labels are places in candidates.
        """
        # V is large, and most positions have no target: only the masked ones go through the head, and the
        # first, from which the sentence task reads.
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        positions = F.pad(positions, (1, 0))  # (B, 1 + K), beginning with 0
        x = self.encoder(input_ids, attention_mask, token_type_ids, positions)  # (B, 1 + K, H)
        logits = self.mlm(x[:, 1:], self.encoder.embeddings.word.weight, candidates, corrections)
        sentence_logits = self.sop(self.dropout(self.encoder.pool(x)))
        if labels is None:
            return logits, sentence_logits
        mlm_loss, mlm_accuracy = loss_and_accuracy(logits, labels)
        parts = {"mlm_loss": mlm_loss, "mlm_accuracy": mlm_accuracy}
        if sentence_labels is None:
            return mlm_loss, parts
        sentence_loss, sentence_accuracy = loss_and_accuracy(sentence_logits, sentence_labels)
        parts.update(sentence_loss=sentence_loss, sentence_accuracy=sentence_accuracy)
        return mlm_loss + sentence_loss, parts


class ForSequenceClassification(Pretrained):
    """A class, or a number, for a sentence or a pair of sentences."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
        """labels (B,), for multi_label_classification (B, L) -> logits (B, L), loss or None."""
        first = torch.zeros_like(input_ids[:, :1])  # the only position that is read
        x = self.encoder(input_ids, attention_mask, token_type_ids, first)  # (B, 1, H)
        logits = self.classifier(self.dropout(self.encoder.pool(x)))
        return logits, None if labels is None else classification_loss(logits, labels, self.config)


class ForTokenClassification(Pretrained):
    """A class for every token."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, pooler=False)
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
        """labels (B, T), -100 ignored -> logits (B, T, L), loss or None."""
        logits = self.classifier(self.dropout(self.encoder(input_ids, attention_mask, token_type_ids)))
        return logits, None if labels is None else loss_and_accuracy(logits, labels)[0]


def head_dropout(config):
    return nn.Dropout(config.classifier_dropout_prob)


def loss_and_accuracy(logits, labels):
    """logits (..., C), labels (...) -> mean cross-entropy and accuracy, over the labels that are not -100."""
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    loss = F.cross_entropy(logits, labels, ignore_index=-100)
    return loss, (logits.argmax(-1) == labels).sum() / (labels != -100).sum()


def classification_loss(logits, labels, config):
    """-> the loss that config.problem_type names; None: squared error where L is 1, else cross-entropy."""
    if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
        return F.mse_loss(logits.float(), labels.float().view_as(logits))
    if config.problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
    return loss_and_accuracy(logits, labels)[0]

# -----------------------------------------------------------------------------
# The model ends here; what follows reads and writes its checkpoints, in the format of Hugging Face.

FAMILY, RENAMED = "Albert", {"Encoder": "Model"}  # names of their classes
BASE = "albert."  # in a file with a head the encoder's keys begin with this, our names with "encoder."
KEYS = {  # our module: theirs; {} stands for a number; the parameters have the same names on both sides
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "embedding_to_hidden": "encoder.embedding_hidden_mapping_in",
    "groups.{}.{}.attention.query": "encoder.albert_layer_groups.{}.albert_layers.{}.attention.query",
    "groups.{}.{}.attention.key": "encoder.albert_layer_groups.{}.albert_layers.{}.attention.key",
    "groups.{}.{}.attention.value": "encoder.albert_layer_groups.{}.albert_layers.{}.attention.value",
    "groups.{}.{}.attention.out": "encoder.albert_layer_groups.{}.albert_layers.{}.attention.dense",
    "groups.{}.{}.attention_norm": "encoder.albert_layer_groups.{}.albert_layers.{}.attention.LayerNorm",
    "groups.{}.{}.mlp.fc_in": "encoder.albert_layer_groups.{}.albert_layers.{}.ffn",
    "groups.{}.{}.mlp.fc_out": "encoder.albert_layer_groups.{}.albert_layers.{}.ffn_output",
    "groups.{}.{}.mlp_norm": "encoder.albert_layer_groups.{}.albert_layers.{}.full_layer_layer_norm",
    "pooler": "pooler",
    "mlm": "predictions",
    "mlm.dense": "predictions.dense",
    "mlm.norm": "predictions.LayerNorm",
    "sop": "sop_classifier.classifier",
    "classifier": "classifier",
}
HF_DEFAULTS = {"num_attention_heads": 64}  # transformers' default, which no shape would betray
# A file may lack a head or have another, and may hold tied parameters twice.
HEADS = (BASE + "pooler.", "predictions.", "sop_classifier.", "classifier.", "qa_outputs.")
TIED = {KEYS["mlm"] + ".decoder.weight": BASE + "embeddings.word_embeddings.weight",
        KEYS["mlm"] + ".decoder.bias": KEYS["mlm"] + ".bias"}


def hf_keys(model):
    """{name of each parameter: its key in a file}. ValueError for a module that KEYS does not name."""
    keys = {}
    for name in model.state_dict():
        module, _, parameter = name.removeprefix("encoder.").rpartition(".")
        pattern = re.sub(r"\b\d+\b", "{}", module)  # layers.7.mlp.fc_in -> layers.{}.mlp.fc_in
        theirs = KEYS.get(pattern, "")
        if not theirs or theirs.count("{}") != pattern.count("{}"):
            raise ValueError(f"{name} has no key: add {pattern!r} to KEYS in {os.path.basename(__file__)}")
        base = BASE if name.startswith("encoder.") else ""
        keys[name] = base + theirs.format(*re.findall(r"\b\d+\b", module)) + "." + parameter
    return keys


def hf_config(model):
    """What config.json says."""
    name, config = type(model).__name__, asdict(model.config)
    del config["num_labels"]  # transformers counts id2label
    return {"architectures": [FAMILY + RENAMED.get(name, name)], "model_type": MODEL_TYPE, **config,
            "label2id": {label: i for i, label in config["id2label"].items()}}


def save_checkpoint(model, path):
    """Write both files. ValueError for a model with adapters, OSError where they cannot be written."""
    from safetensors.torch import save
    if any(".lora_" in name for name in model.state_dict()):
        raise ValueError("the model has LoRA adapters: merge them first, or save them alone by lora.save")
    keys, config = hf_keys(model), json.dumps(hf_config(model), indent=2) + "\n"
    weights = {keys[name]: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    os.makedirs(path, exist_ok=True)
    for name, content in (("model.safetensors", save(weights, metadata={"format": "pt"})),
                          ("config.json", config.encode())):
        with open(os.path.join(path, name), "wb") as f:
            f.write(content)


def load_checkpoint(cls, path_or_name, overrides):
    """-> a model of the class cls; Pretrained.from_pretrained says what is refused."""
    path = local_directory(path_or_name)
    config, weights = read_config(path, overrides), read_weights(path)
    with torch.device("meta"):  # shapes without memory: an absurd config allocates nothing
        model = cls(config)
    base = "" if hasattr(model, "encoder") else BASE  # for an encoder alone
    keys = {name: base + key for name, key in hf_keys(model).items()}
    if not any(key.startswith(BASE) for key in weights):  # the file of an encoder alone
        weights = {BASE + key: tensor for key, tensor in weights.items()}
    for copy, original in TIED.items():  # a file may hold the one, the other, or both
        if copy in weights:
            weights.setdefault(original, weights[copy])

    for name, parameter in model.state_dict().items():
        key, shape = keys[name], tuple(parameter.shape)
        if key in weights and weights[key].shape != shape:
            if key.startswith("classifier.") and {"num_labels", "id2label"} & set(overrides):
                del weights[key]  # a head for other classes
            else:
                raise ValueError(f"{path}: {key} has the shape {tuple(weights[key].shape)}, not {shape}")
    for key in sorted(set(keys.values()) - set(weights)):
        if key.startswith(BASE) and not key.startswith(HEADS):
            raise ValueError(f"{path}: the checkpoint lacks {key}")
    for key in sorted(set(weights) - set(keys.values())):
        if not key.startswith(HEADS):
            raise ValueError(f"{path}: nothing uses {key}")
        if TIED.get(key) in weights and not torch.equal(weights[key], weights[TIED[key]]):
            raise ValueError(f"{path}: {key} differs from {TIED[key]}; here they are one")

    model.to_empty(device="cpu")
    model.load_state_dict({name: weights[key] for name, key in keys.items() if key in weights}, strict=False)
    model.fresh = sorted({name.rpartition(".")[0] for name, key in keys.items() if key not in weights})
    for module in model.fresh:
        print(f"{path}: no {module} in the checkpoint; it starts with fresh weights", file=sys.stderr)
        init_module(model.get_submodule(module), config.initializer_range)
    return model.eval()


def local_directory(path_or_name):
    """A directory is itself; anything else is a name on the hub, downloaded once: pytorch_model.bin only if
    there are no safetensors."""
    if os.path.isdir(path_or_name):
        return path_or_name
    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        from huggingface_hub import snapshot_download
        path = snapshot_download(str(path_or_name), allow_patterns=patterns)
        if not any(name.endswith(".safetensors") for name in os.listdir(path)):
            path = snapshot_download(str(path_or_name), allow_patterns=["pytorch_model.bin"])
        return path
    except Exception as error:  # no network, no such name, no access, a proxy: errors of every kind
        raise FileNotFoundError(f"{path_or_name}: no such directory here, and the hub did not give it: "
                                f"{(str(error) or type(error).__name__).splitlines()[0]}") from error


def read_config(path, overrides):
    """config.json -> Config. ValueError for what this file would compute wrongly."""
    expected = {"model_type": MODEL_TYPE, "position_embedding_type": "absolute", "is_decoder": False,
                "tie_word_embeddings": True}
    try:
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            config = {**HF_DEFAULTS, **expected, **json.load(f)}
        if overrides.get("num_labels") not in (None, len(config.get("id2label") or ())):
            config["id2label"] = None  # they are other classes' names
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}/config.json is not the JSON of a configuration: {error}") from error
    for name, value in expected.items():
        if config[name] != value:
            raise ValueError(f"{path}/config.json: {name} is {config[name]!r}; this file wants {value!r}")
    known = {field.name: config[field.name] for field in fields(Config) if field.name in config}
    return Config(**known | overrides)


def check_config(config):
    """Fill in id2label. ValueError for a value of the wrong type, out of range, or at odds with another."""
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if value is None and field.default is None:
            continue
        if field.type is int:
            least = 0 if name == "pad_token_id" else 1
            most = 1000 if name == "num_hidden_layers" else 10**7
            fits = type(value) is int and least <= value <= most
            wanted = f"a whole number from {least} to {most:,}"
        elif field.type is float:
            fits, wanted = isinstance(value, (int, float)) and 0 <= value <= 1, "a number from 0 to 1"
        else:
            fits, wanted = isinstance(value, field.type), f"a {field.type.__name__}"
        if not fits:
            raise ValueError(f"config: {name} is {value!r}, not {wanted}")
    if config.initializer_range == 0:
        raise ValueError("config: initializer_range is 0, and all fresh weights would be the same")
    heads, width = config.num_attention_heads, config.hidden_size
    if width % heads:
        raise ValueError(f"config: {heads} heads do not divide a width of {width}")
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"config: hidden_act {config.hidden_act!r} is none of {', '.join(ACTIVATIONS)}")
    problems = ("regression", "single_label_classification", "multi_label_classification")
    if config.problem_type not in (None, *problems):
        raise ValueError(f"config: problem_type {config.problem_type!r} is none of {', '.join(problems)}")
    if config.pad_token_id >= config.vocab_size:
        raise ValueError(f"config: pad_token_id {config.pad_token_id} in a vocabulary of {config.vocab_size}")
    if not config.id2label:
        config.id2label = {i: f"LABEL_{i}" for i in range(config.num_labels)}
    # JSON makes the ids strings, and some files sort them as such
    config.id2label = dict(sorted((int(i), label) for i, label in config.id2label.items()))
    config.num_labels = len(config.id2label)
    if not all(isinstance(label, str) for label in config.id2label.values()):
        raise ValueError(f"config: the names in id2label are {list(config.id2label.values())}, not strings")
    if list(config.id2label) != list(range(config.num_labels)):
        raise ValueError(f"config: the ids of id2label are {list(config.id2label)}, not 0, 1, ...")


def read_weights(path):
    """{key: float32 tensor} of a directory. Only tensors are read: no file can make code run."""
    from safetensors.torch import load_file
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    file = next(filter(os.path.exists, (os.path.join(path, name) for name in names)), None)
    if file is None:
        raise FileNotFoundError(f"{path} has none of {', '.join(names)}")
    try:
        if file.endswith(".safetensors"):
            weights = load_file(file)
        elif file.endswith(".bin"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a pickle protocol other than torch's own
                weights = torch.load(file, map_location="cpu", weights_only=True)
        else:
            with open(file, encoding="utf-8") as f:
                shards = sorted({os.path.basename(name) for name in json.load(f)["weight_map"].values()})
            weights = {key: t for name in shards for key, t in load_file(os.path.join(path, name)).items()}
        # Old files have a buffer of positions, those of 2018 TensorFlow's names for a LayerNorm's parameters.
        weights = {key.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): tensor
                   for key, tensor in weights.items() if not key.endswith("position_ids")}
        for key, tensor in weights.items():
            if not (tensor.is_floating_point() and tensor.isfinite().all()):
                raise ValueError(f"{key} is {tensor.dtype}, or has a number that is not finite")
        return {key: tensor.float() for key, tensor in weights.items()}
    except (OSError, MemoryError):  # these say themselves what is wrong
        raise
    except Exception as error:  # damage makes the readers raise errors of every kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} is damaged or holds more than tensors: {reason}") from error


# The family's names, for those who import them into a project of their own.
AlbertConfig, Albert, AlbertForPreTraining = Config, Encoder, ForPreTraining
AlbertForSequenceClassification = ForSequenceClassification
AlbertForTokenClassification = ForTokenClassification

if __name__ == "__main__":
    torch.manual_seed(0)
    model = ForPreTraining(Config(**preset(2, 128, 2))).eval()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    ids = torch.randint(1000, 2000, (4, 32))    # 4 rows of 32 tokens, of which each predicts 3
    positions = torch.tensor([[3, 7, 19]] * 4)
    loss, parts = model(ids, positions=positions, labels=ids.gather(1, positions),
                        sentence_labels=torch.tensor([0, 1, 0, 1]))
    print({name: round(value.item(), 3) for name, value in parts.items()}, "; ln V is 10.309, ln 2 is 0.693")
