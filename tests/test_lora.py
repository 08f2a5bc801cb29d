"""lora.py against PEFT, and what small LoRAs get wrong."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import torch.nn as nn
import transformers

import albert
import bert
import lora
import roberta

MODULES = {"bert": bert, "roberta": roberta, "albert": albert}
HF = {"bert": "Bert", "roberta": "Roberta", "albert": "Albert"}
SMALL = dict(vocab_size=120, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
             max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def small_config(family, **more):
    extra = dict(embedding_size=16, classifier_dropout_prob=0.0) if family == "albert" else {}
    return MODULES[family].Config(**SMALL, **extra, **more)


def make(family, folder, kind="SequenceClassification", num_labels=3):
    """-> our model, theirs, with the same random weights."""
    torch.manual_seed(0)
    ours = getattr(MODULES[family], f"For{kind}")(small_config(family, num_labels=num_labels))
    for parameter in ours.parameters():  # fresh ones have zero biases, which hide mistakes
        parameter.data += 0.2 * torch.randn_like(parameter)
    ours.save_pretrained(folder)
    theirs = getattr(transformers, f"{HF[family]}For{kind}").from_pretrained(folder)
    return ours, theirs.train()


def batch(num_labels=3, tokens=False):
    torch.manual_seed(1)
    ids = torch.randint(5, 120, (4, 12))
    mask = torch.ones_like(ids)
    ids[0, 8:], mask[0, 8:] = 1, 0  # RoBERTa's padding id
    labels = torch.randint(0, num_labels, (4, 12) if tokens else (4,))
    return ids, mask, labels


def logits_of(ours, theirs):
    ids, mask, _ = batch()
    with torch.no_grad():
        a = ours.eval()(ids, attention_mask=mask)[0]
        b = theirs.eval()(input_ids=ids, attention_mask=mask).logits
    return (a[mask.bool()], b[mask.bool()]) if a.dim() == 3 else (a, b)


def randomise(model):
    """Adapters as after training: B is no longer zero."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
        if "magnitude" in name:
            parameter.data += 0.1 * torch.rand_like(parameter)


OPTIONS = [dict(), dict(rslora=True), dict(dora=True), dict(targets=("key", "out", "fc_in", "fc_out"))]

@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "rslora", "dora", "others"])
@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize("family", MODULES)
def test_peft_opens_ours(family, kind, options, tmp_path):
    ours, theirs = make(family, tmp_path / "base", kind)
    lora.inject(ours, r=4, alpha=8, **options)
    randomise(ours)
    nn.init.normal_(list(ours.classifier.parameters())[0])  # a head that has been trained
    lora.save(ours, tmp_path / "adapter", str(tmp_path / "base"))
    a, b = logits_of(ours, peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter"))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, dict(use_rslora=True), dict(use_dora=True),
                                     dict(init_lora_weights="orthogonal")],
                         ids=["plain", "rslora", "dora", "orthogonal"])
@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize("family", MODULES)
def test_ours_opens_pefts(family, kind, options, tmp_path):
    ours, theirs = make(family, tmp_path / "base", kind)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], **options,
                             task_type="SEQ_CLS" if kind.startswith("Seq") else "TOKEN_CLS")
    theirs = peft.get_peft_model(theirs, config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    lora.load(ours, tmp_path / "adapter")
    a, b = logits_of(ours, theirs)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    # and back: what we write of it, PEFT reads
    lora.save(ours, tmp_path / "again")
    theirs = getattr(transformers, f"{HF[family]}For{kind}").from_pretrained(tmp_path / "base")
    a, b = logits_of(ours, peft.PeftModel.from_pretrained(theirs, tmp_path / "again"))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", MODULES)
def test_three_training_steps_equal_pefts(family, dora, tmp_path):
    ours, theirs = make(family, tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], task_type="SEQ_CLS",
                             use_dora=dora)
    theirs = peft.get_peft_model(theirs, config)
    theirs.save_pretrained(tmp_path / "adapter")
    lora.load(ours, tmp_path / "adapter").train()
    trained = lambda model: sorted(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained(ours) == trained(theirs)

    ids, mask, labels = batch()
    optimizers = [torch.optim.AdamW((p for p in m.parameters() if p.requires_grad), lr=1e-2)
                  for m in (ours, theirs)]
    for _ in range(3):
        losses = [ours(ids, attention_mask=mask, labels=labels)[1],
                  theirs(input_ids=ids, attention_mask=mask, labels=labels).loss]
        torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
        for loss, optimizer in zip(losses, optimizers):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    a, b = logits_of(ours, theirs)
    assert (a - a[0]).abs().max() > 0.1  # the rows are told apart, so equality says something
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)  # AdamW divides by small numbers


@pytest.mark.parametrize("family, preset, count", [
    ("bert", "bert-base", 294_912), ("roberta", "roberta-base", 294_912),
    ("albert", "albert-base-v2", 24_576)])
def test_published_parameter_counts(family, preset, count):
    with torch.device("meta"):
        config = MODULES[family].Config(**MODULES[family].PRESETS[preset])
        model = lora.inject(MODULES[family].ForSequenceClassification(config), r=8)
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == count
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    head = {n for n, _ in model.named_parameters() if n.startswith("classifier.")}
    assert {n for n in trained if "lora_" not in n} == head


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "rslora", "dora", "others"])
@pytest.mark.parametrize("family", MODULES)
def test_merged_equals_unmerged(family, options, tmp_path):
    ours, theirs = make(family, tmp_path / "base")
    names = set(ours.state_dict())
    lora.inject(ours, r=4, alpha=8, **options)
    assert names < set(ours.state_dict())  # the base keeps its names
    randomise(ours)
    before = logits_of(ours, theirs)[0]
    lora.merge(ours)
    assert set(ours.state_dict()) == names and all(p.requires_grad for p in ours.parameters())
    after, plain = logits_of(ours, theirs)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    assert (after - plain).abs().max() > 1e-2  # the adapter did something
    ours.save_pretrained(tmp_path / "merged")
    again = type(ours).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(again, theirs)[0], after, atol=0, rtol=0)


def train_a_step(model, tokens=False):
    ids, mask, labels = batch(tokens=tokens)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model.train()(ids, attention_mask=mask, labels=labels)[1].backward()
    optimizer.step()


@pytest.mark.parametrize("family", MODULES)
def test_the_base_stays_and_the_head_trains(family, tmp_path):
    """Peers freeze the new classifier, or forget to save it."""
    ours, _ = make(family, tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    lora.inject(ours)
    for _ in range(2):  # after one step A has not moved, as B was zero
        train_a_step(ours)
    for name, tensor in ours.state_dict().items():
        moved = name not in before or not torch.equal(tensor, before[name])
        assert moved == ("lora_" in name or name.startswith("classifier.")), name
    lora.save(ours, tmp_path / "adapter")
    again = lora.load(type(ours).from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    ids, mask, _ = batch()
    with torch.no_grad():
        a, b = (model.eval()(ids, attention_mask=mask)[0] for model in (ours, again))
    assert torch.equal(a, b)


def test_eval_merges_nothing(tmp_path):
    """loralib adds B A to the weights inside eval(): saved then, loaded and evaluated, it is added twice."""
    ours, _ = make("bert", tmp_path / "base")
    lora.inject(ours)
    randomise(ours)
    weights = {name: tensor.clone() for name, tensor in ours.train().state_dict().items()}
    for name, tensor in ours.eval().state_dict().items():
        assert torch.equal(tensor, weights[name])
    lora.save(ours, tmp_path / "adapter")
    again = lora.load(type(ours).from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    ids, mask, _ = batch()
    with torch.no_grad():
        assert torch.equal(ours(ids, attention_mask=mask)[0], again(ids, attention_mask=mask)[0])


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_an_adapter_on_the_pooler(family, tmp_path):
    ours, theirs = make(family, tmp_path / "base")
    lora.inject(ours, r=4, targets=("fc_in", "pooler"))
    randomise(ours)
    lora.save(ours, tmp_path / "adapter")
    a, b = logits_of(ours, peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter"))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    again = lora.load(type(ours).from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(again, theirs)[0], b, atol=1e-5, rtol=0)


def test_exact_targets(tmp_path):
    injected = lambda model: {n for n, m in model.named_modules() if isinstance(m, lora.LoRALinear)}
    ours, _ = make("roberta", tmp_path / "a")
    lora.inject(ours, targets=("out",))  # the head has an `out`, too: it is trained whole and gets no adapter
    assert injected(ours) == {f"encoder.layers.{i}.attention.out" for i in range(3)}
    ours, _ = make("roberta", tmp_path / "b")
    lora.inject(ours, targets=("encoder.layers.2.attention.query",))
    assert injected(ours) == {"encoder.layers.2.attention.query"}
    ours, _ = make("albert", tmp_path / "c")
    lora.inject(ours, targets=("query", "fc_out"))  # three layers share one set of parameters
    assert injected(ours) == {"encoder.groups.0.0.attention.query", "encoder.groups.0.0.mlp.fc_out"}


@pytest.mark.parametrize("family", MODULES)
def test_all_linear_is_what_peft_takes_for_it(family, tmp_path):
    ours, theirs = make(family, tmp_path / "base")
    lora.inject(ours, r=4, targets="all-linear")
    reference = peft.get_peft_model(theirs, peft.LoraConfig(r=4, target_modules="all-linear",
                                                            task_type="SEQ_CLS"))
    adapters = {name.replace(".default", "") for name in reference.state_dict() if "lora_" in name}
    assert {key for key in lora.file_keys(ours).values() if "lora_" in key} == adapters


def test_a_string_is_one_target(tmp_path):
    ours, _ = make("bert", tmp_path)
    lora.inject(ours, targets="query")
    assert sum(isinstance(module, lora.LoRALinear) for module in ours.modules()) == 3


def test_a_model_of_transformers(tmp_path):
    """lora.py on a foreign class: PEFT opens the adapter with the right head; a head that would stay frozen
    is said."""
    config = transformers.DistilBertConfig(vocab_size=120, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
                                           max_position_embeddings=40)
    torch.manual_seed(0)
    base = transformers.DistilBertForSequenceClassification(config)
    base.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = lora.inject(base, targets=["q_lin", "v_lin"])  # saves pre_classifier, too, as PEFT does
    randomise(ours)
    lora.save(ours, tmp_path / "adapter", str(tmp_path / "base"))
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    ids, mask, _ = batch()
    with torch.no_grad():
        a, b = (model.eval()(input_ids=ids, attention_mask=mask).logits for model in (ours, theirs))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="1, the last linear layer, stays as it is"):
        lora.inject(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), targets="0")


def test_a_tied_weight_is_not_saved_apart():
    """PEFT would train a copy of it: the logits of its model differ."""
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=64)
    for module in ("bert.embeddings", "cls.predictions.decoder"):
        model = transformers.BertForMaskedLM(config)
        with pytest.raises(ValueError, match="has a weight of a module in modules_to_save"):
            lora.inject(model, modules_to_save=[module])
    with pytest.raises(ValueError, match="there is no module 'pooler'; give whole names"):
        lora.inject(model, modules_to_save=["pooler"])


def test_an_eval_model_stays_one(tmp_path):
    """Loaded into a model in eval mode, an adapter with dropout has none."""
    ours, _ = make("bert", tmp_path / "base")
    lora.save(lora.inject(ours, dropout=0.5), tmp_path / "adapter")
    again = lora.load(type(ours).from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert not any(module.training for module in again.modules())
    assert all(module.training for module in again.train().modules())


@pytest.mark.parametrize("dora", [False, True])
def test_a_base_of_16_bits(dora):
    layer = lora.LoRALinear(nn.Linear(8, 8).bfloat16(), r=2, dora=dora)
    assert layer.lora_A.dtype == torch.float32
    y = layer(torch.randn(3, 8, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and layer.merged().weight.dtype == torch.bfloat16


def test_a_fresh_pooler_goes_with_the_adapter(tmp_path):
    """One that the checkpoint lacks has to be trained and saved; PEFT takes it from the file."""
    ours, theirs = make("bert", tmp_path / "base")
    lora.inject(ours, r=4, modules_to_save=["classifier", "encoder.pooler"])
    randomise(ours)
    nn.init.normal_(ours.encoder.pooler.weight)
    lora.save(ours, tmp_path / "adapter")
    a, b = logits_of(ours, peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter"))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_layer_that_is_trained_whole(tmp_path):
    """Its name in the adapter is that of transformers: PEFT trains all of it, too."""
    ours, theirs = make("bert", tmp_path / "base")
    lora.inject(ours, r=4, modules_to_save=["encoder.layers.1", "classifier"])
    randomise(ours)
    for parameter in ours.encoder.layers[1].parameters():
        parameter.data += 0.1
    lora.save(ours, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True)
    a, b = logits_of(ours, theirs)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert (sum(p.numel() for p in ours.parameters() if p.requires_grad)
            == sum(p.numel() for p in theirs.parameters() if p.requires_grad))


@pytest.mark.parametrize("options", [dict(modules_to_save=[]), dict(modules_to_save=["encoder.pooler"]),
                                     dict(modules_to_save=[], targets="classifier")])
def test_peft_opens_an_adapter_without_the_classifier(options, tmp_path):
    ours, theirs = make("bert", tmp_path / "base")
    lora.inject(ours, r=4, **options)
    randomise(ours)
    lora.save(ours, tmp_path / "adapter", str(tmp_path / "base"))
    a, b = logits_of(ours, peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter"))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", MODULES)
def test_word_embeddings_that_are_tied_are_not_trained_whole(family, tmp_path):
    """PEFT trains a copy of them, and the output matrix stays: the same files would be two models."""
    ours = MODULES[family].ForPreTraining(small_config(family))
    with pytest.raises(ValueError, match="apart from the output matrix"):
        lora.inject(ours, modules_to_save=["encoder.embeddings"])
    ours.save_pretrained(tmp_path / "base")
    theirs = getattr(transformers, f"{HF[family]}ForMaskedLM").from_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(target_modules=["query"],
                                                         modules_to_save=["word_embeddings"]))
    theirs.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="apart from the output matrix"):
        lora.load(ours, tmp_path / "adapter")


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    linear = nn.Linear(4, 4)
    linear.register_forward_hook(lambda module, inputs, output: output + 1)
    return linear


@pytest.mark.parametrize("make", [lambda: Doubled(4, 4), hooked,
                                  lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))])
def test_layers_that_an_adapter_would_replace_by_another(make):
    model = nn.Sequential(make(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="0 is no plain nn.Linear"):
        lora.inject(model, targets="0")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_linear_without_a_head():
    """By default the last layer may be one; not where it is said that there is none."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    lora.inject(model, targets="all-linear", modules_to_save=[])
    assert all(isinstance(module, lora.LoRALinear) for module in model)


def test_nothing_but_the_head_to_adapt():
    with pytest.raises(ValueError, match="nothing to adapt"):
        lora.inject(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)), targets="all-linear")


def test_dora_of_a_row_of_zeros():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].weight.data[1] = 0
    x = torch.randn(3, 4)
    before = model(x)
    lora.inject(model, targets="0", dora=True)
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(lora.merge(model)(x), before)


def test_a_foreign_model_may_have_a_module_of_any_name():
    model = nn.Sequential(nn.Linear(4, 4))
    model.mlm, model.classifier = nn.Linear(4, 4), nn.Linear(4, 2)
    assert isinstance(lora.inject(model, targets=["0"])[0], lora.LoRALinear)


def test_a_layer_in_two_places(tmp_path):
    """One adapter, applied in both; merged, it is in both."""
    torch.manual_seed(0)
    linear, x = nn.Linear(4, 4), torch.randn(3, 4)
    model = nn.Sequential(linear, nn.ReLU(), linear, nn.Linear(4, 2))
    lora.inject(model, targets="0", modules_to_save="3")
    randomise(model)
    assert model[0] is model[2] and isinstance(model[0], lora.LoRALinear)
    y = model(x)
    lora.save(model, tmp_path)
    again = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Identity(), nn.Linear(4, 2))
    again[2] = again[0]
    again[0].load_state_dict({"weight": linear.weight, "bias": linear.bias})
    torch.testing.assert_close(lora.load(again, tmp_path)(x), y)
    lora.merge(model)
    assert model[0] is model[2] and type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), y)


def test_errors(tmp_path):
    ours, _ = make("bert", tmp_path / "base")
    with pytest.raises(ValueError, match="no linear layer is called 'qurey'; there are fc_in, fc_out, key"):
        lora.inject(ours, targets=("query", "qurey"))
    for target in ("linear1", "out_proj"):  # in eval mode torch's layer takes their weights without a call
        with pytest.raises(ValueError, match=f"takes the weight of 0.*{target} without calling it"):
            lora.inject(nn.Sequential(nn.TransformerEncoderLayer(8, 2)), targets=(target,))
    with pytest.raises(ValueError, match="no targets"):
        lora.inject(ours, targets=())
    with pytest.raises(ValueError, match="r must be a positive whole number"):
        lora.inject(ours, r=0)
    with pytest.raises(ValueError, match="no LoRA adapters to merge"):
        lora.merge(ours)
    assert all(p.requires_grad for p in ours.parameters())  # a refused injection changes nothing
    lora.inject(ours)
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        lora.inject(ours)
    with pytest.raises(ValueError, match="merge them first, or save them alone"):
        ours.save_pretrained(tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_batch_norm_among_the_saved_modules(tmp_path):
    """It counts its batches, in an integer."""
    build = lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = lora.inject(build(), targets="0", modules_to_save=["1", "2"])
    model(torch.randn(8, 4))
    lora.save(model, tmp_path)
    assert lora.load(build(), tmp_path)[1].num_batches_tracked == 1


def test_adapters_that_do_not_fit(tmp_path):
    ours, _ = make("bert", tmp_path / "base")
    lora.save(lora.inject(ours), tmp_path / "adapter")
    fresh = lambda family="bert", **more: MODULES[family].ForSequenceClassification(
        small_config(family, **more))
    with pytest.raises(ValueError, match="is an adapter for another model"):
        lora.load(fresh("roberta", num_labels=3), tmp_path / "adapter")
    other = fresh(num_labels=5)
    for _ in range(2):  # a refusal leaves the model as it was
        with pytest.raises(ValueError, match=r"does not fit the model: .*classifier.* is \(3.* and \(5"):
            lora.load(other, tmp_path / "adapter")
    assert all(p.requires_grad for p in other.parameters())
    wide = bert.ForSequenceClassification(bert.Config(**SMALL | {"hidden_size": 64}, num_labels=3))
    with pytest.raises(ValueError, match="does not fit the model"):
        lora.load(wide, tmp_path / "adapter")
    deep = bert.ForSequenceClassification(bert.Config(**SMALL | {"num_hidden_layers": 2}, num_labels=3))
    with pytest.raises(ValueError, match="does not fit the model"):
        lora.load(deep, tmp_path / "adapter")

    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    for change in (dict(bias="all"), dict(rank_pattern={"query": 4}), dict(peft_type="IA3"),
                   dict(init_lora_weights="pissa"), dict(something_new=True)):
        file.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=f"{next(iter(change))} is .*; lora.py does not compute that"):
            lora.load(fresh(num_labels=3), tmp_path / "adapter")
    for change in (dict(lora_alpha=None), dict(lora_alpha="16"), dict(lora_dropout="x"), dict(r=2.5),
                   dict(base_model_name_or_path=1), dict(base_model_name_or_path=["a"])):
        file.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=f"adapter_config.json: {next(iter(change))} is "):
            lora.load(fresh(num_labels=3), tmp_path / "adapter")
    file.write_text(json.dumps(config | dict(lora_dropout=None)))  # as some versions of PEFT write 0
    lora.load(fresh(num_labels=3), tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    adapters = safetensors.torch.load(whole)
    for bad in (torch.tensor(1), torch.full((4, 32), torch.nan)):
        weights.write_bytes(safetensors.torch.save(adapters | {min(adapters): bad}))
        with pytest.raises(ValueError, match="or has a number that is not finite"):
            lora.load(fresh(num_labels=3), tmp_path / "adapter")
    weights.write_bytes(whole)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        lora.load(fresh(num_labels=3), tmp_path / "adapter")


def test_a_file_with_half_a_layer(tmp_path):
    make_model = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    lora.save(lora.inject(make_model(), targets="0", modules_to_save="2"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = safetensors.torch.load(file.read_bytes())
    del weights["base_model.model.2.bias"]
    file.write_bytes(safetensors.torch.save(weights))
    with pytest.raises(ValueError, match="does not fit the model: it has 2.weight without the rest of its"):
        lora.load(make_model(), tmp_path)


def test_one_of_two_layers_of_a_name(tmp_path):
    """PEFT can leave block.proj out of "proj"; inject() cannot, and says so with the model as it was."""
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)
            self.block = nn.ModuleDict({"proj": nn.Linear(4, 4)})
    options = dict(target_modules=["proj"], exclude_modules=["block.proj"])
    peft.get_peft_model(Model(), peft.LoraConfig(**options)).save_pretrained(tmp_path)
    model = Model()
    with pytest.raises(ValueError, match="adapts proj, and not block.proj"):
        lora.load(model, tmp_path)
    assert type(model.proj) is nn.Linear


def test_dropout_differs_by_token():
    layer = lora.LoRALinear(nn.Linear(8, 8), r=2, dropout=0.5)
    nn.init.ones_(layer.lora_B)
    x = torch.ones(4, 16, 8)  # equal tokens
    update = layer.train()(x) - nn.functional.linear(x, layer.weight, layer.bias)
    assert len({round(v, 4) for v in update[..., 0].flatten().tolist()}) > 20
    assert layer.eval()(x).std(dim=(0, 1)).max() < 1e-6


def test_no_backward_below_the_first_adapter(tmp_path):
    """Nothing of the embeddings, nor of a layer before the first adapter, is kept for a gradient."""
    ours, _ = make("bert", tmp_path / "base")
    lora.inject(ours, targets=tuple(f"encoder.layers.{i}.attention.query" for i in (1, 2)))
    needs = {}
    for name in ("encoder.embeddings", "encoder.layers.0", "encoder.layers.1"):
        ours.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: needs.update({name: out.requires_grad}))
    train_a_step(ours)
    assert needs == {"encoder.embeddings": False, "encoder.layers.0": False, "encoder.layers.1": True}
    assert all((p.grad is not None) == p.requires_grad for p in ours.parameters())


def test_compiled(tmp_path):
    ours, theirs = make("bert", tmp_path / "base")
    lora.inject(ours)
    randomise(ours)
    expected = logits_of(ours, theirs)[0]
    names = set(ours.state_dict())
    ours.compile(backend="aot_eager")  # the graphs, forward and backward, without a C++ compiler
    torch.testing.assert_close(logits_of(ours, theirs)[0], expected, atol=1e-6, rtol=0)
    train_a_step(ours)
    assert set(ours.state_dict()) == names
    assert ours.encoder.layers[0].attention.query.lora_A.grad is not None


def test_any_model(tmp_path):
    """lora.py knows nothing of ours: a model without hf_keys() saves under its own names."""
    make_model = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    torch.manual_seed(0)
    model = make_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora.inject(model, targets=("0",), modules_to_save=["2"])
    randomise(model)
    lora.save(model, tmp_path)
    again = make_model()
    again.load_state_dict(base)
    lora.load(again, tmp_path)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), again(x))
    assert Path(tmp_path / "adapter_model.safetensors").stat().st_size < 2000
