"""Muon for matrices and AdamW for all other parameters, both torch's own.

*Muon: An optimizer for hidden layers in neural networks* (Jordan et al. 2024) steps along the averaged gradient with
all its singular values near 1. ``torch.optim.Muon`` does so for matrices alone. Here every parameter with two
dimensions is a matrix, embeddings and the last layer among them, which its authors leave to AdamW; biases, norms and
convolutions go with AdamW.

Defaults are those that Muon's authors publish: rate 0.02 for matrices, with torch's ``adjust_lr_fn="original"``, and
3e-4 with β₂ = 0.95 for the rest; a decay of 0.01. torch's own default of 1e-3 is for another scale of the step. Muon's
iteration runs in bfloat16, whatever the dtype of the parameters.
"""

from __future__ import annotations

from typing import Any

import torch

from raycurv.optim.baselines.first_order import baseline


class MuonAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` for matrices and ``torch.optim.AdamW`` for the rest, as one optimizer.

    Args:
        params: parameters or parameter groups; each group is split in two.
        lr: learning rate of Muon.
        adamw_lr: learning rate of AdamW. A group with an ``lr`` of its own has that in both parts.
        momentum: factor of Muon's average.
        betas: β₁ and β₂ of AdamW.
        weight_decay: decoupled decay of both.
    """

    def __init__(
        self, params: Any, lr: float, adamw_lr: float, momentum: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"weight_decay": weight_decay})
        matrices, rest = self._split(matrix=True), self._split(matrix=False)
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=lr, momentum=momentum, adjust_lr_fn="original"))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=adamw_lr, betas=betas))
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._share()

    def _split(self, *, matrix: bool) -> list[dict[str, Any]]:
        """The groups, each with its matrices or with its other parameters."""
        groups = [{**g, "params": [p for p in g["params"] if (p.ndim == 2) == matrix]} for g in self.param_groups]
        return [group for group in groups if group["params"]]

    def _share(self) -> None:
        """Groups and state of the parts are those of this optimizer."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state, part.param_groups = self.state, [next(groups) for _ in part.param_groups]

    def __getstate__(self) -> dict[str, Any]:
        """All attributes, so that a copy has its parts; torch keeps groups and state alone."""
        return self.__dict__.copy()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each part along the gradients in ``.grad``."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both parts."""
        super().load_state_dict(state_dict)
        self._share()


@baseline("muon")
def muon(
    parameters: list[Any],
    *,
    learning_rate: float = 0.02,
    adamw_rate: float = 3e-4,
    momentum: float = 0.95,
    beta1: float = 0.9,
    beta2: float = 0.95,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Muon for matrices; AdamW, with `adamw_rate`, `beta1` and `beta2`, for all other parameters."""
    return MuonAdamW(parameters, learning_rate, adamw_rate, momentum, (beta1, beta2), weight_decay)
