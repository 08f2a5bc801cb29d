"""
What a checkpoint gives: words for masks, scores of sentences, labels, embeddings, attention maps. predict.py,
plot.py and demo.py use it.

    model, tok = inference.open_model("out/roberta")                  # a directory, ours or not; a hub name
    inference.fill(model, tok, "The capital of France is <mask>.")    # [[(" Paris", 0.93), ...]]
    list(inference.score(model, tok, ["The cat sat."]))               # [[("The", -2.1), ...]]: sum them
    tokens, maps = inference.attention(model, tok, "The cat sat.")    # maps (layers, heads, T, T)

    encoder, tok = inference.open_encoder("out/roberta")              # or what was fine-tuned from it
    vectors, cut = inference.embed(encoder, tok, ["The cat sat.", "A dog ran."])   # (2, H)
"""

import io
import math
import os
import sys
from contextlib import redirect_stderr

import numpy as np
import torch

import lora
import runtime
import tasks
import tokenizer as tokenizers

HEADS = ("ForSequenceClassification", "ForTokenClassification")  # beside ForPreTraining

# -----------------------------------------------------------------------------
# Checkpoints

def open_model(path):
    """A checkpoint, or an adapter with its base -> model, tokenizer. ValueError if a head has no weights."""
    path = tokenizers.local_directory(path)
    if lora.is_adapter(path):
        return open_adapter(path)
    names = runtime.read_config(path).get("architectures")
    architecture = str(names[0]) if names and isinstance(names, list) else "nothing"
    head = next((head for head in HEADS if architecture.endswith(head)), "ForPreTraining")
    with redirect_stderr(io.StringIO()):  # what has fresh weights is an error here
        model = getattr(runtime.model_module(path), head).from_pretrained(path)
    # masks need neither a pooler nor the head of the sentence task
    lacking = [name for name in model.fresh if head != "ForPreTraining" or name.startswith("mlm")]
    if lacking:
        raise ValueError(f"{path} holds {architecture}, without {lacking[0]}: fine-tune it first")
    return model, open_tokenizer(path, model.config)


def open_encoder(path):
    """Any checkpoint, or an adapter with its base -> its encoder, without the head; tokenizer."""
    path = tokenizers.local_directory(path)
    if lora.is_adapter(path):
        model, tokenizer = open_adapter(path)
        return lora.merge(model).encoder, tokenizer
    with redirect_stderr(io.StringIO()):  # that it has no pooler, which no embedding reads
        encoder = runtime.model_module(path).Encoder.from_pretrained(path)
    tokenizer = open_tokenizer(path, encoder.config)
    # that of sentence-transformers has "bert" in its name, in old checkpoints the family
    named = [os.path.join(path, f"sentence_{family}_config.json") for family in runtime.MODELS]
    file = next(filter(os.path.exists, named), named[0])
    settings = tokenizers.read_json(file, {})  # of sentence-transformers, which has a length of its own
    known, longest = settings.get("max_seq_length") or tokenizer.max_length, encoder.config.longest_row
    tokenizer.max_length = min(known, longest) if isinstance(known, (int, float)) else longest
    if settings.get("do_lower_case") and not getattr(tokenizer, "lowercase", False):
        raise ValueError(f"{file}: do_lower_case before a cased tokenizer is not computed here")
    return encoder, tokenizer


def open_tokenizer(path, config):
    tokenizer = tokenizers.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"{path}: the tokenizer has {tokenizer.vocab_size} ids, the model "
                         f"{config.vocab_size}")
    return tokenizer


def open_adapter(path):
    adapter = lora.read_config(path)
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{path}/adapter_config.json names no base model")
    if adapter.get("revision") not in (None, "main") and not os.path.isdir(base):
        raise ValueError(f"{path}/adapter_config.json: revision is {adapter['revision']!r}, and here the "
                         f"newest {base} would be read; download that revision and name its directory")
    heads = {lora.TASK_TYPES[head]: head for head in HEADS}
    if adapter.get("task_type") not in list(heads):
        raise ValueError(f"{path}/adapter_config.json: task_type is {adapter.get('task_type')!r}, not "
                         f"{' or '.join(heads)}")
    options = {"num_labels": head_size(path)}
    if os.path.exists(os.path.join(path, runtime.BASE_CONFIG)):  # ours; PEFT writes none
        config = runtime.read_config(path, runtime.BASE_CONFIG)
        options |= {name: config[name] for name in ("id2label", "problem_type") if config.get(name)}
    try:
        module = runtime.model_module(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}/adapter_config.json: base_model_name_or_path {error}") from error
    head = getattr(module, heads[adapter["task_type"]])
    with redirect_stderr(io.StringIO()):  # that the base has no head; the adapter has it
        model = head.from_pretrained(base, **options)
    lora.load(model, path)
    lacking = [name for name in model.fresh if not name.startswith(tuple(model.lora["modules_to_save"]))]
    if lacking:
        raise ValueError(f"{path}: neither the adapter nor its base {base} has {lacking[0]}")
    own = {"tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"} & set(os.listdir(path))
    return model.eval(), open_tokenizer(path if own else base, model.config)


def head_size(path):
    """The number of classes of an adapter's classifier."""
    weights = lora.read_weights(os.path.join(path, "adapter_model.safetensors"))
    sizes = [tensor.shape[:1].numel() for key, tensor in weights.items()  # 1 where it has no dimensions
             if key.endswith((".classifier.weight", ".classifier.out_proj.weight"))]
    if not sizes:
        raise ValueError(f"{path} has no classifier")
    return sizes[0]


def kind_of(model):
    """What the model gives: "words" for masks, or a kind of tasks.py."""
    head = type(model).__name__
    if head.endswith("ForSequenceClassification"):
        if model.config.problem_type == "multi_label_classification":
            return "multilabel"
        if model.config.problem_type == "regression" and model.config.num_labels > 1:
            raise ValueError(f"the checkpoint predicts {model.config.num_labels} numbers for a text; only a "
                         "regression to one is computed here")
        return "regression" if model.config.num_labels == 1 else "classification"
    return "tokens" if head.endswith("ForTokenClassification") else "words"

# -----------------------------------------------------------------------------
# Masks

def masked_row(text, tokenizer):
    """-> the ids of a row, in which both [MASK] and <mask> are masks."""
    mask = tokenizer.special_tokens.get("mask", "<mask>")
    ids = tokenizer.encode(text.replace("[MASK]", mask).replace("<mask>", mask), specials=True)
    return [tokenizer.cls_id, *ids, tokenizer.sep_id]


@torch.no_grad()
def fill(model, tokenizer, text, top=5):
    """-> for each mask in the text, as [MASK] or <mask>, a list of (word, probability), best first.

    Several masks are filled independently of each other, as in pretraining. ValueError if there is none.
    """
    ids = torch.tensor([masked_row(text, tokenizer)], device=model.mlm.bias.device)
    positions = (ids[0] == tokenizer.mask_id).nonzero().T  # (1, K)
    if positions.numel() == 0:
        raise ValueError(f"no [MASK] or <mask> in {text!r}")
    logits, _ = model(ids, positions=positions)
    probabilities = logits[0].float().softmax(-1)[:, :tokenizer.vocab_size]  # a model may have more ids
    probabilities, best = probabilities.topk(min(top, tokenizer.vocab_size))  # (K, top)
    return [[(tokenizer.decode([i]), p) for i, p in zip(best_ids, best_p)]
            for best_ids, best_p in zip(best.tolist(), probabilities.tolist())]

# -----------------------------------------------------------------------------
# Scores of sentences

@torch.no_grad()
def score(model, tokenizer, texts, batch_size=32, where=None, block=64):
    """Pseudo-log-likelihood (Salazar et al. 2020): how likely each token is, in nats, if it alone is masked.

    Yields for each text, in order, a list of (token, log-probability); tokens as the published files spell
    them. block: texts that are computed together. where: names of the texts for errors. Before the first is
    computed, ValueError for a text with a mask, of which there is no likelihood, for one without tokens, and
    for one beyond the positions.
    """
    rows, most = [], model.config.longest_row - 2
    for i, (text, ids) in enumerate(zip(texts, tokenizer.encode_batch(texts))):
        name = where[i] if where else f"text {i + 1}"
        if "[MASK]" in text or "<mask>" in text:
            raise ValueError(f"{name}: a text with a mask has no score")
        if not 0 < len(ids) <= most:
            raise ValueError(f"{name}: {len(ids)} tokens; this model scores texts of 1 to {most}")
        rows.append(np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]]))
    for i in range(0, len(rows), block):
        part = rows[i:i + block]
        for row, values in zip(part, score_rows(model, tokenizer, part, batch_size)):
            yield [(tokenizer.tokens[token], value) for token, value in zip(row[1:-1], values)]


def score_rows(model, tokenizer, rows, batch_size):
    """Arrays of ids, with specials -> for each the list of the log-probabilities of its tokens."""
    device, found = model.mlm.bias.device, []
    # A row has a copy for each token, which is masked there. A batch takes them as they come, of one row or
    # of several that are about as long: it is full, and padded little.
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    copies = [(i, place) for i in order for place in range(1, len(rows[i]) - 1)]
    for start in range(0, len(copies), batch_size):
        batch = copies[start:start + batch_size]
        lengths = np.array([len(rows[i]) for i, _ in batch])
        ids = np.full((len(batch), lengths[0]), tokenizer.pad_id)  # (B, T)
        for copy, (i, _) in zip(ids, batch):
            copy[:len(rows[i])] = rows[i]
        mask = np.arange(lengths[0]) < lengths[:, None]
        mask = None if mask.all() else torch.from_numpy(mask).to(device)
        ids = torch.from_numpy(ids).to(device)
        positions = torch.tensor([[place] for _, place in batch], device=device)  # (B, 1)
        truth = ids.gather(1, positions)
        logits, _ = model(ids.scatter(1, positions, tokenizer.mask_id), mask, positions=positions)
        logits = logits[:, 0].float()  # (B, V)
        found.append(logits.gather(1, truth)[:, 0] - logits.logsumexp(1))
    values = [[] for _ in rows]
    for (i, _), value in zip(copies, torch.cat(found).tolist()):
        values[i].append(value)
    return values

# -----------------------------------------------------------------------------
# Texts of any length -> rows of tokens, and back

def make_rows(examples, kind, tokenizer, config, max_length, stride=None):
    """tasks.Examples -> tasks.Rows of at most max_length tokens, and the number of each row's text (W,).

    What is longer is cut. Or, with a stride, it becomes several rows, windows: each begins with the last
    `stride` tokens of the one before. ValueError for a stride with pairs, with tags, or as long as a window.
    """
    check_stride(examples, kind, max_length, stride)
    longest, room = max_length if stride is None else sys.maxsize, max_length - 2
    rows = tasks.Rows(examples, kind, tokenizer, longest, token_types=config.type_vocab_size > 1)
    if stride is None:
        return rows, np.arange(len(rows))
    windows, numbers = [], []
    for i, row in enumerate(rows.rows):
        cls, ids, sep = np.split(row.ids, [1, -1])
        for start in range(0, max(1, len(ids) - stride), room - stride):
            window = np.concatenate([cls, ids[start:start + room], sep])
            windows.append(tasks.Row(window, len(window)))
            numbers.append(i)
    rows.rows, rows.lengths = windows, np.array([len(row.ids) for row in windows])
    return rows, np.array(numbers)


def check_stride(examples, kind, max_length, stride):
    if stride is None:
        return
    for text, where in zip(examples.texts, examples.where):
        if kind == "tokens" or len(text) > 1:
            raise ValueError(f"{where}: --stride is for single texts, not for "
                             f"{'tags' if kind == 'tokens' else 'pairs'}")
    if stride > max_length - 3:  # without [CLS] and [SEP], and a window has to have one new token
        raise ValueError(f"--stride {stride}: windows of {max_length} tokens overlap by at most "
                         f"{max_length - 3}")


def mean_of_windows(outputs, rows, numbers):
    """An array (C,) of each row, numbers as make_rows gives them -> (N, C) float32, of each text the mean of
    its windows, in which each counts by its tokens: a short last one counts little."""
    if len(numbers) == len(set(numbers)):  # every text is one row
        return outputs
    sums = np.zeros((numbers[-1] + 1, len(outputs[0])))
    np.add.at(sums, numbers, np.array(outputs) * rows.lengths[:, None])
    return (sums / np.bincount(numbers, rows.lengths)[:, None]).astype(np.float32)

# -----------------------------------------------------------------------------
# Embeddings, as sentence-transformers computes them

def pooling_of(path):
    """How sentence-transformers pools this checkpoint: "mean", unless its files say "cls". ValueError for its
    other ways."""
    file = os.path.join(tokenizers.local_directory(path), "1_Pooling", "config.json")
    settings = tokenizers.read_json(file, {"pooling_mode": "mean"})
    # sentence-transformers before version 6 had a flag for each way
    before_6 = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    ways = [before_6.get(name, name) for name, on in settings.items()
            if name.startswith("pooling_mode_") and on is True] or [settings.get("pooling_mode")]
    if ways not in (["mean"], ["cls"]):
        raise ValueError(f"{file}: this pools by mean or cls, not by {ways}; see --pooling")
    return ways[0]


def sentence_settings(path):
    """What else sentence-transformers does with this checkpoint -> whether vectors get length 1, and a prompt
    that goes before every text. ValueError for what is not computed here."""
    folder = tokenizers.local_directory(path)
    read = lambda name, default: tokenizers.read_json(os.path.join(folder, name), default)
    modules = {str(isinstance(module, dict) and module.get("type")).rpartition(".")[2]: module
               for module in read("modules.json", [])}
    if other := set(modules) - {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(f"{path}/modules.json: {min(other)} after the encoder; that is not computed here")
    if "Pooling" in modules and modules["Pooling"].get("path") != "1_Pooling":
        raise ValueError(f"{path}/modules.json: only pooling in a folder called 1_Pooling is read here")
    config = read("config_sentence_transformers.json", {})
    if config.get("truncate_dim"):
        raise ValueError(f"{path}/config_sentence_transformers.json: truncate_dim is not computed here")
    prompts = config.get("prompts")
    prompt = isinstance(prompts, dict) and prompts.get(str(config.get("default_prompt_name"))) or ""
    if prompt and not read(os.path.join("1_Pooling", "config.json"), {}).get("include_prompt", True):
        raise ValueError(f"{path}/1_Pooling/config.json: a mean without the prompt is not computed here")
    return "Normalize" in modules, prompt


@torch.no_grad()
def embed(encoder, tokenizer, texts, max_length=None, stride=None, pooling="mean", normalize=False,
          batch_size=32):
    """-> vectors (N, H) float32, as sentence-transformers computes them, and how many texts were cut.

    pooling: "mean" over the tokens, [CLS] and [SEP] included, or "cls", the first one's. normalize: to length
    1. max_length: None for the checkpoint's. With a stride nothing is cut: a text's vector is the mean over
    the tokens of all its windows, those of an overlap counted twice; with "cls" the mean of the windows'.
    """
    examples = tasks.Examples([(text,) for text in texts], None, [])
    max_length = runtime.row_length(max_length, encoder.config, tokenizer.max_length)
    rows, numbers = make_rows(examples, "classification", tokenizer, encoder.config, max_length, stride)
    order, device = np.argsort(-rows.lengths, kind="stable"), encoder.embeddings.word.weight.device
    vectors = np.empty((len(rows), encoder.config.hidden_size), np.float32)
    for chosen in (order[i:i + batch_size] for i in range(0, len(order), batch_size)):
        inputs = {name: torch.from_numpy(array).to(device) for name, array in rows.inputs(chosen).items()}
        if pooling == "cls":
            x = encoder(**inputs, positions=torch.zeros_like(inputs["input_ids"][:, :1]))[:, 0]
        else:
            x = encoder(**inputs).float()  # (B, T, H)
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))[..., None]
            x = (x * mask).sum(1) / mask.sum(1)
        vectors[chosen] = x.float().cpu()
    vectors = mean_of_windows(vectors, rows, numbers)
    if normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, rows.cut_texts

# -----------------------------------------------------------------------------
# Attention

@torch.no_grad()
def attention(model, tokenizer, text):
    """-> the tokens of the text, in which [MASK] and <mask> are masks, as strings, and float32 maps (layers,
    heads, T, T): [l, h, i, j] is how much token i of layer l attends to token j. As the fused kernel keeps no
    such map, they are computed beside it, from the same queries and keys."""
    encoder, maps = getattr(model, "encoder", model), []
    def keep(module, args):
        x, context, _ = args
        q, k = (y.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)  # (1, T, H) -> (1, nh, T, D)
                for y in (module.query(x), module.key(context)))
        maps.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)[0])
    hooks = [module.register_forward_pre_hook(keep) for module in encoder.modules()
             if hasattr(module, "key")]  # the attention; ALBERT calls its one in every layer
    try:
        ids = masked_row(text, tokenizer)
        encoder(torch.tensor([ids], device=next(encoder.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return [tokenizer.decode([i]) for i in ids], torch.stack(maps).float().cpu()
