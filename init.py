"""
Fresh weights with a head start. A masked language model first learns, slowly, which tokens are frequent,
which are alike, and how to look at a token's neighbours; here it starts with all three. The architecture does
not change.

    model = bert.ForPreTraining(bert.Config())
    init.unigram_bias(model, rows.unigram_probs)  # of data.Rows; the loss starts at the unigram line
    init.word_vectors(model, rows.split.tokens)
    init.sinusoids(model)
    init.neighbours(model)              # needs the sinusoids

Source: Levy and Goldberg 2014, section 4, the word vectors; Vaswani et al. 2017, section 3.5, the sinusoids,
and why a distance is a rotation of them. What each is worth: results/speedrun.md.
"""

import math

import numpy as np
import torch


@torch.no_grad()
def unigram_bias(model, unigram_probs):
    """The output bias becomes the logarithm of each id's probability: an array (V,), none of them 0."""
    model.mlm.bias.copy_(torch.from_numpy(np.log(unigram_probs)))


@torch.no_grad()
def word_vectors(model, tokens, contexts=1024, sample=20):
    """The word embeddings become vectors of their neighbours: two tokens are alike if the same ones stand
    beside them in the text. A vector has, for each of the `contexts` most frequent ids, the positive
    pointwise mutual information of standing side by side, max(0, log(p(a, b) / (p(a) p(b)))). Of these (V, C)
    the part in their E principal directions is kept, and turned at random; all vectors get the length of one
    drawn with twice initializer_range. Ids that the text lacks stay as they were.

    tokens: the text's ids (N,), of which at most `sample` million are counted. The model must be on the CPU.
    In float64, as with less the directions would depend on the number of threads."""
    table = model.encoder.embeddings.word.weight
    V, E = table.shape
    parts = np.array_split(tokens, 1 + len(tokens) // 10**6)
    parts = parts[::math.ceil(len(parts) / sample)]  # spread over the text
    frequent = np.argsort(-sum(np.bincount(part, minlength=V) for part in parts), kind="stable")[:contexts]
    C = len(frequent)
    column = torch.full((V,), C)  # column C has all other ids, and is dropped below
    column[torch.from_numpy(frequent)] = torch.arange(C)
    counts = torch.zeros(V * (C + 1), dtype=torch.float64)
    for ids in (torch.from_numpy(part.astype(np.int64)) for part in parts):
        for a, b in ((ids[1:], ids[:-1]), (ids[:-1], ids[1:])):
            counts.index_add_(0, a * (C + 1) + column[b], torch.ones(len(a), dtype=torch.float64))
    counts = counts.view(V, C + 1)[:, :C]
    chance = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    pmi = (counts / chance.clamp_(min=1e-9)).clamp_(min=1).log_()  # (V, C)
    principal = torch.linalg.eigh(pmi.T @ pmi)[1][:, -E:]
    principal *= principal.gather(0, principal.abs().argmax(0, keepdim=True)).sign()  # else arbitrary
    # a random rotation, so that no dimension, and no head, has more of the variance than another
    rotation = torch.nn.init.orthogonal_(torch.empty(principal.shape[1], E, dtype=torch.float64))
    vectors = pmi @ (principal @ rotation)
    length = vectors.norm(dim=1, keepdim=True)
    vectors *= 2 * model.config.initializer_range * E ** 0.5 / length
    table.copy_(torch.where(length > 0, vectors, table))


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
    to_sinusoids = torch.eye(E)  # the way from a hidden vector back to the sinusoids in it
    if wide := getattr(model.encoder, "embedding_to_hidden", None):  # ALBERT's, from E to H
        wide.weight.div_(wide.weight.std() * E ** 0.5)  # its output is to be as large as a layer's
        to_sinusoids = torch.linalg.pinv(wide.weight, rtol=0.1)  # but for directions that it nearly loses
    for attention in (module for module in model.modules() if hasattr(module, "num_heads")):
        D = len(attention.query.weight) // attention.num_heads
        n = min(D, E) // 2  # sinusoids that have room in a head
        for h in range(attention.num_heads // 2):
            distance = h // 2 + 1 if h % 2 else -(h // 2 + 1)
            angles = distance * frequencies(E)[:n]
            cos, sin = angles.cos(), angles.sin()
            rotation = torch.block_diag(*torch.stack([cos, sin, -sin, cos], 1).view(n, 2, 2))  # (2n, 2n)
            rows = slice(h * D, h * D + 2 * n)
            attention.query.weight[rows] += rotation @ to_sinusoids[:2 * n]
            attention.key.weight[rows] += to_sinusoids[:2 * n]
