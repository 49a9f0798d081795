"""Learning the learning rate from its equations; derivatives by double backward or by eq. 10 to 12. Shares no code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Learned:
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        l2: float,
        *,
        eta: float,
        order: str,
        alpha: float = 0.0,
        beta: float = 0.0,
        epsilon: float = 1e-5,
        delta: float = 1e-6,
    ) -> None:
        self.model, self.loss, self.l2, self.eta, self.order = model, loss, l2, eta, order
        self.alpha, self.beta, self.epsilon, self.delta = alpha, beta, epsilon, delta
        self.w = torch.cat([p.detach().flatten() for p in model.parameters()])
        self.last, self.change = torch.zeros_like(self.w), 0.0

    def objective(self, w: Tensor, x: Tensor, y: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        pieces, named = iter(w.split([p.numel() for p in self.model.parameters()])), self.model.named_parameters()
        values = {name: next(pieces).view(p.shape) for name, p in named}
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        outputs = functional_call(self.model, {**values, **buffers}, (x,))
        return self.loss(outputs, y).mean() + self.l2 / 2 * (w * w).sum()

    def gradient(self, w: Tensor, *batch) -> Tensor:
        w = w.clone().requires_grad_()
        return torch.autograd.grad(self.objective(w, *batch), w)[0]

    def curvature(self, w: Tensor, g: Tensor, *batch) -> float:
        w = w.clone().requires_grad_()
        first = torch.autograd.grad(self.objective(w, *batch), w, create_graph=True)[0]
        return (torch.autograd.grad(first @ g, w)[0] @ g).item()

    def learn(self, update: float) -> None:
        self.change = self.beta * self.change + update
        self.eta = max(self.eta + self.change, self.delta)

    def step(self, x: Tensor, y: Tensor, seed: int, held_out: tuple | None = None) -> dict[str, float]:
        batch = (x, y, seed)
        value, g = self.objective(self.w, *batch).item(), self.gradient(self.w, *batch)
        if self.order == "first" and held_out is None:
            slope = -(g @ self.last).item()
            self.learn(-self.alpha * slope)
            self.w, self.last = self.w - self.eta * g, g
            return {"loss": value, "learning_rate": self.eta, "slope": slope}
        used, start, on = self.eta, self.w, held_out or batch
        self.w = self.w - self.eta * g
        slope = -(g @ self.gradient(self.w, *on)).item()
        report = {"loss": value, "learning_rate": used, "slope": slope}
        if self.order == "first":
            self.learn(-self.alpha * slope)
        elif self.order == "second":
            report["curvature"] = self.curvature(self.w, g, *on)
            self.learn(-slope / (report["curvature"] + self.delta / (4 * self.epsilon**2)))
        else:  # eq. 10 and 12
            e = self.epsilon
            f = {k: self.objective(start - (used + k * e) * g, *on).item() for k in (-2, -1, 0, 1, 2)}
            below = f[2] + f[-2] - 2 * f[0]
            report |= {"slope": (f[1] - f[-1]) / (2 * e), "curvature": below / (4 * e**2)}
            self.learn(-2 * e * (f[1] - f[-1]) / (below + self.delta))
        return report
