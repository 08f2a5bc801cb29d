"""What the page of demo.py says, without gradio: its numbers are inference.py's, and no text becomes HTML."""

import importlib
import re
import socket
import sys
from functools import partial
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

import demo
import inference
import runtime

HOSTILE = "<img src=x onerror=alert(1)>"
MARKS = """</p>&lt;"'${1}{{2}}`@\\\ud800"""


def arguments(*more):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return ["--port", str(port), "--device", "cpu", "--threads", "1", *more]


@pytest.fixture(scope="module")
def host(base):
    return runtime.Host(demo.parse_arguments(arguments("--checkpoint", base["bert"])))


@pytest.fixture
def fine_tuned(base, tmp_path):
    """A checkpoint with a random classifier, opened: model, tokenizer, kind."""
    def make(family, head, **config):
        model = getattr(importlib.import_module(family), head).from_pretrained(base[family], **config)
        (tmp_path / family).mkdir(exist_ok=True)
        model.save_pretrained(tmp_path / family)
        inference.open_model(base[family])[1].save(tmp_path / family)
        model, tokenizer = inference.open_model(str(tmp_path / family))
        return model, tokenizer, inference.kind_of(model)
    return make


def bars(html):
    """-> [(name, number)], and that each bar is as long as its number says."""
    found = re.findall(r'<span>(.*?)</span><div><i style="width:(.*?)%"></i></div><b>(.*?)</b>', html)
    for _, width, number in found:
        value = float(number.rstrip("%")) * (1 if "%" in number else 100)
        assert float(width) == pytest.approx(max(0, value), abs=0.06)
    return [(unescape(name), number) for name, _, number in found]


def read(html):
    """-> the tags of the HTML, a set, and the text that a reader sees."""
    tags, text = set(), []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: tags.add(tag)
    reader.handle_data = text.append
    reader.feed(html)
    return tags, "".join(text)

# -----------------------------------------------------------------------------
# numbers

@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_words_for_masks(base, host, family):
    model, tokenizer = inference.open_model(base[family])
    html = demo.fill(model, tokenizer, "the [MASK] was <mask> and dull")
    expected = inference.fill(model, tokenizer, "the [MASK] was <mask> and dull", demo.BARS)
    shown = [[(unescape(demo.escape(word.strip() or repr(word))), f"{p:.1%}") for word, p in words]
             for words in expected]
    assert bars(html) == shown[0] + shown[1]
    best = [words[0][0] for words in shown]
    assert read(html)[1].startswith(f"the {best[0]} was {best[1]} and dullMask 1")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_labels_of_a_text_and_of_a_pair(fine_tuned, host, family):
    model, tokenizer, kind = fine_tuned(family, "ForSequenceClassification", num_labels=3,
                                        id2label={0: "same", 1: "a < b", 2: "differ"})
    a, b = (tokenizer.encode(text) for text in ("a fine film", "it was dull"))
    between = [tokenizer.sep_id] * (2 if family == "roberta" else 1)
    for texts, ids in ((["a fine film"], [*a]), (["a fine film", "it was dull"], [*a, *between, *b])):
        types = None
        if family == "bert" and len(texts) == 2:
            types = torch.tensor([[0] * (len(a) + 2) + [1] * (len(b) + 1)])
        with torch.no_grad():
            ids = torch.tensor([[tokenizer.cls_id, *ids, tokenizer.sep_id]])
            p = model.eval()(ids, token_type_ids=types)[0].softmax(-1)[0].tolist()
        expected = sorted(zip(model.config.id2label.values(), p), key=lambda pair: -pair[1])
        assert bars(demo.classify(model, tokenizer, kind, host, *texts)) == [
            (name, f"{value:.1%}") for name, value in expected]


def test_a_score_and_tags(fine_tuned, host):
    model, tokenizer, kind = fine_tuned("bert", "ForSequenceClassification", num_labels=1,
                                        problem_type="regression", id2label={0: "LABEL_0"})
    with torch.no_grad():
        ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode("a film"), tokenizer.sep_id]])
        score = model.eval()(ids)[0].item()
    assert read(demo.classify(model, tokenizer, kind, host, "a film"))[1] == f"{score:.4f}"
    model, tokenizer, kind = fine_tuned("roberta", "ForTokenClassification", num_labels=2,
                                        id2label={0: "O", 1: "<B>"})
    html = demo.classify(model, tokenizer, kind, host, "a lovely <i>film</i>")
    assert re.fullmatch("a(O|<B>) lovely(O|<B>) <i>film</i>(O|<B>)", read(html)[1])
    assert read(html)[0] == {"p", "ruby", "rt"}


def test_several_labels_to_a_text(fine_tuned, host):
    model, tokenizer, _ = fine_tuned("bert", "ForSequenceClassification", num_labels=3)
    with torch.no_grad():
        ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode("a film"), tokenizer.sep_id]])
        p = sorted(model.eval()(ids)[0][0].sigmoid().tolist(), reverse=True)
    html = demo.classify(model, tokenizer, "multilabel", host, "a film")
    assert [number for _, number in bars(html)] == [f"{value:.1%}" for value in p]


def test_cosines_of_sentences(base):
    model, tokenizer = inference.open_model(base["roberta"])
    others = ["it was dull", "a fine film", "weak and poor"]
    html = demo.compare(model.encoder, tokenizer, "a fine film", "\n\n".join(others))
    (first, *rest), _ = inference.embed(model.encoder, tokenizer, ["a fine film", *others], normalize=True)
    expected = sorted(((line, float(first @ other)) for line, other in zip(others, rest)),
                      key=lambda pair: -pair[1])
    assert bars(html) == [(line, f"{cosine:.3f}") for line, cosine in expected]
    assert bars(html)[0] == ("a fine film", "1.000")


def test_squares_of_the_map(base):
    model, tokenizer = inference.open_model(base["bert"])
    tokens, maps = inference.attention(model, tokenizer, "a fine film")
    for layer, head, expected in ((1, 1, maps[0, 0]), (2, 2, maps[1, 1]), (2, "mean", maps[1].mean(0))):
        html = demo.attend(model, tokenizer, "a fine film", layer, head)
        titles = re.findall("<title>(.*?) looks at (.*?): (.*?)</title>", html)
        names = [token.strip() for token in tokens]
        assert [tuple(map(unescape, title)) for title in titles] == [
            (one, other, f"{p:.3f}") for one, row in zip(names, expected.tolist())
            for other, p in zip(names, row)]
        opacity = [float(value) for value in re.findall('fill-opacity="(.*?)"', html)]
        assert max(opacity) == 1 and len(opacity) == len(tokens)**2


def test_a_map_of_another_familys_mask(base):
    """It is one token, though the text of it would be several."""
    model, tokenizer = inference.open_model(base["roberta"])
    html = demo.attend(model, tokenizer, " ".join(["[MASK]"] * (demo.SQUARES - 2)), 1, 1)
    assert html.count("<rect") == demo.SQUARES**2

# -----------------------------------------------------------------------------
# hostile and long texts

def test_what_is_written_shows_as_text(base, host, fine_tuned):
    model, tokenizer = inference.open_model(base["roberta"])
    classifier = fine_tuned("bert", "ForSequenceClassification", num_labels=2,
                            id2label={0: HOSTILE, 1: MARKS})
    for written in (HOSTILE, MARKS):
        seen = written.replace("\ud800", "\ufffd")  # half a character
        tags, text = read(demo.fill(model, tokenizer, written + "[MASK]"))
        assert tags == {"p", "mark", "div", "section", "h3", "span", "i", "b"} and text.startswith(seen)
        tags, text = read(demo.compare(model.encoder, tokenizer, written, written))
        assert tags == {"p", "div", "span", "i", "b"} and text.startswith(seen)
        tags, text = read(demo.attend(model, tokenizer, written, 1, 1))
        assert tags == {"p", "svg", "text", "rect", "title"} and f"<s> looks at {written[0]}: " in text
        tags, text = read(demo.classify(*classifier, host, written))
        assert tags == {"div", "span", "i", "b"} and seen in text
        assert re.fullmatch(r"(\w|&#[0-9]+;| )*", demo.escape(written))


def test_what_is_wrong_is_said_on_the_page(base, host, fine_tuned):
    model, tokenizer = inference.open_model(base["bert"])
    classifier = fine_tuned("roberta", "ForSequenceClassification", num_labels=2)
    fill = demo.safe(partial(demo.fill, model, tokenizer), host)
    classify = demo.safe(partial(demo.classify, *classifier, host), host)
    compare = demo.safe(partial(demo.compare, model.encoder, tokenizer), host)
    attend = demo.safe(partial(demo.attend, model, tokenizer), host)
    for html, message in [
        (fill("no mask"), "Please write [MASK] where a word is missing."),
        (fill("[MASK]" + "a" * demo.CHARACTERS), "The limit is 10,000 characters."),
        (fill("[MASK]" + "the " * 64), "is longer than the model's 64 positions"),
        (classify("the " * 70, ""), "is longer than the model's 62 positions"),
        (classify("the " * 40, "the " * 40), "is longer than the model's 62 positions"),
        (compare("a", "a\n" * (demo.LINES + 1)), "The limit is 16 sentences of 64 tokens."),
        (compare("a", "the " * 70), "The limit is 16 sentences of 64 tokens."),
        (attend("the " * 50, 1, 1), "The limit of a map is 40 tokens; this text has 52."),
    ]:
        tags, text = read(html)
        assert tags == {"p", "mark"} and message in text


def test_empty_boxes_do_no_harm(base, host, fine_tuned):
    model, tokenizer = inference.open_model(base["albert"])
    assert bars(demo.compare(model.encoder, tokenizer, "", " \n")) == []
    assert demo.attend(model, tokenizer, "", 1, 1).count("<rect") == 4
    for head in ("ForSequenceClassification", "ForTokenClassification"):
        demo.classify(*fine_tuned("bert", head, num_labels=2), host, "", " ")

# -----------------------------------------------------------------------------
# the command line

def test_bad_input(base, host, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    checkpoint = ["--checkpoint", base["bert"]]
    assert "pip install -r requirements-demo.txt" in refused(demo, arguments(*checkpoint))
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(__version__="6.19.0"))
    assert "gradio 6.19.0 is too old: pip install" in refused(demo, arguments(*checkpoint))
    assert "65536 is not between 1 and 65535" in refused(demo, [*checkpoint, "--port", "65536"])
    assert "required: --checkpoint" in refused(demo, [])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        error = refused(demo, [*checkpoint, "--port", port, "--device", "cpu"])
        assert "Address already in use" in error and port in error
    args = demo.parse_arguments(arguments(*checkpoint, "--classifier", base["roberta"]))
    with pytest.raises(ValueError, match="has no classifier; fine-tune it first"):
        demo.build(None, args, host)
