"""muon.py against torch.optim.Muon, which goes matrix by matrix."""

import pytest
import torch

from muon import Muon, newton_schulz, split_parameters


def test_the_same_steps_as_torch():
    """Wide, tall and square matrices, two of a shape; weight decay; a rate that changes between the steps."""
    torch.manual_seed(0)
    shapes = [(32, 32), (64, 16), (64, 16), (16, 64)]
    ours, theirs = ([torch.nn.Parameter(0.1 * matrix) for matrix in matrices]
                    for matrices in [[torch.randn(shape) for shape in shapes]] for _ in range(2))
    options = dict(lr=0.02, momentum=0.9, weight_decay=0.1)
    optimizers = Muon(ours, **options), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options)
    start = [p.detach().clone() for p in ours]
    for step in range(4):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.02 / (1 + step)
            optimizer.step()
    for a, b, before in zip(ours, theirs, start):
        moved = (b - before).norm()
        assert moved > 0.05 * before.norm()
        assert (a - b).norm() < 0.01 * moved  # both compute the update in bfloat16


@pytest.mark.parametrize("shape", [(2, 24, 24), (2, 24, 32), (2, 24, 48), (3, 96, 24)])
def test_newton_schulz_in_float32(shape):
    """The polynomial of Jordan et al. on singular values that go down to 0, as a gradient's; in float64."""
    torch.manual_seed(2)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, -6, u.shape[2], dtype=torch.float64)
    values[-2:] = 0
    x, values = u * values @ v, values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert (newton_schulz(x.float()) - u * values @ v).abs().max() < 5e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 60, 20), (2, 20, 60)])
def test_an_update_is_nearly_orthogonal(shape, dtype):
    """The same singular vectors, and singular values near one."""
    torch.manual_seed(1)
    x = torch.randn(shape).bfloat16().float()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ newton_schulz(x.to(dtype), 5).float() @ v.mT  # diagonal if the vectors are the same
    values = inside.diagonal(dim1=1, dim2=2)
    assert 0.5 < values.min() and values.max() < 1.35
    assert (inside - torch.diag_embed(values)).abs().max() < 0.1


def test_a_weight_of_two_layers_moves_once():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    model[1].weight = model[0].weight
    matrices, others = split_parameters(model)
    assert len(matrices) == 1 and matrices[0] is model[0].weight and len(others) == 4


def test_a_closure_as_in_torch():
    p = torch.nn.Parameter(torch.eye(3))
    muon = Muon([p], lr=0.1)

    def closure():
        muon.zero_grad()
        loss = (p ** 2).sum()
        loss.backward()
        return loss
    assert muon.step(closure) == 3 and (p ** 2).sum() < 3
