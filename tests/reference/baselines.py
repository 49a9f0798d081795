"""The papers' baselines from their equations, on flat float64 vectors or dense matrices. Shares no code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Problem:
    """J(w) on one batch, as a function of a flat vector."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], l2: float) -> None:
        self.model, self.loss, self.l2 = model, loss, l2
        self.w = torch.cat([p.detach().flatten() for p in model.parameters()])

    def batch(self, x: Tensor, y: Tensor, seed: int) -> None:
        self.x, self.y, self.seed = x, y, seed

    def phi(self, w: Tensor) -> Tensor:
        torch.manual_seed(self.seed)
        pieces = iter(w.split([p.numel() for p in self.model.parameters()]))
        values = {name: next(pieces).view(p.shape) for name, p in self.model.named_parameters()}
        return functional_call(self.model, {**values, **{n: b.clone() for n, b in self.model.named_buffers()}}, self.x)

    def f(self, w: Tensor) -> Tensor:
        return self.loss(self.phi(w), self.y).mean() + self.l2 / 2 * (w * w).sum()

    def value(self, w: Tensor) -> float:
        with torch.no_grad():
            return float(self.f(w))

    def gradient(self, w: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(self.f, w)

    def gauss_newton(self, w: Tensor) -> Tensor:
        outputs = self.phi(w).detach()
        jacobian = torch.autograd.functional.jacobian(self.phi, w).flatten(0, 1)
        hessian = torch.autograd.functional.hessian(lambda o: self.loss(o, self.y).mean(), outputs)
        n = outputs.numel()
        return jacobian.T @ hessian.reshape(n, n) @ jacobian + self.l2 * torch.eye(len(w), dtype=w.dtype)


class StandardRmsProp(Problem):
    """Algorithm 3 of RED with r = 1: the decay of ℓ is that of appendix B, τₙ = τ₀dⁿ in epoch n."""

    k, v = 0, 0.0

    def step(self, steps_per_epoch: int, rate=1e-3, d=1.0, beta=0.999, epsilon=1e-8) -> dict[str, float]:
        g = self.gradient(self.w)
        ell = rate * d ** (self.k // steps_per_epoch)
        self.k += 1
        self.v = beta * self.v + (1 - beta) * g**2
        report = {"loss": self.value(self.w), "learning_rate": ell}
        self.w = self.w - ell * g / (torch.sqrt(self.v / (1 - beta**self.k)) + epsilon)
        return report


class StepTuned(Problem):
    k, gamma, g = 0, 1.0, 0.0

    def step(self, alpha=0.1, nu=2.0, beta=0.9, m=0.5, big_m=2.0, delta=0.001) -> dict[str, float]:
        eta, loss = alpha * self.gamma / (self.k + 1) ** (0.5 + delta), self.value(self.w)
        report = {"loss": loss, "learning_rate": eta, "factor": self.gamma}
        first = self.gradient(self.w)
        half = self.w - eta * first
        second = self.gradient(half)
        self.g = beta * self.g + (1 - beta) * (second - first)
        corrected, moved = self.g / (1 - beta ** (self.k + 1)), half - self.w
        product = float(corrected @ moved)
        self.gamma = min(max(float(moved @ moved) / product if product > 0 else nu, m), big_m)
        self.w, self.k = half - eta * second, self.k + 1
        return report


class Polyak(Problem):
    last = 1.0

    def step(self, steps_per_epoch: int, c=0.5, tau=2.0, lowest=0.0) -> dict[str, float]:
        loss, g = self.value(self.w), self.gradient(self.w)
        self.last = min((loss - lowest) / (c * float(g @ g)), tau ** (1 / steps_per_epoch) * self.last)
        self.w = self.w - self.last * g
        return {"loss": loss, "learning_rate": self.last}


class LineSearch(Problem):
    eta = None

    def step(self, steps_per_epoch: int, first=1.0, c=0.1, beta=0.9, gamma=2.0, largest=10.0) -> dict[str, float]:
        loss, g = self.value(self.w), self.gradient(self.w)
        eta = first if self.eta is None else min(self.eta * gamma ** (1 / steps_per_epoch), largest)
        while self.value(self.w - eta * g) > loss - c * eta * float(g @ g):
            eta = beta * eta
        self.eta, self.w = eta, self.w - eta * g
        return {"loss": loss, "learning_rate": eta}


class HessianFree(Problem):
    damping, solution = 1.0, 0.0

    def step(self, iterations=50, memory=0.95) -> dict[str, float]:
        loss, g, matrix = self.value(self.w), self.gradient(self.w), self.gauss_newton(self.w)
        damped = matrix + self.damping * torch.eye(len(g), dtype=g.dtype)
        report = {"loss": loss, "damping": self.damping}
        iterates = self.solve(damped, g, memory * self.solution + torch.zeros_like(g), iterations)
        self.solution = iterates[-1]
        kept = [x for i, x in enumerate(iterates) if i == len(iterates) - 1 or i in SAVED]
        p = kept.pop()
        while kept and self.value(self.w + kept[-1]) < self.value(self.w + p):
            p = kept.pop()
        ratio = (self.value(self.w + p) - loss) / float(g @ p + p @ matrix @ p / 2)
        t = 1.0
        while self.value(self.w + t * p) > loss + 0.01 * t * float(g @ p):
            t *= 0.8
        self.w = self.w + t * p
        self.damping *= 2 / 3 if ratio > 0.75 else 1.5 if ratio < 0.25 else 1.0
        return {**report, "learning_rate": t, "iterations": len(iterates) - 1.0, "reduction_ratio": ratio}

    @staticmethod
    def solve(matrix: Tensor, g: Tensor, x: Tensor, iterations: int) -> list[Tensor]:
        """All iterates of conjugate gradients, the start first."""

        def q(x: Tensor) -> float:
            return float(g @ x + x @ matrix @ x / 2)

        x = x if q(x) <= 0 else 0 * x
        xs, r = [x], matrix @ x + g
        d = -r
        for i in range(1, iterations + 1):
            a = (r @ r) / (d @ matrix @ d)
            x, old = x + a * d, r
            r = matrix @ x + g
            d = -r + (r @ r) / (old @ old) * d
            xs.append(x)
            k = max(10, math.ceil(0.1 * i))
            if i > k and q(x) < 0 and (q(x) - q(xs[i - k])) / q(x) < k * 5e-4:
                break
        return xs


SAVED = {math.ceil(1.3**j) for j in range(1, 30)}


class TwoLayerKFAC:
    """K-FAC for outputs W₂[tanh(W₁[x, 1]), 1] with dense Kronecker products, every expectation written out."""

    def __init__(self, model: nn.Module, hessian: Callable[[Tensor], Tensor], l2: float) -> None:
        """``hessian(output)`` is H_L of one sample."""
        self.model, self.hessian, self.l2 = model, hessian, l2
        self.k, self.averages = 0, [0.0, 0.0, 0.0, 0.0]
        self.damping = 150.0
        self.last = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)

    def adaptive_step(self, loss: Callable[[Tensor], Tensor], x: Tensor, memory: float) -> dict[str, float]:
        """Sections 6.4, 6.5 and 7 with the dense Gauss-Newton matrix; ``self.damping`` is λ."""
        parameters = list(self.model.parameters())
        flat = torch.nn.utils.parameters_to_vector
        w = flat(parameters).detach()

        def outputs(v: Tensor) -> Tensor:
            pieces = iter(v.split([p.numel() for p in parameters]))
            values = {name: next(pieces).view(p.shape) for name, p in self.model.named_parameters()}
            return torch.func.functional_call(self.model, values, (x,))

        def value(v: Tensor) -> Tensor:
            return loss(outputs(v)) + self.l2 / 2 * v @ v

        gradient = torch.autograd.functional.jacobian(value, w)
        jacobian = torch.autograd.functional.jacobian(outputs, w)
        at = outputs(w).detach()
        fisher = sum(j.T @ self.hessian(o) @ j for j, o in zip(jacobian, at, strict=True)) / len(x)
        fisher = fisher + (self.damping + self.l2) * torch.eye(len(w), dtype=w.dtype)
        self.step(loss, x, 1.0, self.damping, memory)
        delta = flat(parameters).detach() - w
        both = torch.stack([delta, self.last])
        k, b = both @ fisher @ both.T, both @ gradient
        x12 = -torch.linalg.pinv(k, hermitian=True, rtol=1e-14) @ b if self.last.any() else -b / k[0, 0]
        self.last = both.T @ x12
        torch.nn.utils.vector_to_parameters(w + self.last, parameters)
        found = {"damping": self.damping, "learning_rate": float(x12[0]), "momentum": float(x12[1])}
        if self.k % 5 == 0:
            model = gradient @ self.last + self.last @ fisher @ self.last / 2
            found["reduction_ratio"] = ratio = float((value(w + self.last) - value(w)) / model)
            self.damping *= (19 / 20) ** 5 if ratio > 0.75 else (20 / 19) ** 5 if ratio < 0.25 else 1
        return found

    def step(self, loss: Callable[[Tensor], Tensor], x: Tensor, rate: float, damping: float, memory: float) -> None:
        w1, b1, w2, b2 = parameters = list(self.model.parameters())
        value = loss(self.model(x)) + self.l2 / 2 * sum((p * p).sum() for p in parameters)
        g1, c1, g2, c2 = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            factors = [0.0, 0.0, 0.0, 0.0]
            for row in x:
                one = row.new_ones(1)
                hidden = torch.tanh(w1 @ row + b1)
                h = self.hessian(w2 @ hidden + b2)
                back = w2 * (1 - hidden**2)
                vectors = torch.cat([row, one]), torch.cat([hidden, one])
                new = [torch.outer(v, v) for v in vectors]
                for i, term in enumerate([new[0], back.T @ h @ back, new[1], h]):
                    factors[i] = factors[i] + term / len(x)
            self.k += 1
            keep = min(1 - 1 / self.k, memory)
            self.averages = [keep * old + (1 - keep) * new for old, new in zip(self.averages, factors, strict=True)]
            for weight, bias, g, c, a, b in (
                (w1, b1, g1, c1, *self.averages[:2]),
                (w2, b2, g2, c2, *self.averages[2:]),
            ):
                joint = torch.cat([g, c[:, None]], 1)
                matrix = torch.kron(b, a) + (damping + self.l2) * torch.eye(joint.numel(), dtype=a.dtype)
                move = torch.linalg.solve(matrix, joint.flatten()).view_as(joint)
                weight -= rate * move[:, :-1]
                bias -= rate * move[:, -1]


class Nesterov(Problem):
    """NAdamW, one number of the vector after the other."""

    t = 0

    def step(self, eta: float, beta1: float, beta2: float, decay: float) -> None:
        g = self.gradient(self.w)
        if self.t == 0:
            self.m, self.v = [0.0] * len(g), [0.0] * len(g)
        self.t += 1
        w = self.w.tolist()
        for i, x in enumerate(g.tolist()):
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * x
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * x * x
            ahead = (beta1 * self.m[i] + (1 - beta1) * x) / (1 - beta1**self.t)
            w[i] -= eta * decay * w[i]
            w[i] -= eta * ahead / (math.sqrt(self.v[i] / (1 - beta2**self.t)) + 1e-8)
        self.w = torch.tensor(w, dtype=torch.float64)


class Directional(Problem):
    """Gradient, direction and dense Hessian of one step; Adam's direction has b1 and b2, the gradient neither."""

    t = 0

    def derivatives(self, b1: float, b2: float | None) -> tuple[float, float, Tensor]:
        """⟨g, d⟩, ⟨d, Hd⟩ and the direction d."""
        g, h = self.gradient(self.w), torch.autograd.functional.hessian(self.f, self.w)
        if self.t == 0:
            self.m, self.v = torch.zeros_like(g), torch.zeros_like(g)
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        d = self.m / (1 - b1**self.t)
        if b2 is not None:
            self.v = b2 * self.v + (1 - b2) * g * g
            d = d / ((self.v / (1 - b2**self.t)) ** 0.5 + 1e-8)
        return float(g @ d), float(d @ h @ d), d


class GeneralizedNewton(Directional):
    def step(self, eta=0.01, gamma=0.9, phi=4, b1=0.0, b2=None) -> dict[str, float]:
        loss, self.eta = self.value(self.w), getattr(self, "eta", eta)
        slope, curvature, d = self.derivatives(b1, b2)
        if (self.t - 1) % phi == 0 and slope > 0 and curvature > 0:
            best = slope / curvature
            best = self.eta / 2 if best < self.eta / 2 else 2 * self.eta if best > 2 * self.eta else best
            self.eta = gamma * self.eta + (1 - gamma) * best
        self.w = self.w - self.eta * d
        return {"loss": loss, "learning_rate": self.eta}


class CurvatureTuned(Directional):
    n = d = 0.0

    def step(self, sigma=2.0, beta=0.9, b1=0.0, b2=None) -> dict[str, float]:
        loss = self.value(self.w)
        slope, curvature, direction = self.derivatives(b1, b2)
        self.n = beta * self.n + (1 - beta) * max(slope, 0.0)
        self.d = beta * self.d + (1 - beta) * (abs(curvature) + 1e-12)
        self.w = self.w - sigma * self.n / self.d * direction
        return {"loss": loss, "learning_rate": sigma * self.n / self.d}


class FreePlus(Problem):
    t, e, largest, weights = 0, 0.0, 0.0, 0.0

    def step(
        self, gamma=1.0, b1=0.9, b2=0.95, beta=0.9, last=0.965, steps=0, bp=0.0, r=0.0, start=0, decay=0.0
    ) -> dict[str, float]:
        if self.t == 0:
            self.mean, self.z = self.w.clone(), self.w.clone()
            self.m, self.v = torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.t += 1
        f, g = self.value(self.w), self.gradient(self.w)
        if steps:
            p = min((self.t - 1) / steps, 1)
            beta = 1 - math.exp((1 - p) * math.log(1 - beta) + p * math.log(1 - last))
        self.e = bp * self.e + (1 - bp) * math.sqrt(math.pi / 2) * sum(abs(x) for x in g.tolist())
        inner = sum(a * (b - c) for a, b, c in zip(g.tolist(), self.z.tolist(), self.mean.tolist(), strict=True))
        alpha = gamma * max(0.0, f + beta * inner) / (self.e / (1 - bp**self.t))
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        self.z = self.z - alpha**2 * decay * self.w
        self.z = self.z - alpha * (self.m / (1 - b1**self.t)) / ((self.v / (1 - b2**self.t)) ** 0.5 + 1e-8)
        self.largest = max(self.largest, alpha)
        c = 1.0
        if self.t > start:
            weight = self.t**r * self.largest**2
            self.weights += weight
            c = weight / self.weights
        self.mean = (1 - c) * self.mean + c * self.z
        self.w = beta * self.mean + (1 - beta) * self.z
        return {"loss": f, "learning_rate": alpha}


class FreeNorMuon(Problem):
    """The polar factor by a singular value decomposition whose values pass through Muon's polynomial."""

    t, weights = 0, 0.0

    def step(self, eta=0.01, beta=0.9, b2=0.95, mu=0.8, decay=0.05, warmup=100) -> dict[str, float]:
        shapes = [p.shape for p in self.model.parameters()]
        if self.t == 0:
            self.mean, self.z, self.m = self.w.clone(), self.w.clone(), torch.zeros_like(self.w)
            self.v = [torch.zeros(s[0] if len(s) > 1 else s, dtype=self.w.dtype) for s in shapes]
        self.t += 1
        f, g = self.value(self.w), self.gradient(self.w)
        rate = eta * min(1.0, self.t / warmup) if warmup else eta
        self.m = mu * self.m + (1 - mu) * g
        sizes = [math.prod(s) for s in shapes]
        parts = zip(shapes, g.split(sizes), self.m.split(sizes), self.z.split(sizes), strict=True)
        z = [self.one(i, *part, eta, rate, b2, decay) for i, part in enumerate(parts)]
        self.z = torch.cat([part.flatten() for part in z])
        self.weights += rate**2
        c = rate**2 / self.weights
        self.mean = (1 - c) * self.mean + c * self.z
        self.w = beta * self.mean + (1 - beta) * self.z
        return {"loss": f, "learning_rate": rate}

    def one(self, i: int, shape, g, m, z, eta, rate, b2, decay) -> Tensor:
        if len(shape) < 2:
            self.v[i] = b2 * self.v[i] + (1 - b2) * g.view(shape) ** 2
            size = (self.v[i] / (1 - b2**self.t)) ** 0.5 + 1e-8
            return z.view(shape) - eta * decay * z.view(shape) - rate * g.view(shape) / size
        u, values, vt = torch.linalg.svd(m.view(shape[0], -1), full_matrices=False)
        values = values / ((values**2).sum() ** 0.5 + 1e-8)
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        p = u @ torch.diag(values) @ vt
        for row in range(shape[0]):
            self.v[i][row] = b2 * self.v[i][row] + (1 - b2) * sum(x * x for x in p[row].tolist()) / p.shape[1]
            p[row] /= float(self.v[i][row]) ** 0.5 + 1e-8
        norm = sum(x * x for x in p.flatten().tolist()) ** 0.5
        scale = 0.2 * rate * math.sqrt(p.numel()) / norm if norm else 0.0
        return z - eta * decay * z - scale * p.flatten()
