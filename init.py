"""
Fresh weights with a head start. A masked language model first learns, slowly, which tokens are frequent and
how to look at a token's neighbours; here it starts with both. The architecture does not change.

    model = bert.ForPreTraining(bert.Config())
    init.unigram_bias(model, rows.unigram_probs)  # of data.Rows; the loss starts at the unigram line
    init.sinusoids(model)
    init.neighbours(model)              # needs the sinusoids

Source: Vaswani et al. 2017, section 3.5: the sinusoids, and why a distance is a rotation of them. What each
of the three is worth: results/speedrun.md.
"""

import numpy as np
import torch


@torch.no_grad()
def unigram_bias(model, unigram_probs):
    """The output bias becomes the logarithm of each id's probability: an array (V,), none of them 0."""
    model.mlm.bias.copy_(torch.from_numpy(np.log(unigram_probs)))


def frequencies(width):
    """Radians a position, of each pair of sine and cosine, the fastest first: (width / 2,)"""
    return 10_000 ** (-torch.arange(0, width, 2) / width)


@torch.no_grad()
def sinusoids(model):
    """The position embeddings become sinusoids, sine and cosine in turns, with an amplitude of four times
    initializer_range."""
    table = model.encoder.embeddings.position.weight  # (positions, E)
    angles = torch.arange(len(table))[:, None] * frequencies(table.shape[1])
    waves = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :table.shape[1]]
    table.copy_(4 * model.config.initializer_range * waves)


@torch.no_grad()
def neighbours(model):
    """Half of the heads of every layer start by looking a fixed distance away: one token back, one ahead, two
    back, and so on. A key gets the fastest sinusoids of its own position, a query those of the position that
    it looks for, which are its own, rotated: sin(a + b) = sin a cos b + cos a sin b. Positions reach every
    layer through the residual stream. The other heads stay random: with all of them set, NSP is learnt later,
    and ALBERT's loss ends higher. The model must be on the CPU, in float32."""
    E = model.encoder.embeddings.position.embedding_dim
    back = torch.eye(E)  # the way from a hidden vector back to the sinusoids in it
    if wide := getattr(model.encoder, "embedding_to_hidden", None):  # ALBERT's, from E to H
        wide.weight.div_(wide.weight.std() * E ** 0.5)  # its output is to be as large as a layer's
        back = torch.linalg.pinv(wide.weight, rtol=0.1)  # but for directions that it nearly loses
    for attention in (module for module in model.modules() if hasattr(module, "num_heads")):
        D = len(attention.query.weight) // attention.num_heads
        n = min(D, E) // 2  # sinusoids that have room in a head
        for h in range(attention.num_heads // 2):
            distance = h // 2 + 1 if h % 2 else -(h // 2 + 1)
            angles = distance * frequencies(E)[:n]
            cos, sin = angles.cos(), angles.sin()
            rotation = torch.block_diag(*torch.stack([cos, sin, -sin, cos], 1).view(n, 2, 2))  # (2n, 2n)
            rows = slice(h * D, h * D + 2 * n)
            attention.query.weight[rows] += rotation @ back[:2 * n]
            attention.key.weight[rows] += back[:2 * n]
