"""Where pretraining starts."""

import importlib
import math

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
