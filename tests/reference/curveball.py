"""CurveBall from the paper's equations with dense matrices, one sample after the other.

Slow, float64, shares no code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import torch
from torch import Tensor, nn
from torch.func import functional_call


class DenseCurveBall:
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        l2: float,
        damping: float,
        factor: float = 0.999,
        interval: int | None = 5,
        rho: float | None = None,
        beta: float | None = None,
        fraction: float = 1.0,
    ) -> None:
        self.model, self.loss, self.l2 = model, loss, l2
        self.damping, self.factor, self.interval, self.fixed_rho, self.fixed_beta = damping, factor, interval, rho, beta
        self.w = torch.cat([p.detach().flatten() for p in model.parameters()])
        self.z = torch.zeros_like(self.w)
        self.t = 0
        self.before, self.failures = self.w, 0
        self.fraction = fraction

    def phi(self, w: Tensor, x: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        pieces, named = iter(w.split([p.numel() for p in self.model.parameters()])), self.model.named_parameters()
        values = {name: next(pieces).view(p.shape) for name, p in named}
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        return functional_call(self.model, {**values, **buffers}, (x,))

    def objective(self, w: Tensor, x: Tensor, y: Tensor, seed: int) -> Tensor:
        outputs = self.phi(w, x, seed)
        return (
            sum(self.loss(o[None], t[None])[0] for o, t in zip(outputs, y, strict=True)) / len(y)
            + self.l2 / 2 * (w * w).sum()
        )

    def step(self, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        w, z = self.w, self.z
        before = float(self.objective(w, x, y, seed))
        if not math.isfinite(before):
            return self.failed(before)
        outputs = self.phi(w, x, seed)
        jacobian = torch.autograd.functional.jacobian(lambda v: self.phi(v, x, seed), w)  # (B, o, p)
        hessian = torch.zeros(len(w), len(w), dtype=w.dtype)
        gradient = self.l2 * w
        curved = math.ceil(self.fraction * len(y))
        for s in range(len(y)):

            def of_output(o: Tensor, s: int = s) -> Tensor:
                return self.loss(o[None], y[s][None])[0]

            h = torch.autograd.functional.hessian(of_output, outputs[s].detach())
            g = torch.autograd.functional.jacobian(of_output, outputs[s].detach())
            if s < curved:
                hessian += jacobian[s].T @ h @ jacobian[s] / curved
            gradient = gradient + jacobian[s].T @ g / len(y)
        hessian += (self.damping + self.l2) * torch.eye(len(w), dtype=w.dtype)
        delta = hessian @ z + gradient
        k = numpy.array([[delta @ hessian @ delta, z @ hessian @ delta], [z @ hessian @ delta, z @ hessian @ z]])
        m = numpy.array([gradient @ delta, gradient @ z])
        beta, minus_rho = numpy.linalg.pinv(k, rcond=1e-12) @ m if self.t else (m[0] / k[0, 0], 0.0)
        if self.fixed_rho is not None:
            minus_rho = -self.fixed_rho
            beta = (m[0] - minus_rho * k[0, 1]) / k[0, 0]
        if self.fixed_beta is not None:
            beta = self.fixed_beta
        rho = -minus_rho
        self.before, self.failures = w, 0
        self.z = rho * z - beta * delta
        self.w = w + self.z
        predicted = float(gradient @ self.z + 0.5 * self.z @ hessian @ self.z)
        report = {"loss": before, "learning_rate": float(beta), "momentum": float(rho), "damping": self.damping}
        self.t += 1
        checked = self.interval is not None and self.t % self.interval == 0
        after = float(self.objective(self.w, x, y, seed))
        report["taken"] = float(math.isfinite(after) or not (checked or self.t == 1))
        if not report["taken"]:
            self.w, self.z = w, z
            self.grow()
        elif checked:
            gamma = (after - before) / predicted
            report["reduction_ratio"] = gamma
            if gamma > 1.5:
                self.damping *= self.factor**self.interval
            if gamma < 0.5:
                self.damping /= self.factor**self.interval
        return report

    def failed(self, loss: float) -> dict[str, float]:
        """A step that is not taken; the second in a row takes back the one before."""
        self.t, self.failures = self.t + 1, self.failures + 1
        if self.failures == 2:
            self.w, self.z = self.before, torch.zeros_like(self.z)
            self.grow()
        return {"loss": loss, "taken": 0.0}

    def grow(self) -> None:
        if self.interval is not None:
            self.damping /= self.factor**self.interval
