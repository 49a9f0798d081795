"""Rules of fused attention kernels: softmax(s·QKᵀ + M)·V, differentiated as the product of matrices that it is.

The kernels keep no attention weights, so the derivative computes these again. For a path with Q' and so on, the scores
S = s·QKᵀ have S' = s·(Q'Kᵀ + QK'ᵀ) and S'' = s·(Q''Kᵀ + 2 Q'K'ᵀ + QK''ᵀ). The weights P = softmax(S) have, with the
centring c(x) = x − Σ P x over a row, P' = P·c(S') and P'' = P·(c(S'') + c(c(S')²)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raycurv.curvature.rules import Call, Derivative, Tangent, UnsupportedOperator, required, rule, total

_ARGUMENTS = {
    "_scaled_dot_product_flash_attention_for_cpu": ("dropout_p", "is_causal", "attn_mask", "scale"),
    "_scaled_dot_product_flash_attention": ("dropout_p", "is_causal", "return_debug_mask", "scale"),
    "_scaled_dot_product_efficient_attention": ("attn_bias", "compute_log_sumexp", "dropout_p", "is_causal", "scale"),
    "_scaled_dot_product_cudnn_attention": (
        *("attn_bias", "compute_log_sumexp", "dropout_p", "is_causal", "return_debug_mask", "scale"),
    ),
}


@rule(*_ARGUMENTS, outputs=1)
def _fused_attention(call: Call) -> Derivative:
    query, key, value = call.args[:3]
    given = dict(zip(_ARGUMENTS[call.name], call.args[3:], strict=False)) | call.kwargs
    if given.get("dropout_p"):
        raise UnsupportedOperator(f"{call.name} with dropout has no rule: its mask is not known outside the kernel")
    mask = given.get("attn_mask") if given.get("attn_mask") is not None else given.get("attn_bias")
    if len(call.active) > 3 and call.active[3]:
        raise UnsupportedOperator(f"{call.name} with a mask that has a tangent has no rule")
    scale = given.get("scale") or 1 / math.sqrt(query.shape[-1])
    causal = bool(given.get("is_causal"))

    def heads(x: Tensor) -> Tensor:
        """Keys and values repeated for groups of queries."""
        groups = query.shape[1] // x.shape[1] if query.dim() == 4 and x.shape[1] else 1
        return x if groups == 1 else x.repeat_interleave(groups, 1)

    def weights() -> Tensor:
        scores = scale * query @ heads(key).mT
        if causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~allowed, -math.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        return torch.softmax(scores, -1)

    def scores_along(dq: Tangent, dk: Tangent) -> Tangent:
        by_query = None if dq is None else scale * dq @ heads(key).mT
        by_key = None if dk is None else scale * query @ heads(dk).mT
        return total(by_query, by_key)

    def first(dq: Tangent, dk: Tangent, dv: Tangent, *_: Tangent) -> Tensor:
        p = weights()
        slope, by_value = scores_along(dq, dk), None if dv is None else p @ heads(dv)
        return required(total(None if slope is None else (p * _centred(p, slope)) @ heads(value), by_value))

    def both(d: Sequence[Tangent], dd: Sequence[Tangent], reusable: Sequence[Tangent]) -> tuple[Any, Any]:
        (dq, dk, dv), (ddq, ddk, ddv), p = d[:3], dd[:3], weights()
        slope, second = scores_along(dq, dk), scores_along(ddq, ddk)
        if dq is not None and dk is not None:
            second = total(second, 2 * scale * dq @ heads(dk).mT)
        values: list[Tangent] = [None if dv is None else p @ heads(dv)]
        curvatures: list[Tangent] = [None if ddv is None else p @ heads(ddv)]
        if second is not None:
            curvatures.append((p * _centred(p, second)) @ heads(value))
        if slope is not None:
            c = _centred(p, slope)
            values.append((p * c) @ heads(value))
            curvatures.append((p * _centred(p, c * c)) @ heads(value))
            if dv is not None:
                curvatures.append(2 * (p * c) @ heads(dv))
        return total(*values), total(*curvatures)

    return Derivative(first, both=both)


def _centred(p: Tensor, x: Tensor) -> Tensor:
    return x - (p * x).sum(-1, keepdim=True)
