"""ALERA, SALERA, SPALERA and Ag-Adam line by line from Algorithms 1 and 2, in float64 lists. Shares no code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Agnostic:
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        l2: float,
        *,
        rate: float,
        alpha: float,
        c: float,
        rho: float | None = None,
        each: bool = False,
        adam: bool = False,
        epsilon: float = 1e-8,
    ) -> None:
        self.model, self.loss, self.l2 = model, loss, l2
        self.alpha, self.c, self.rho, self.each, self.adam, self.epsilon = alpha, c, rho, each, adam, epsilon
        self.theta = list(model.parameters())
        self.eta = [torch.full_like(w, rate) if each else torch.tensor(rate, dtype=w.dtype) for w in self.theta]
        self.p = [torch.zeros_like(w) for w in self.theta]
        self.m, self.v, self.adam_t = [0.0 * w for w in self.p], [0.0 * w for w in self.p], 0
        self.t, self.big_l, self.l_min, self.ell, self.ell_bar = 0, 0.0, 0.0, 0.0, 0.0
        self.threshold: float | None = None
        self.saved: dict[str, Tensor] | None = None
        self.alarms = 0

    def sigma(self, d: int) -> float:
        a = self.alpha
        return math.sqrt(1 / d * 2 * a**2 * (1 - a) ** 2 / ((2 - a) ** 2 * ((1 - a) ** 2 + 1)))

    def step(self, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        before = {k: v.clone() for k, v in self.model.state_dict().items()}
        torch.manual_seed(seed)
        value = self.loss(self.model(x), y).mean() + self.l2 / 2 * sum((w * w).sum() for w in self.theta)
        report = {"loss": value.item()}
        alarm = self.rho is not None and self.watch(value.item())
        gradients = torch.autograd.grad(value, self.theta)
        new_p = self.average(gradients)
        gaps = self.gaps(new_p)
        if self.rho is not None:
            report |= {
                "alarm": float(alarm),
                "smoothed_loss": self.ell,
                "deviation": self.big_l - self.l_min,
                "threshold": self.threshold,
            }
        if alarm:
            # θ^(b) is where the step before started: its parameters, and the buffers as that step left them.
            parameters = dict(self.model.named_parameters())
            self.model.load_state_dict({k: self.saved[k] if k in parameters else before[k] for k in before})
            self.eta = [eta / 2 for eta in self.eta]
            self.t, self.big_l, self.l_min = 0, 0.0, 0.0
            self.alarms += 1
        else:
            self.saved = before
            self.p = new_p
            for i, (w, g) in enumerate(zip(self.theta, gradients, strict=True)):
                self.eta[i] = self.eta[i] * torch.exp(self.c * gaps[i])
                w.data -= self.eta[i] * (self.adams(i, g) if self.adam else g)
        rates = torch.cat([eta.flatten() for eta in self.eta])
        report |= {
            "learning_rate": float(rates.log().mean().exp()),
            "learning_rate_min": float(rates.min()),
            "learning_rate_max": float(rates.max()),
        }
        report["alignment"] = float(torch.cat([gap.flatten() for gap in self.gaps(self.p)]).mean())
        if self.rho is not None:
            report["alarms"] = float(self.alarms)
        return report

    def watch(self, value: float) -> bool:
        if self.threshold is None:
            self.threshold = value / 10
        if self.t == 0:
            self.ell = self.ell_bar = value
        self.t += 1
        self.ell = self.rho * value + (1 - self.rho) * self.ell
        self.ell_bar = (self.ell + self.t * self.ell_bar) / (self.t + 1)
        self.big_l += self.ell - self.ell_bar
        self.l_min = min(self.l_min, self.big_l)
        return self.big_l - self.l_min > self.threshold

    def average(self, gradients: tuple[Tensor, ...]) -> list[Tensor]:
        whole = math.sqrt(sum(float((g * g).sum()) for g in gradients))
        new = []
        for g, p in zip(gradients, self.p, strict=True):
            norm = whole if self.each else math.sqrt(float((g * g).sum()))
            unit = g / norm if norm > 8 * 2**-52 * whole else 0 * g  # a gradient that is rounding has no direction
            new.append(self.alpha * unit + (1 - self.alpha) * p)
        return new

    def gaps(self, p: list[Tensor]) -> list[Tensor]:
        mu = self.alpha / (2 - self.alpha)
        if self.each:
            d = sum(q.numel() for q in p)
            return [(q * q - mu / d) / (self.sigma(d) / math.sqrt(d)) for q in p]
        return [((q * q).sum() - mu) / self.sigma(q.numel()) for q in p]

    def adams(self, i: int, g: Tensor) -> Tensor:
        if i == 0:
            self.adam_t += 1
        self.m[i] = 0.9 * self.m[i] + 0.1 * g
        self.v[i] = 0.999 * self.v[i] + 0.001 * g * g
        m_hat, v_hat = self.m[i] / (1 - 0.9**self.adam_t), self.v[i] / (1 - 0.999**self.adam_t)
        return m_hat / (v_hat.sqrt() + self.epsilon)
