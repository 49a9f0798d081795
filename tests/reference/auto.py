"""Auto, averaged RED steps and LLR with a relative damping, by double backward of one sample after the other.

Slow, float64, shares no code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Naive:
    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], l2: float) -> None:
        self.model, self.loss, self.l2 = model, loss, l2
        self.theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def samples(self, theta: Tensor, x: Tensor, y: Tensor, seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        pieces = theta.split([p.numel() for p in self.model.parameters()])
        named = self.model.named_parameters()
        values = {name: piece.view(p.shape) for (name, p), piece in zip(named, pieces, strict=True)}
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        outputs = functional_call(self.model, {**values, **buffers}, (x,))
        return [self.loss(outputs[s : s + 1], y[s : s + 1])[0] + self.l2 / 2 * theta @ theta for s in range(len(y))]


class NaiveAveraged(Naive):
    def __init__(
        self, model, loss, l2, steps: int, beta1: float = 0.0, beta2: float | None = None, start: float = 1.0
    ) -> None:
        super().__init__(model, loss, l2)
        self.steps, self.beta1, self.beta2, self.start = steps, beta1, beta2, start
        self.m, self.v = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.k, self.up, self.down = 0, 0.0, 0.0

    def step(self, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        theta = self.theta.clone().requires_grad_()
        losses = self.samples(theta, x, y, seed)
        gradients = [torch.autograd.grad(j, theta, create_graph=True)[0] for j in losses]
        g = sum(gradients).detach() / len(y)
        schedule = min(
            1.0, (self.k + 1) / round(0.1 * self.steps), max(0.0, (self.steps - self.k) / (0.25 * self.steps))
        )
        self.k += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        d = self.m / (1 - self.beta1**self.k)
        if self.beta2 is not None:
            self.v = self.beta2 * self.v + (1 - self.beta2) * g * g
            d = d / (torch.sqrt(self.v / (1 - self.beta2**self.k)) + 1e-8)
        if self.k - 1 <= 0.75 * self.steps and (self.k <= 20 or (self.k - 1) % 5 == 0):
            curvatures = [float(d @ torch.autograd.grad(h @ d, theta, retain_graph=True)[0]) for h in gradients]
            if self.k == 2:
                self.up = self.down = 0.0
            self.up += schedule * float(g @ d) * (self.start if self.k == 1 else 1.0)
            self.down += schedule * sum(map(abs, curvatures)) / len(y)
        rate = schedule * max(0.0, self.up / self.down)
        self.theta = self.theta - rate * d
        return {"loss": float(sum(losses).detach()) / len(y), "learning_rate": rate, "schedule": schedule}


class NaiveAuto(Naive):
    """Every length is computed anew from a list of all measurements, the average from a list of all weights."""

    def __init__(self, model, loss, l2, start: float = 1.0) -> None:
        super().__init__(model, loss, l2)
        self.start = start
        self.m, self.v = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.slopes, self.curved, self.history = [], [], [self.theta]
        self.direction, self.length, self.k = None, 0.0, 0

    def step(self, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        theta = self.theta.clone().requires_grad_()
        losses = self.samples(theta, x, y, seed)
        gradients = [torch.autograd.grad(j, theta, create_graph=True)[0] for j in losses]
        g = sum(gradients).detach() / len(y)
        k, d = self.k, self.direction
        if d is not None:
            self.slopes.append((100 + k, float(g @ d)))
            if k < 20 or k % 5 == 0:
                hs = [float(d @ torch.autograd.grad(h @ d, theta, retain_graph=True)[0]) for h in gradients]
                h = sum(hs) / len(hs)
                self.curved.append((100 + k, self.length * h, abs(h)))
        self.k += 1
        self.m, self.v = 0.8 * self.m + 0.2 * g, 0.999 * self.v + 0.001 * g * g
        root = torch.sqrt(self.v / (1 - 0.999**self.k))
        self.direction = self.m / (1 - 0.8**self.k) / (root + 1e-6 * float((root**2).mean()) ** 0.5)
        slope = curvature = rate = 0.0
        if self.curved:
            total = sum(w for w, _, _ in self.curved)
            slope = sum(w * s for w, s in self.slopes) / sum(w for w, _ in self.slopes)
            slope += sum(w * ah for w, ah, _ in self.curved) / total
            curvature = sum(w * c for w, _, c in self.curved) / total
            rate = min(1.0, self.k / 30) * (self.start if k < 20 else 1.0) * 1.5 * max(0.0, slope) / curvature
        self.length = rate
        self.theta = self.theta - rate * self.direction
        self.history.append(self.theta)
        return {
            "loss": float(sum(losses).detach()) / len(y),
            "learning_rate": rate,
            "slope": slope,
            "curvature": curvature,
        }

    def average(self) -> Tensor:
        """Weights after each step k that measured curvature, weighted by k¹⁰ less that of the one before."""
        taken = [k for k in range(2, len(self.history)) if k <= 20 or (k - 1) % 5 == 0]
        powers = [float(k) ** 10 for k in taken]
        shares = [powers[0], *(b - a for a, b in itertools.pairwise(powers))]
        return sum(s * self.history[k] for s, k in zip(shares, taken, strict=True)) / powers[-1]


class NaiveRelative(Naive):
    def __init__(self, model, loss, l2, eta: float) -> None:
        super().__init__(model, loss, l2)
        self.eta, self.mean = eta, None

    def mean_gradient(self, theta: Tensor, *batch) -> tuple[float, Tensor, Tensor]:
        theta = theta.clone().requires_grad_()
        losses = self.samples(theta, *batch)
        value = sum(losses) / len(losses)
        return float(value.detach()), torch.autograd.grad(value, theta, create_graph=True)[0], theta

    def step(self, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        value, g, _ = self.mean_gradient(self.theta, x, y, seed)
        g = g.detach()
        _, there, point = self.mean_gradient(self.theta - self.eta * g, x, y, seed)
        slope = -float(g @ there.detach())
        curvature = float(g @ torch.autograd.grad(there @ g, point)[0])
        before = max(abs(curvature), abs(slope) / self.eta) if self.mean is None else self.mean
        self.mean = 0.99 * before + 0.01 * abs(curvature)
        self.theta, used = self.theta - self.eta * g, self.eta
        self.eta = max(0.0, self.eta - slope / (curvature + 30 * max(self.mean, abs(curvature))))
        return {"loss": value, "learning_rate": used, "slope": slope, "curvature": curvature}
