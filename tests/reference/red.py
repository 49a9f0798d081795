"""RED and RAn from the paper's equations, one sample after the other, by double backward. Slow, float64, shares no
code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call


class NaiveRed:
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        l2: float,
        ell: Callable[[int], float],
        steps_per_epoch: int,
        beta1: float | None = None,
        beta2: float | None = None,
        beta3: float = 0.9,
        two: float = 2.0,
        epsilon: float = 1e-8,
        fraction: float = 1.0,
    ) -> None:
        self.model, self.loss, self.l2, self.ell, self.steps_per_epoch = model, loss, l2, ell, steps_per_epoch
        self.beta1, self.beta2, self.beta3, self.two, self.epsilon = beta1, beta2, beta3, two, epsilon
        self.trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.theta = torch.cat([p.detach().flatten() for _, p in self.trained])
        self.g_hat = torch.zeros_like(self.theta)
        self.v_hat = torch.zeros_like(self.theta)
        self.c_hat = 0.0
        self.k = 0
        self.fraction = fraction
        self.of_descent: list[bool] = []

    def samples(self, theta: Tensor, x: Tensor, y: Tensor, seed: int) -> list[Tensor]:
        """J_s for every sample, each a function of the whole batch."""
        torch.manual_seed(seed)
        pieces = theta.split([p.numel() for _, p in self.trained])
        values = {name: piece.view(p.shape) for (name, p), piece in zip(self.trained, pieces, strict=True)}
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        outputs = functional_call(self.model, {**values, **buffers}, (x,))
        return [self.loss(outputs[s : s + 1], y[s : s + 1])[0] + self.l2 / 2 * theta @ theta for s in range(len(y))]

    def step(self, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        if self.k % self.steps_per_epoch == 0:
            self.of_descent = []
        ell = self.ell(self.k // self.steps_per_epoch)
        self.k += 1

        theta = self.theta.clone().requires_grad_()
        losses = self.samples(theta, x, y, seed)
        gradients = [torch.autograd.grad(j, theta, create_graph=True)[0] for j in losses]
        g = sum(gradients).detach() / len(y)

        direction = g
        if self.beta1 is not None:
            self.g_hat = self.beta1 * self.g_hat + (1 - self.beta1) * g
            direction = self.g_hat / (1 - self.beta1**self.k)
        if self.beta2 is not None:
            self.v_hat = self.beta2 * self.v_hat + (1 - self.beta2) * g * g
            direction = direction / (torch.sqrt(self.v_hat / (1 - self.beta2**self.k)) + self.epsilon)

        curved = math.ceil(self.fraction * len(y))
        curvatures = [
            direction @ torch.autograd.grad(h @ direction, theta, retain_graph=True)[0] for h in gradients[:curved]
        ]
        norm = float(direction @ direction)
        c = sum(abs(float(value)) for value in curvatures) / curved / norm
        self.c_hat = self.beta3 * self.c_hat + (1 - self.beta3) * c
        lipschitz = max(self.c_hat / (1 - self.beta3**self.k), c)
        slope = float(direction @ g)
        r = abs(slope) / (self.two * norm * lipschitz)
        self.theta = self.theta - ell * r * direction
        self.of_descent.append(slope >= 0)
        return {
            "loss": float(sum(losses).detach()) / len(y),
            "learning_rate": ell * r,
            "curvature": c,
            "lipschitz": lipschitz,
            "scale": ell,
            "descent_share": sum(self.of_descent) / len(self.of_descent),
        }
