"""
Muon in one file: momentum, with every update of a matrix made orthogonal.

    matrices, others = split_parameters(model)
    optimizers = [Muon(matrices, lr=4e-3), torch.optim.AdamW(others, lr=4e-3)]

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale that lets it share AdamW's
rate and weight decay: Liu et al. 2025, https://arxiv.org/abs/2502.16982, section 2.2. It computes what
torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw") computes; but matrices of one shape are batched, which
is faster for small ones, and the Newton-Schulz iteration may be in float32, where wide ones need fewer
products: Zhang et al. 2026, https://dao-lab.ai/blog/2026/gram-newton-schulz.
"""

import torch


class Muon(torch.optim.Optimizer):
    """params: matrices (out, in). dtype: of the Newton-Schulz iteration."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, dtype=torch.bfloat16):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                updates = []
                for p in params:
                    if not self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                    momentum = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov's
                updates = newton_schulz(torch.stack(updates).to(self.dtype))
                # an orthogonal update has a root mean square of 1 / sqrt(max(shape)), AdamW's about 0.2
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, update in zip(params, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
        return loss


def split_parameters(model):
    """-> matrices, others: the weights of linear layers, for Muon, and all other parameters, for AdamW; among
    the others are layers with one or two outputs, which are heads."""
    matrices = dict.fromkeys(module.weight for module in model.modules()  # once, if two layers have the same
                             if isinstance(module, torch.nn.Linear) and min(module.weight.shape) > 2)
    return list(matrices), [p for p in model.parameters() if p not in matrices]


def newton_schulz(x, steps=5):
    """(n, out, in) -> about U Vᵀ of each matrix's U S Vᵀ: an odd polynomial, applied `steps` times, brings
    the singular values above some thousandths of the norm to between 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT  # the products are cheaper
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.dtype != torch.bfloat16 and x.shape[2] >= 2 * x.shape[1]:
        # Iterate on the small G = x xᵀ, and use x once: a step takes x to P x, and so G to P G P.
        gram = x @ x.mT
        for step in range(steps):
            if step:
                gram = polynomial @ gram @ polynomial
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            polynomial.diagonal(dim1=1, dim2=2).add_(a)  # P = a + b G + c G G
            product = polynomial @ product if step else polynomial
        x = product @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G G
            x = torch.baddbmm(x, polynomial, x, beta=a)                     # a x + (b G + c G G) x
    return x.mT if tall else x
