"""NTLR and windowed hypergradients from eq. 8 and Table 1, with sums over lists of gradients. Shares no code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Windowed:
    """SGD or Adam by their formulas; `rule` is "newton", "additive" or "multiplicative", `meta` is γ or η."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        l2: float,
        *,
        rate: float,
        k: int,
        rule: str,
        meta: float,
        adam: bool = False,
    ) -> None:
        self.model, self.loss, self.l2 = model, loss, l2
        self.alpha, self.k, self.rule, self.meta, self.adam = rate, k, rule, meta, adam
        self.w = list(model.parameters())
        self.m, self.v = [0 * w.detach() for w in self.w], [0 * w.detach() for w in self.w]
        self.directions: list[Tensor] = []  # of every step
        self.t = 0

    def step(self, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        value = self.loss(self.model(x), y).mean() + self.l2 / 2 * sum((w * w).sum() for w in self.w)
        gradients = torch.autograd.grad(value, self.w)
        self.t += 1
        moved = [self.adams(i, g) if self.adam else g for i, g in enumerate(gradients)]
        for w, u in zip(self.w, moved, strict=True):
            w.data -= self.alpha * u
        self.directions.append(torch.cat([u.flatten() for u in moved]))
        report = {"loss": value.item(), "learning_rate": self.alpha}
        if self.t % self.k == 0 and self.t >= 2 * self.k:
            new = sum(self.directions[-self.k :]) / self.k
            old = sum(self.directions[-2 * self.k : -self.k]) / self.k
            before, cosine = self.alpha, (old @ new / (old.norm() * new.norm())).item()
            self.alpha = self.updated(old, new, cosine)
            report |= {"learning_rate_factor": self.alpha / before, "cosine": cosine}
        return report

    def updated(self, old: Tensor, new: Tensor, cosine: float) -> float:
        if self.rule == "additive":
            return self.alpha + self.meta * (old @ new).item()
        if self.rule == "multiplicative":
            return self.alpha * (1 + self.meta * cosine)
        denominator = (old @ (old - new)).item()
        return self.alpha * (1 + self.meta * (old @ new).item() / denominator) if denominator > 0 else self.alpha

    def adams(self, i: int, g: Tensor) -> Tensor:
        self.m[i] = 0.9 * self.m[i] + 0.1 * g
        self.v[i] = 0.999 * self.v[i] + 0.001 * g * g
        return self.m[i] / (1 - 0.9**self.t) / ((self.v[i] / (1 - 0.999**self.t)).sqrt() + 1e-8)
