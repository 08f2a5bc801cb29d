"""Where pretraining starts."""

import importlib
import math
from collections import Counter

import numpy as np
import pytest
import torch

import init
import runtime


def fresh(family):
    module = importlib.import_module(family)
    config = module.PRESETS[f"{family}-tiny"] | dict(
        vocab_size=500, max_position_embeddings=66, pad_token_id=0, num_attention_heads=4)
    torch.manual_seed(0)
    return module.ForPreTraining(module.Config(**config)).eval()


def test_the_output_starts_at_the_unigram_line():
    model, shares = fresh("bert"), np.arange(1, 501) / (500 * 501 / 2)
    init.unigram_bias(model, shares)
    nothing_seen = torch.zeros(1, 1, model.config.hidden_size)  # the bias alone
    p = model.mlm(nothing_seen, torch.zeros(500, model.config.hidden_size)).softmax(-1)
    np.testing.assert_allclose(p.detach().numpy()[0, 0], shares, rtol=1e-5)


@pytest.mark.parametrize("family", runtime.MODELS)
def test_words_start_as_vectors_of_their_neighbours(family):
    """As alike as their rows of pointwise mutual information, counted by hand: 60 ids keep all directions."""
    model, rng = fresh(family), np.random.default_rng(0)
    tokens = rng.integers(10, 40, 5000) + 30 * (np.arange(5000) % 2)  # 10 to 69, lower and higher in turns
    table = model.encoder.embeddings.word.weight
    before = table.clone()
    init.word_vectors(model, tokens)
    pairs = Counter(zip(tokens[1:], tokens)) + Counter(zip(tokens, tokens[1:]))
    margins = Counter(tokens[1:]) + Counter(tokens[:-1])
    pmi = np.array([[max(0, math.log(max(1e-9, pairs[a, b] * 9998 / (margins[a] * margins[b]))))
                     for b in range(10, 70)] for a in range(10, 70)])
    cosines = lambda x: (x @ x.T) / np.linalg.norm(x, axis=1) / np.linalg.norm(x, axis=1)[:, None]
    vectors = table.detach().numpy()[10:70]
    np.testing.assert_allclose(cosines(vectors), cosines(pmi), atol=1e-5)
    np.testing.assert_allclose(vectors.std(1), 2 * model.config.initializer_range, rtol=0.05)
    assert torch.equal(table[:10], before[:10]) and torch.equal(table[70:], before[70:])  # not in the text


def test_of_a_long_text_a_sample_gives_the_word_vectors():
    """The few most frequent ids are the neighbours that count; the fewer of them, the fewer directions."""
    model, tokens = fresh("bert"), np.random.default_rng(0).zipf(1.5, 3 * 10**6).clip(max=499)
    init.word_vectors(model, tokens, contexts=20, sample=2)
    assert torch.linalg.matrix_rank(model.encoder.embeddings.word.weight[tokens[:2000]]) <= 20


@pytest.mark.parametrize("family", runtime.MODELS)
def test_positions_start_as_sinusoids(family):
    model = fresh(family)
    init.sinusoids(model)
    table = model.encoder.embeddings.position.weight
    for position, i in ((0, 0), (1, 0), (7, 5), (65, 30)):
        angle = position / 10_000 ** (2 * i / table.shape[1])
        assert table[position, 2 * i:2 * i + 2].tolist() == pytest.approx(
            [0.08 * math.sin(angle), 0.08 * math.cos(angle)], abs=1e-6)


@pytest.mark.parametrize("family", runtime.MODELS)
def test_heads_start_at_their_neighbours(family):
    """Half of them. Judged by positions alone, as a token's own vector is like itself, and over a row."""
    model = fresh(family)
    init.sinusoids(model)
    init.neighbours(model)
    model.encoder.embeddings.word.weight.data.zero_()
    attention, found = next(module for module in model.modules() if hasattr(module, "num_heads")), {}
    for name in ("query", "key"):
        getattr(attention, name).register_forward_hook(
            lambda module, inputs, output, name=name: found.update({name: output}))  # of the last layer
    model.encoder(torch.full((1, 64), 3))
    q, k = (found[name][0].unflatten(-1, (4, -1)).transpose(0, 1) for name in ("query", "key"))  # (4, T, D)
    means = [{d: scores.diagonal(d).mean() for d in range(-9, 10)} for scores in q @ k.mT]
    assert [max(mean, key=mean.get) for mean in means[:2]] == [-1, 1]
    assert all(max(map(abs, mean.values())) < means[0][-1] / 10 for mean in means[2:])  # as drawn
