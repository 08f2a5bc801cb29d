"""The three model files against transformers: logits, losses, checkpoints; the mistakes of their peers."""

import ast
import importlib
import inspect
import importlib.util
import json
import math
import runpy
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

from conftest import ROOT

FAMILIES = {"bert": "Bert", "roberta": "Roberta", "albert": "Albert"}
TINY = dict(vocab_size=120, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
            max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
# what makes published checkpoints differ from the defaults, and from each other
LIKE_PUBLISHED = {
    "bert": dict(vocab_size=30522, max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12),
    "roberta": dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
                    pad_token_id=1),
    "albert": dict(vocab_size=30000, embedding_size=16, num_hidden_groups=2, inner_group_num=2,
                   num_hidden_layers=4),
}
CASES = [*((family, {}) for family in FAMILIES), *LIKE_PUBLISHED.items(),
         *((family, {"hidden_act": "relu"}) for family in FAMILIES)]


def build(family, head, more=(), **labels):
    """Our model and transformers', with the same random weights, through a checkpoint directory of theirs."""
    config = getattr(transformers, FAMILIES[family] + "Config")(**{**TINY, **dict(more)}, **labels)
    if family == "albert":
        config.classifier_dropout_prob = 0.0
    architecture = {"Encoder": "Model"}.get(head, head)
    if (family, head) == ("roberta", "ForPreTraining"):
        architecture = "ForMaskedLM"
    torch.manual_seed(1)
    theirs = getattr(transformers, FAMILIES[family] + architecture)(config).eval()
    with torch.no_grad():  # biases, LayerNorms and the pad embedding must count too
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return config, theirs, getattr(importlib.import_module(family), head)


def convert(theirs, ours_class, path):
    theirs.save_pretrained(path)
    return ours_class.from_pretrained(str(path))


def batch(config, padding, rows=5, length=20):
    """Random ids and token types; rows of different lengths, padded on one side."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, config.vocab_size, (rows, length), generator=generator)
    types = torch.randint(0, config.type_vocab_size, (rows, length), generator=generator)
    if padding is None:
        return ids, types, None
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, :3 * row] = 0
    if padding == "right":
        mask = mask.flip(1)
    ids[mask == 0] = config.pad_token_id
    return ids, types, mask


def close(a, b):
    assert a.shape == b.shape
    assert (a - b).abs().max().item() <= 1e-5


@pytest.mark.parametrize("head", ["Encoder", "ForPreTraining", "ForSequenceClassification",
                                  "ForTokenClassification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_have_the_order_of_transformers(family, head):
    """Of three arrays of one shape: in another order a call without names would go wrong in silence."""
    _, theirs, ours_class = build(family, head)
    ours, reference = (list(inspect.signature(f).parameters)
                       for f in (ours_class.forward, type(theirs).forward))
    assert ours[:4] == reference[:4] == ["self", "input_ids", "attention_mask", "token_type_ids"]


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("family, more", CASES)
def test_encoder_equals_transformers(family, more, padding, tmp_path):
    config, theirs, ours_class = build(family, "Encoder", more)
    ours = convert(theirs, ours_class, tmp_path)
    ids, types, mask = batch(config, padding)
    real = torch.ones_like(ids, dtype=bool) if mask is None else mask.bool()
    with torch.no_grad():
        reference = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask)
        hidden = ours(ids, mask, types)
    close(hidden[real], reference.last_hidden_state[real])
    close(ours.pool(hidden)[real[:, 0]], reference.pooler_output[real[:, 0]])
    positions = torch.randint(0, ids.shape[1], (len(ids), 3), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        some = ours(ids, mask, types, positions)  # (B, 3, H)
    read = real.gather(1, positions)
    at = positions[..., None].expand(-1, -1, hidden.shape[-1])
    close(some[read], reference.last_hidden_state.gather(1, at)[read])


def test_layers_take_the_groups_that_transformers_gives_them(tmp_path):
    """Where depth / groups is no whole number, too, and its rounding tells."""
    groups = {"num_hidden_layers": 18, "num_hidden_groups": 14}
    config, theirs, ours_class = build("albert", "Encoder", groups)
    ids, _, _ = batch(config, None)
    with torch.no_grad():
        close(convert(theirs, ours_class, tmp_path)(ids), theirs(input_ids=ids).last_hidden_state)


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("family, more", CASES)
def test_pretraining_equals_transformers(family, more, padding, tmp_path):
    config, theirs, ours_class = build(family, "ForPreTraining", more)
    ours = convert(theirs, ours_class, tmp_path)
    ids, types, mask = batch(config, padding)
    real = torch.ones_like(ids, dtype=bool) if mask is None else mask.bool()
    positions = torch.stack([row.nonzero().flatten()[[0, 2, 4]] for row in real])
    labels = torch.full_like(ids, -100).scatter(1, positions, ids.gather(1, positions))
    labels[0, positions[0, 0]] = -100  # an unused prediction
    sentence = None if family == "roberta" else torch.tensor([0, 1, 1, 0, 1])
    names = {"bert": "next_sentence_label", "albert": "sentence_order_label"}
    with torch.no_grad():
        reference = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask, labels=labels,
                           **({} if sentence is None else {names[family]: sentence}))
        loss, parts = ours(ids, mask, types, positions, labels.gather(1, positions), sentence)
        logits, sentence_logits = ours(ids, mask, types, positions)
        everywhere, _ = ours(ids, mask, types)
    all_logits = reference.logits if family == "roberta" else reference.prediction_logits
    close(logits, all_logits.gather(1, positions[..., None].expand(-1, -1, config.vocab_size)))
    close(everywhere[real], all_logits[real])
    close(loss, reference.loss)
    if sentence is not None:
        seen = real[:, 0]  # transformers pools the first position, padding or not
        close(sentence_logits[seen], getattr(reference, "seq_relationship_logits", None)[seen]
              if family == "bert" else reference.sop_logits[seen])
        hits = (sentence_logits.argmax(-1) == sentence).float().mean()
        assert parts["sentence_accuracy"] == hits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_of_the_vocabulary_by_hand(family, tmp_path):
    """The loss over candidates is that of transformers' logits there, each plus its correction."""
    config, theirs, ours_class = build(family, "ForPreTraining")
    ours = convert(theirs, ours_class, tmp_path)
    ids, positions = batch(config, None)[0], torch.tensor([[1, 2, 5]] * 5)
    candidates, corrections = torch.arange(0, 120, 3), torch.linspace(0, 2, 40)
    places = torch.randint(0, 40, (5, 3))
    places[2, 1] = -100
    with torch.no_grad():
        _, parts = ours(ids, positions=positions, labels=places, candidates=candidates,
                        corrections=corrections)
        reference = theirs(input_ids=ids)
    logits = (reference.logits if family == "roberta" else reference.prediction_logits)[:, [1, 2, 5]]
    sample = (logits[..., candidates] + corrections).flatten(0, 1)
    close(parts["mlm_loss"], F.cross_entropy(sample, places.flatten()))


@pytest.mark.parametrize("kind", ["single_label_classification", "regression", "multi_label_classification"])
@pytest.mark.parametrize("family, more", CASES)
def test_sequence_classification_equals_transformers(family, more, kind, tmp_path):
    n = 1 if kind == "regression" else 3
    config, theirs, ours_class = build(family, "ForSequenceClassification", more, num_labels=n,
                                       problem_type=kind)
    ours = convert(theirs, ours_class, tmp_path)
    ids, types, mask = batch(config, "right")
    labels = {"regression": torch.rand(5), "single_label_classification": torch.tensor([0, 2, 1, 1, 0]),
              "multi_label_classification": torch.randint(0, 2, (5, 3)).float()}[kind]
    with torch.no_grad():
        reference = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask, labels=labels)
        logits, loss = ours(ids, mask, types, labels)
        assert ours(ids, mask, types)[1] is None
    close(logits, reference.logits)
    close(loss, reference.loss)


@pytest.mark.parametrize("family, more", CASES)
def test_token_classification_equals_transformers(family, more, tmp_path):
    config, theirs, ours_class = build(family, "ForTokenClassification", more, num_labels=5)
    ours = convert(theirs, ours_class, tmp_path)
    ids, types, mask = batch(config, "right")
    labels = torch.where(mask.bool(), ids % 5, -100)
    with torch.no_grad():
        reference = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask, labels=labels)
        logits, loss = ours(ids, mask, types, labels)
    close(logits[mask.bool()], reference.logits[mask.bool()])
    close(loss, reference.loss)


@pytest.mark.parametrize("head", ["Encoder", "ForPreTraining", "ForSequenceClassification",
                                  "ForTokenClassification"])
@pytest.mark.parametrize("family, more", LIKE_PUBLISHED.items())
def test_export_opens_in_transformers_and_comes_back_bit_for_bit(family, more, head, tmp_path):
    config, theirs, ours_class = build(family, head, more)
    ours = convert(theirs, ours_class, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report  # no missing, unexpected or misshapen key
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    back = ours_class.from_pretrained(str(tmp_path / "ours"))
    assert back.config == ours.config
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_equals_a_softmax_written_out(family):
    """SDPA against softmax(q kᵀ / √D) v, the oracle, with a padding mask."""
    module = importlib.import_module(family)
    config = module.Config(**TINY)
    torch.manual_seed(3)
    attention = module.SelfAttention(config)
    x, mask = torch.randn(2, 7, 48), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])

    def heads(linear):
        return linear(x).view(2, 7, 4, 12).transpose(1, 2)  # (B, nh, T, D)
    scores = heads(attention.query) @ heads(attention.key).transpose(2, 3) / math.sqrt(12)
    scores = scores.masked_fill(mask[:, None, None] == 0, -math.inf)
    y = (scores.softmax(-1) @ heads(attention.value)).transpose(1, 2).reshape(2, 7, 48)
    close(attention(x, x, mask[:, None, None].bool()), attention.out(y))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_never_attended(family, side):
    """A padded row gives what it gives alone. Left padding shifts the positions of BERT and ALBERT, by
    definition; there the padding's content must make no difference."""
    module = importlib.import_module(family)
    torch.manual_seed(4)
    config = module.Config(**TINY, pad_token_id=1)
    model = module.Encoder(config).eval()
    row = torch.randint(5, 120, (1, 10))
    pads = torch.full((1, 6), 1)
    padded = torch.cat([row, pads] if side == "right" else [pads, row], 1)
    mask = (padded != 1).long()
    if side == "left" and family != "roberta":
        other = padded.clone()
        other[mask == 0] = 77
        close(model(padded, attention_mask=mask)[mask == 1], model(other, attention_mask=mask)[mask == 1])
    else:
        close(model(padded, attention_mask=mask)[mask == 1], model(row)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_losses_are_those_of_a_guess(family):
    """ln V for the masks and ln 2 for the pair: fresh weights prefer nothing."""
    module = importlib.import_module(family)
    torch.manual_seed(5)
    config = module.Config(**module.PRESETS[f"{family}-tiny"])
    model = module.ForPreTraining(config).eval()
    ids = torch.randint(5, config.vocab_size, (16, 64))
    positions = torch.randint(0, 64, (16, 10))
    sentence = None if family == "roberta" else torch.arange(16) % 2
    _, parts = model(ids, positions=positions, labels=ids.gather(1, positions), sentence_labels=sentence)
    assert abs(parts["mlm_loss"].item() - math.log(config.vocab_size)) < 0.3
    if sentence is not None:
        assert abs(parts["sentence_loss"].item() - math.log(2)) < 0.1


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_both_sentence_classes_are_learned(family):
    """Each class alone moves the sentence head, and token id 0 can be a target."""
    module = importlib.import_module(family)
    model = module.ForPreTraining(module.Config(**TINY))
    ids, positions = torch.randint(5, 120, (2, 12)), torch.tensor([[1, 2], [3, 4]])
    for label in (0, 1):
        model.zero_grad()
        loss, parts = model(ids, positions=positions, labels=torch.zeros(2, 2, dtype=int),
                            sentence_labels=torch.full((2,), label))
        loss.backward()
        head = model.nsp if family == "bert" else model.sop
        assert parts["sentence_loss"] > 0 and head.weight.grad.abs().sum() > 0
        assert model.mlm.bias.grad[0] < 0  # id 0, the only target, is pushed up


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_mean_over_targets(family):
    module = importlib.import_module(family)
    torch.manual_seed(6)
    model = module.ForPreTraining(module.Config(**TINY)).eval()
    ids, positions = torch.randint(5, 120, (3, 12)), torch.randint(0, 12, (3, 4))
    labels = ids.gather(1, positions)
    labels[1, 1:] = -100
    logits, _ = model(ids, positions=positions)
    by_hand = [-F.log_softmax(logits[b, k], -1)[labels[b, k]]
               for b in range(3) for k in range(4) if labels[b, k] >= 0]
    loss, parts = model(ids, positions=positions, labels=labels)
    close(parts["mlm_loss"], torch.stack(by_hand).mean())


def test_parameter_counts_are_the_published_ones():
    def count(family, preset):
        module = importlib.import_module(family)
        with torch.device("meta"):
            encoder = module.Encoder(module.Config(**module.PRESETS[preset]))
            return sum(p.numel() for p in encoder.parameters())
    published = {  # millions, encoder with pooler
        "bert-tiny": 4.4, "bert-mini": 11.2, "bert-small": 28.8, "bert-medium": 41.4, "bert-base": 109.5,
        "bert-large": 335.1, "bert-10m": 10.4,
        "roberta-base": 124.6, "roberta-large": 355.4, "roberta-18m": 17.7,
        "albert-base-v2": 11.7, "albert-large-v2": 17.7, "albert-xlarge-v2": 58.7, "albert-8m": 8.0}
    for preset, millions in published.items():
        assert round(count(preset.split("-")[0], preset) / 1e6, 1) == millions, preset


def test_bert_base_has_the_parameters_of_transformers():
    with torch.device("meta"):
        theirs = transformers.BertModel(transformers.BertConfig())
        ours = importlib.import_module("bert").Encoder(importlib.import_module("bert").BertConfig())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def definitions(family):
    """{name of each class and function of a model file: its source}, in the order of the file."""
    source = Path(importlib.import_module(family).__file__).read_text(encoding="utf-8")
    return {node.name: ast.get_source_segment(source, node) for node in ast.parse(source).body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


@pytest.mark.parametrize("family, own", [
    ("roberta", {"Config", "Embeddings", "MLMHead", "ForPreTraining", "ForSequenceClassification",
                 "init_module"}),
    ("albert", {"Config", "Embeddings", "Encoder", "MLMHead", "ForPreTraining", "head_dropout"})])
def test_what_means_the_same_has_the_same_source(family, own):
    """All but what is a family's own, by name, and in the same order."""
    bert, sibling = definitions("bert"), definitions(family)
    sibling.pop("ClassificationHead", None)  # RoBERTa's alone
    assert list(sibling) == list(bert)
    assert {name for name in bert if bert[name] != sibling[name]} == own


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_scripts_know_of_a_family(family):
    module = importlib.import_module(family)
    assert module.MODEL_TYPE == family and {"cpu", "cuda"} == set(module.DEFAULT_PRESET)
    assert set(module.DEFAULT_PRESET.values()) < set(module.PRESETS)
    assert module.SENTENCE_TASK == {"bert": "nsp", "roberta": None, "albert": "sop"}[family]
    assert module.TOKENIZER == {"bert": "wordpiece", "roberta": "bpe", "albert": "unigram"}[family]
    assert getattr(module, FAMILIES[family] + "ForPreTraining") is module.ForPreTraining
    config = module.Config(**TINY)
    assert config.longest_row == (38 if family == "roberta" else 40)
    model = module.Encoder(config)
    assert model(torch.full((1, config.longest_row), 5)).shape == (1, config.longest_row, 48)
    with pytest.raises(ValueError, match="positions"):
        model(torch.full((1, config.longest_row + 1), 5))


def test_a_module_without_a_key_is_named_before_training(monkeypatch):
    import roberta
    model = roberta.ForPreTraining(roberta.Config(**TINY))
    model.encoder.layers[1].gate = torch.nn.Linear(2, 2)
    message = r"^encoder.layers.1.gate.weight has no key: add 'layers.{}.gate' to KEYS in roberta.py$"
    with pytest.raises(ValueError, match=message):
        model.hf_keys()
    monkeypatch.setitem(roberta.KEYS, "layers.{}.gate", "encoder.layer.{}.gate")
    assert model.hf_keys()["encoder.layers.1.gate.bias"] == "roberta.encoder.layer.1.gate.bias"


def test_a_fourth_model_is_one_new_file(tmp_path):
    """roberta.py under another name, normalising before the sublayers: it trains, saves and loads."""
    import roberta
    source = Path(roberta.__file__).read_text(encoding="utf-8")
    for line, change in (
            ('MODEL_TYPE = "roberta" ', 'MODEL_TYPE = "prenorm" '),
            ("x = self.attention_norm(x + self.dropout(self.attention(x, context, attn_mask)))",
             "norm = self.attention_norm\n"
             "        x = x + self.dropout(self.attention(norm(x), norm(context), attn_mask))"),
            ("return self.mlp_norm(x + self.dropout(self.mlp(x)))",
             "return x + self.dropout(self.mlp(self.mlp_norm(x)))")):
        assert source.count(line) == 1
        source = source.replace(line, change)
    (tmp_path / "prenorm.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("prenorm", tmp_path / "prenorm.py")
    prenorm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prenorm)

    torch.manual_seed(7)
    model = prenorm.ForPreTraining(prenorm.Config(**TINY))
    ids, positions = torch.randint(5, 120, (4, 12)), torch.randint(0, 12, (4, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss, _ = model(ids, positions=positions, labels=ids.gather(1, positions))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "prenorm"
    again = prenorm.ForPreTraining.from_pretrained(tmp_path / "saved")
    assert torch.equal(model.eval()(ids)[0], again(ids)[0])
    with pytest.raises(ValueError, match="model_type is 'prenorm'; this file wants 'roberta'"):
        roberta.ForPreTraining.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("family", FAMILIES)
def test_impossible_sizes_are_refused_in_a_line(family):
    module = importlib.import_module(family)
    for sizes, word in ((dict(num_attention_heads=7), "heads"), (dict(hidden_size=-4), "hidden_size"),
                        (dict(vocab_size=10**12), "vocab_size"), (dict(hidden_act="swish"), "hidden_act"),
                        (dict(pad_token_id=120), "pad_token_id")):
        with pytest.raises(ValueError, match=word):
            module.Config(**{**TINY, **sizes})


def test_roberta_positions_are_those_of_fairseq():
    """Positions start at pad_token_id + 1 and step over padding."""
    import roberta
    embeddings = roberta.Embeddings(roberta.RobertaConfig(**TINY))
    seen = []
    embeddings.position.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    embeddings(torch.tensor([[0, 9, 9, 2, 1, 1], [1, 1, 0, 9, 9, 2]]), None)
    assert seen[0].tolist() == [[2, 3, 4, 5, 1, 1], [1, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_example_at_the_end_of_a_file_runs(family, capsys):
    """Fresh weights predict ids and pairs no better than by chance: ln V and ln 2."""
    module = runpy.run_path(str(ROOT / f"{family}.py"), run_name="__main__")
    parts = ast.literal_eval(capsys.readouterr().out.splitlines()[-1].partition(";")[0])
    assert parts["mlm_loss"] == pytest.approx(math.log(module["Config"]().vocab_size), abs=0.2)
    assert parts.get("sentence_loss", math.log(2)) == pytest.approx(math.log(2), abs=0.2)
