"""
What a checkpoint gives: words for masks, attention maps, labels. predict.py, plot.py and demo.py use it.

    model, tok = inference.open_model("out/roberta")                  # a directory, ours or not; a hub name
    inference.fill(model, tok, "The capital of France is <mask>.")    # [[(" Paris", 0.93), ...]]
    tokens, maps = inference.attention(model, tok, "The cat sat.")    # maps (layers, heads, T, T)
"""

import io
import math
import os
from contextlib import redirect_stderr

import torch

import lora
import runtime
import tokenizer as tokenizers

HEADS = ("ForSequenceClassification", "ForTokenClassification")  # beside ForPreTraining

# -----------------------------------------------------------------------------
# Checkpoints

def open_model(path):
    """A checkpoint, or an adapter with its base -> model, tokenizer. ValueError if a head has no weights."""
    if is_adapter(path):
        return open_adapter(path)
    config, module = runtime.read_config(path)
    architecture = (config.get("architectures") or ["nothing"])[0]
    head = next((head for head in HEADS if architecture.endswith(head)), "ForPreTraining")
    with redirect_stderr(io.StringIO()):  # what has fresh weights is an error here
        model = getattr(module, head).from_pretrained(path)
    # masks need neither a pooler nor the head of the sentence task
    lacking = [name for name in model.fresh if head != "ForPreTraining" or name.startswith("mlm")]
    if lacking:
        raise ValueError(f"{path} holds {architecture}, without {lacking[0]}: fine-tune it first")
    return model, tokenizers.load(path)


def is_adapter(path):
    return os.path.isfile(os.path.join(path, "adapter_config.json"))


def open_adapter(path):
    adapter = lora.read_config(path)
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{path}/adapter_config.json names no base model")
    heads = {lora.TASK_TYPES[head]: head for head in HEADS}
    if adapter.get("task_type") not in heads:
        raise ValueError(f"{path}/adapter_config.json: task_type is {adapter.get('task_type')!r}, not "
                         f"{' or '.join(heads)}")
    options = {"num_labels": head_size(path)}
    if os.path.exists(os.path.join(path, "config.json")):  # ours; PEFT writes none
        config, _ = runtime.read_config(path)
        options |= {name: config[name] for name in ("id2label", "problem_type") if config.get(name)}
    head = getattr(runtime.read_config(base)[1], heads[adapter["task_type"]])
    with redirect_stderr(io.StringIO()):  # that the base has no head; the adapter has it
        model = head.from_pretrained(base, **options)
    lora.load(model, path)
    lacking = [name for name in model.fresh if not name.startswith(tuple(model.lora["modules_to_save"]))]
    if lacking:
        raise ValueError(f"{path}: neither the adapter nor its base {base} has {lacking[0]}")
    own = {"tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"} & set(os.listdir(path))
    return model, tokenizers.load(path if own else base)


def head_size(path):
    """The number of classes of an adapter's classifier."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    file = os.path.join(path, "adapter_model.safetensors")
    try:
        sizes = [len(tensor) for key, tensor in load_file(file).items()
                 if key.endswith((".classifier.weight", ".classifier.out_proj.weight"))]
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not sizes:
        raise ValueError(f"{path} has no classifier")
    return sizes[0]


def kind_of(model, path):
    """What the model gives: "words" for masks, or a kind of tasks.py."""
    head = type(model).__name__
    if model.config.problem_type == "multi_label_classification":
        raise ValueError(f"{path} gives several labels to a text; predict.py gives one")
    if head.endswith("ForSequenceClassification"):
        return "regression" if model.config.num_labels == 1 else "classification"
    return "tokens" if head.endswith("ForTokenClassification") else "words"

# -----------------------------------------------------------------------------
# Masks

@torch.no_grad()
def fill(model, tokenizer, text, top=5):
    """-> for each mask in the text, as [MASK] or <mask>, a list of (word, probability), best first.

    Several masks are filled independently of each other, as in pretraining. ValueError if there is none.
    """
    mask = tokenizer.special_tokens["mask"]
    ids = tokenizer.encode(text.replace("[MASK]", mask).replace("<mask>", mask), specials=True)
    ids = torch.tensor([[tokenizer.cls_id, *ids, tokenizer.sep_id]], device=model.mlm.bias.device)
    positions = (ids[0] == tokenizer.mask_id).nonzero().T  # (1, K)
    if positions.numel() == 0:
        raise ValueError(f"no [MASK] or <mask> in {text!r}")
    logits, _ = model(ids, positions)
    logits = logits[0, :, :tokenizer.vocab_size]  # a model may have more ids, to fill up its matrix
    probabilities, best = logits.float().softmax(-1).topk(min(top, tokenizer.vocab_size))  # (K, top)
    return [[(tokenizer.decode([i]), p) for i, p in zip(best_ids, best_p)]
            for best_ids, best_p in zip(best.tolist(), probabilities.tolist())]

# -----------------------------------------------------------------------------
# Attention

@torch.no_grad()
def attention(model, tokenizer, text):
    """-> the tokens of the text as strings, and float32 maps (layers, heads, T, T): [l, h, i, j] is how much
    token i of layer l attends to token j. F.scaled_dot_product_attention does not give them; here they
    follow from what its queries and keys are made of."""
    encoder, maps = getattr(model, "encoder", model), []
    def keep(module, args):
        x, context, _ = args
        q, k = (y.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)  # (1, T, H) -> (1, nh, T, D)
                for y in (module.query(x), module.key(context)))
        maps.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)[0])
    hooks = [module.register_forward_pre_hook(keep) for module in encoder.modules() if hasattr(module, "key")]
    try:
        ids = [tokenizer.cls_id, *tokenizer.encode(text, specials=True), tokenizer.sep_id]
        encoder(torch.tensor([ids], device=next(encoder.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return [tokenizer.decode([i]) for i in ids], torch.stack(maps).float().cpu()
