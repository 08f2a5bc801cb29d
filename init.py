"""
Where pretraining starts: fresh weights that know what a masked language model learns first, and slowly: which
tokens are frequent, and where a token's neighbours stand. The model stays what it is.

    model = bert.ForPreTraining(bert.Config())
    init.unigram_bias(model, tokens)    # the loss starts at the entropy of the tokens' frequencies
    init.sinusoids(model)
    init.neighbours(model)              # by those sinusoids

Source: Vaswani et al. 2017, section 3.5: the sinusoids, and why a distance is a rotation of them. What each
of the three is worth: results/speedrun.md.
"""

import numpy as np
import torch


@torch.no_grad()
def unigram_bias(model, tokens):
    """The output bias becomes the logarithm of the frequency of each id in tokens, an array."""
    parts = np.array_split(tokens, 1 + len(tokens) // 10**7)  # to keep the memory small
    counts = 1 + sum(np.bincount(part, minlength=len(model.mlm.bias)) for part in parts)
    model.mlm.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))


def rates(width):
    """Radians a position, of each pair of sine and cosine, the fastest first: (width / 2,)"""
    return 10_000 ** (-torch.arange(0, width, 2) / width)


@torch.no_grad()
def sinusoids(model):
    """The position embeddings become sinusoids, sine and cosine in turns, four times as large as other fresh
    weights."""
    table = model.encoder.embeddings.position.weight  # (positions, E)
    angles = torch.arange(len(table))[:, None] * rates(table.shape[1])
    waves = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :table.shape[1]]
    table.copy_(4 * model.config.initializer_range * waves)


@torch.no_grad()
def neighbours(model):
    """Half of the heads of every layer begin to look one token back, one ahead, two back, and so on. To a key
    are added the fastest sinusoids of its position, to a query the same of so many positions on: a rotation,
    as sine and cosine of a sum of two angles are. The residual stream carries the positions to all layers.
    The other heads stay free: with all of them bound, NSP is learnt later and ALBERT ends higher."""
    E = model.encoder.embeddings.position.embedding_dim
    wide = getattr(model.encoder, "embedding_to_hidden", None)  # ALBERT's, (H, E)
    back = torch.eye(E) if wide is None else torch.linalg.pinv(wide.weight, rtol=0.1)  # (E, H)
    for attention in (module for module in model.modules() if hasattr(module, "num_heads")):
        D = len(attention.query.weight) // attention.num_heads
        n = min(D, E) // 2  # sinusoids that have room in a head
        for h in range(attention.num_heads // 2):
            distance = -(h // 2 + 1) if h % 2 == 0 else h // 2 + 1
            cos, sin = (distance * rates(E)[:n]).cos(), (distance * rates(E)[:n]).sin()
            turn = torch.block_diag(*torch.stack([cos, sin, -sin, cos], 1).view(n, 2, 2))  # (2n, 2n)
            attention.query.weight[h * D:h * D + 2 * n] += turn @ back[:2 * n]
            attention.key.weight[h * D:h * D + 2 * n] += back[:2 * n]
