"""
BERT in one file: the model, its heads, its published sizes, and its Hugging Face checkpoints.

Paper: Devlin et al. 2018, https://arxiv.org/abs/1810.04805. Reference: google-research/bert, modeling.py.

What is BERT's own (`diff bert.py roberta.py` is the lesson):
  - two token types: 0 for the first segment of a pair, 1 for the second
  - positions count from 0
  - a second pretraining task, next sentence prediction (NSP), read from the pooled first token
  - fresh weights follow a truncated normal distribution

Shapes: B rows in a batch, T tokens in a row, H hidden size, nh heads of size D = H / nh,
K masked positions in a row, V vocabulary, L labels.
"""

import json
import os
import re
import sys
from dataclasses import asdict, dataclass, fields
from functools import partial
from pickle import UnpicklingError

import torch
import torch.nn as nn
from torch.nn import functional as F

# -----------------------------------------------------------------------------
# Configuration, with the field names of Hugging Face's config.json

ACTIVATIONS = {"gelu": F.gelu, "gelu_new": partial(F.gelu, approximate="tanh"), "relu": F.relu}

@dataclass
class BertConfig:
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072                # width of the MLP in each layer
    hidden_act: str = "gelu"                     # one of ACTIVATIONS
    max_position_embeddings: int = 512           # the longest row
    type_vocab_size: int = 2                     # token types
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float = None             # None: as hidden_dropout_prob
    initializer_range: float = 0.02              # standard deviation of fresh weights
    pad_token_id: int = 0
    num_labels: int = 2                          # of a classifier; 1 is a regression
    id2label: dict = None                        # their names; None: LABEL_0, LABEL_1, ...
    problem_type: str = None                     # see classification_loss

    def __post_init__(self):
        for field in fields(self):
            value, limit = getattr(self, field.name), 1000 if field.name == "num_hidden_layers" else 10**7
            if field.type is int and (type(value) is not int or not 0 <= value <= limit):
                raise ValueError(f"config: {field.name} = {value!r} is no whole number from 0 to {limit:,}")
            kinds = (int, float) if field.type is float else field.type
            if not isinstance(value, kinds) and value is not field.default:
                raise ValueError(f"config: {field.name} = {value!r} is no {field.type.__name__}")
        if self.num_attention_heads == 0 or self.hidden_size % self.num_attention_heads:
            raise ValueError(f"config: {self.num_attention_heads} heads do not divide a width of "
                             f"{self.hidden_size}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"config: hidden_act {self.hidden_act!r} is none of {', '.join(ACTIVATIONS)}")
        if self.pad_token_id >= self.vocab_size:
            raise ValueError(f"config: pad_token_id {self.pad_token_id} in a vocabulary of {self.vocab_size}")
        if len(self.id2label or ()) != self.num_labels:
            self.id2label = {i: f"LABEL_{i}" for i in range(self.num_labels)}
        # JSON makes the keys strings, and some files sort them as such
        self.id2label = dict(sorted((int(i), label) for i, label in self.id2label.items()))
        if list(self.id2label) != list(range(self.num_labels)):
            raise ValueError(f"config: the ids of id2label are {list(self.id2label)}, not 0 to "
                             f"{self.num_labels - 1}")


def preset(layers, hidden, heads, **more):
    return dict(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads,
                intermediate_size=4 * hidden, **more)

PRESETS = {
    "bert-tiny": preset(2, 128, 2),
    "bert-mini": preset(4, 256, 4),
    "bert-small": preset(4, 512, 8),
    "bert-medium": preset(8, 512, 8),
    "bert-base": preset(12, 768, 12),
    "bert-large": preset(24, 1024, 16),
    "bert-10m": preset(3, 256, 4),  # a size to pretrain at home
    # for four minutes on two cores: one layer learns most in them, without dropout and with larger weights
    "bert-laptop": preset(1, 256, 4, initializer_range=0.04, hidden_dropout_prob=0.0,
                          attention_probs_dropout_prob=0.0),
}

# -----------------------------------------------------------------------------
# The encoder

class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids):
        T, limit = input_ids.shape[1], self.position.num_embeddings
        if T > limit:
            raise ValueError(f"a row of {T} tokens is longer than the model's {limit} positions")
        types = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        # Padding on the left shifts a row's positions, as in the reference. Pad on the right.
        x = self.word(input_ids) + types + self.position.weight[:T]  # (B, T, H)
        return self.dropout(self.norm(x))


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, x, attn_mask):
        B, T, H = x.shape
        heads = (B, T, self.num_heads, H // self.num_heads)
        q = self.query(x).view(heads).transpose(1, 2)  # (B, T, H) -> (B, nh, T, D)
        k = self.key(x).view(heads).transpose(1, 2)
        v = self.value(x).view(heads).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(B, T, H))  # (B, nh, T, D) -> (B, T, H)


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

    def forward(self, x, attn_mask):
        x = self.attention_norm(x + self.dropout(self.attention(x, attn_mask)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class Pretrained(nn.Module):
    """What every model below can do besides computing."""

    def init_weights(self):
        for module in self.modules():
            init_module(module, self.config.initializer_range)

    def save_pretrained(self, path):
        """Write config.json and model.safetensors into the directory path; transformers opens it."""
        save_checkpoint(self, path)

    def hf_keys(self):
        """{name of each parameter: its name in transformers' model of this architecture}."""
        bare = not hasattr(self, "encoder")
        return {name: key.removeprefix(BASE if bare else "") for name, key in hf_keys(self).items()}

    @classmethod
    def from_pretrained(cls, path_or_name, **overrides):
        """Load a directory, or a name on the Hugging Face hub; float32, eval mode.

        overrides replace fields of its config: num_labels=3, hidden_dropout_prob=0.0. A head that the
        checkpoint lacks, or has for another num_labels, gets fresh weights, a line on stderr and a place in
        the list model.fresh. ValueError or OSError, in one line, for a damaged file, a parameter that is
        missing or misshapen, and a key that nothing uses.
        """
        return load_checkpoint(cls, path_or_name, overrides)


class Bert(Pretrained):
    """The encoder."""

    architecture = "BertModel"

    def __init__(self, config, pooler=True):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if pooler else None
        self.init_weights()

    def forward(self, input_ids, token_type_ids=None, attention_mask=None):
        """All (B, T) -> (B, T, H). attention_mask: 1 for tokens, 0 for padding; None, faster: no padding."""
        x = self.embeddings(input_ids, token_type_ids)
        attn_mask = None if attention_mask is None else attention_mask[:, None, None].bool()  # (B, 1, 1, T)
        for layer in self.layers:
            x = layer(x, attn_mask)
        return x

    def pool(self, x):
        """(B, T, H) -> (B, H), a summary of each row read from its first token."""
        return torch.tanh(self.pooler(x[:, 0]))

# -----------------------------------------------------------------------------
# Heads

class MLMHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACTIVATIONS[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x, word_embeddings):
        """(B, K, H) -> (B, K, V). The output matrix is that of the word embeddings, used a second time."""
        return F.linear(self.norm(self.act(self.dense(x))), word_embeddings, self.bias)


class BertForPreTraining(Pretrained):
    """Masked language model and next sentence prediction."""

    architecture = "BertForPreTraining"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Bert(config)
        self.mlm = MLMHead(config)
        self.nsp = nn.Linear(config.hidden_size, 2)
        self.init_weights()

    def forward(self, input_ids, positions, labels=None, token_type_ids=None, attention_mask=None,
                sentence_labels=None):
        """positions (B, K): where to predict; labels (B, K), -100 ignored; sentence_labels (B,): 0 if the
        second segment follows the first, 1 if it comes from elsewhere.

        Without labels -> logits (B, K, V), sentence_logits (B, 2). With -> the loss, and a dict of its parts
        and the accuracies. The loss is the sum of the tasks' losses, each a mean over its own targets.
        """
        x = self.encoder(input_ids, token_type_ids, attention_mask)
        # V is large, and most positions have no target: only the masked ones go through the head.
        masked = x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))  # (B, T, H) -> (B, K, H)
        logits = self.mlm(masked, self.encoder.embeddings.word.weight)
        sentence_logits = self.nsp(self.encoder.pool(x))
        if labels is None:
            return logits, sentence_logits
        parts = dict(zip(("mlm_loss", "mlm_accuracy"), cross_entropy(logits, labels)))
        if sentence_labels is None:
            return parts["mlm_loss"], parts
        parts |= zip(("sentence_loss", "sentence_accuracy"), cross_entropy(sentence_logits, sentence_labels))
        return parts["mlm_loss"] + parts["sentence_loss"], parts


class BertForSequenceClassification(Pretrained):
    """A class, or a number, for a sentence or a pair of sentences."""

    architecture = "BertForSequenceClassification"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Bert(config)
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, labels=None):
        """labels (B,) -> logits (B, L), loss or None."""
        x = self.encoder(input_ids, token_type_ids, attention_mask)
        logits = self.classifier(self.dropout(self.encoder.pool(x)))
        return logits, None if labels is None else classification_loss(logits, labels, self.config)


class BertForTokenClassification(Pretrained):
    """A class for every token."""

    architecture = "BertForTokenClassification"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Bert(config, pooler=False)
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, labels=None):
        """labels (B, T), -100 ignored -> logits (B, T, L), loss or None."""
        logits = self.classifier(self.dropout(self.encoder(input_ids, token_type_ids, attention_mask)))
        return logits, None if labels is None else cross_entropy(logits, labels)[0]


def head_dropout(config):
    p = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if p is None else p)


def cross_entropy(logits, labels):
    """logits (..., C), labels (...) -> mean loss and share of hits, over the labels that are not -100."""
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    loss = F.cross_entropy(logits, labels, ignore_index=-100)
    return loss, (logits.argmax(-1) == labels).sum() / (labels != -100).sum()


def classification_loss(logits, labels, config):
    """logits (B, L) -> the loss that transformers takes for this config."""
    if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
        return F.mse_loss(logits.float(), labels.float().view_as(logits))
    if config.problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
    return cross_entropy(logits, labels)[0]

# -----------------------------------------------------------------------------
# Fresh weights

def init_module(module, std):
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, (nn.Linear, nn.LayerNorm, MLMHead)):
        nn.init.zeros_(module.bias)

# -----------------------------------------------------------------------------
# Hugging Face checkpoints

MODEL_TYPE, BASE = "bert", "bert."  # BASE: what their models with a head put before the encoder's names

def hf_modules(config):
    """{our module: theirs}, for reading and writing; below a module both sides say weight and bias."""
    table = {
        "encoder.embeddings.word": "bert.embeddings.word_embeddings",
        "encoder.embeddings.position": "bert.embeddings.position_embeddings",
        "encoder.embeddings.token_type": "bert.embeddings.token_type_embeddings",
        "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
        "encoder.pooler": "bert.pooler.dense",
        "mlm": "cls.predictions",
        "mlm.dense": "cls.predictions.transform.dense",
        "mlm.norm": "cls.predictions.transform.LayerNorm",
        "nsp": "cls.seq_relationship",
        "classifier": "classifier",
    }
    for i in range(config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{i}", f"bert.encoder.layer.{i}"
        table |= {
            f"{ours}.attention.query": f"{theirs}.attention.self.query",
            f"{ours}.attention.key": f"{theirs}.attention.self.key",
            f"{ours}.attention.value": f"{theirs}.attention.self.value",
            f"{ours}.attention.out": f"{theirs}.attention.output.dense",
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.mlp.fc_in": f"{theirs}.intermediate.dense",
            f"{ours}.mlp.fc_out": f"{theirs}.output.dense",
            f"{ours}.mlp_norm": f"{theirs}.output.LayerNorm",
        }
    return table

# What may stand in a file and be left: old buffers, other heads, and the tied decoder, if it is tied indeed.
LEFTOVERS = r"position_ids$|^bert\.pooler\.|^cls\.|^classifier\.|^qa_outputs\."
TIED = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias"}


def hf_keys(model):
    """{name of each parameter: its key in a file, with BASE}."""
    table, prefix = hf_modules(model.config), "" if hasattr(model, "encoder") else "encoder."
    split = {name: (prefix + name).rsplit(".", 1) for name in model.state_dict()}
    return {name: f"{table[module]}.{leaf}" for name, (module, leaf) in split.items()}


def hf_config(model):
    """What config.json says."""
    config = {"architectures": [model.architecture], "model_type": MODEL_TYPE, **asdict(model.config)}
    config["label2id"] = {label: i for i, label in model.config.id2label.items()}
    del config["num_labels"]  # transformers counts id2label
    return config


def save_checkpoint(model, path):
    from safetensors.torch import save
    if hasattr(model, "lora"):
        raise ValueError("the model has LoRA adapters: merge them first, or save them alone by lora.save")
    os.makedirs(path, exist_ok=True)
    keys = model.hf_keys()
    weights = {keys[name]: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for name, content in (("model.safetensors", save(weights, metadata={"format": "pt"})),
                          ("config.json", json.dumps(hf_config(model), indent=2).encode() + b"\n")):
        file = os.path.join(path, name)
        try:  # a file appears whole or not at all
            with open(file + ".tmp", "wb") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            os.replace(file + ".tmp", file)
        except OSError:
            os.remove(file + ".tmp")
            raise


def load_checkpoint(cls, path_or_name, overrides):
    path = local_directory(path_or_name)
    config, weights = read_config(path, overrides), read_weights(path)
    with torch.device("meta"):  # shapes without memory: an absurd config allocates nothing
        model = cls(config)
    if not any(key.startswith(BASE) for key in weights):  # the file of a bare encoder
        weights = {BASE + key: tensor for key, tensor in weights.items()}

    keys, fresh = hf_keys(model), set()
    for name, parameter in model.state_dict().items():
        found = weights.get(keys[name])
        if found is None and keys[name].startswith((BASE + "embeddings.", BASE + "encoder.")):
            raise ValueError(f"{path}: the checkpoint lacks {keys[name]}")
        if found is None:
            fresh.add(name.rpartition(".")[0])
        elif found.shape != parameter.shape and "num_labels" in overrides and name.startswith("classifier."):
            del weights[keys[name]]  # a head for other classes
            fresh.add(name.rpartition(".")[0])
        elif found.shape != parameter.shape:
            raise ValueError(f"{path}: {keys[name]} has the shape {tuple(found.shape)}, by the config it is "
                             f"{tuple(parameter.shape)}")
    unused = sorted(key for key in weights if key not in keys.values() and not re.search(LEFTOVERS, key))
    if unused:
        raise ValueError(f"{path}: nothing uses {', '.join(unused[:5])} ({len(unused)} keys in all)")
    for decoder, source in TIED.items():
        if decoder in weights and not torch.equal(weights[decoder], weights.get(source, weights[decoder])):
            raise ValueError(f"{path}: {decoder} differs from {source}; here they are one")

    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            if keys[name] in weights:
                parameter.copy_(weights[keys[name]])
    for name in sorted(fresh):
        print(f"{path}: no {name} in the checkpoint; it starts with fresh weights", file=sys.stderr)
        init_module(model.get_submodule(name), config.initializer_range)
    model.fresh = sorted(fresh)
    return model.eval()


def local_directory(path_or_name):
    """A directory is itself; anything else is a name on the hub, downloaded once."""
    if os.path.isdir(path_or_name):
        return path_or_name
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path_or_name):
        raise FileNotFoundError(f"{path_or_name}: no such directory")
    from huggingface_hub import snapshot_download
    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model.bin"]
    try:
        return snapshot_download(path_or_name, allow_patterns=patterns)
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such name, no access
        raise FileNotFoundError(f"{path_or_name}: no such directory here, and the hub did not give it: "
                                f"{str(error).splitlines()[0]}") from error


def read_config(path, overrides):
    """config.json -> Config. What this file would compute wrongly it refuses."""
    try:
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            found = json.load(f)
    except ValueError as error:
        raise ValueError(f"{path}/config.json is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}/config.json is not a JSON object")
    for name, ours in (("model_type", MODEL_TYPE), ("position_embedding_type", "absolute"),
                       ("is_decoder", False), ("tie_word_embeddings", True)):
        if found.get(name, ours) != ours:
            raise ValueError(f"{path}/config.json: {name} is {found[name]!r}; this model file wants {ours!r}")
    found["num_labels"] = len(found.get("id2label") or (0, 1))  # transformers' default is two
    found.update(overrides)
    return Config(**{field.name: found[field.name] for field in fields(Config) if field.name in found})


def read_weights(path):
    """{key: tensor} of a checkpoint directory. Tensors alone are read: no file can make code run."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    there = [os.path.join(path, name) for name in names if os.path.exists(os.path.join(path, name))]
    if not there:
        raise FileNotFoundError(f"{path} has none of {', '.join(names)}")
    file = there[0]
    try:
        if file.endswith(".bin"):
            weights = torch.load(file, map_location="cpu", weights_only=True)
        elif file.endswith(".safetensors"):
            weights = load_file(file)
        else:
            with open(file, encoding="utf-8") as f:
                shards = sorted({os.path.basename(name) for name in json.load(f)["weight_map"].values()})
            weights = {key: t for name in shards for key, t in load_file(os.path.join(path, name)).items()}
        if not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
            raise ValueError("not all values are tensors")
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError,
            AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} is damaged or holds more than tensors: {reason}") from error
    # files of 2018 name the parameters of a LayerNorm as TensorFlow does
    return {re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", key)): t for key, t in weights.items()}


# the names that the scripts use, the same in every model file
Config, Encoder, ForPreTraining = BertConfig, Bert, BertForPreTraining
ForSequenceClassification = BertForSequenceClassification
ForTokenClassification = BertForTokenClassification

if __name__ == "__main__":
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**PRESETS["bert-tiny"])).eval()
    print(f"bert-tiny: {sum(p.numel() for p in model.parameters()):,} parameters")
    ids = torch.randint(1000, 2000, (4, 32))    # 4 rows of 32 tokens, of which each predicts 3
    positions = torch.tensor([[3, 7, 19]] * 4)
    loss, parts = model(ids, positions, ids.gather(1, positions), sentence_labels=torch.tensor([0, 1, 0, 1]))
    print({name: round(value.item(), 3) for name, value in parts.items()}, "; ln V is 10.326, ln 2 is 0.693")
