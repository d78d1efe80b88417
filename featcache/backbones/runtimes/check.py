"""Whether a runtime computes the same features: its rows against eager float32 on the same images."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_COSINE = {"fp32": 0.999999, "tf32": 0.9999, "fp16": 0.9999, "bf16": 0.999}
MOST_DIFFERENCE = {"fp32": 1e-3}  # of the standard deviation of all features of the batch


def disagreement(
    rows: dict[str, Tensor],
    exact: dict[str, Tensor],
    precision: str,
    eager: dict[str, Tensor] | None = None,
) -> str:
    """Return in what rows differ from exact ones beyond what their precision allows; empty where they agree.

    Every row's cosine with the exact one must be at least .999999 in fp32, .9999 in tf32 and fp16, .999 in
    bf16; in fp32 no value may be off by more than 1e-3 of the deviation besides. Where eager torch in that
    precision is further off than that, which is then the network's doing, a runtime may be half again as far.

    Args:
        rows: node → (B, D), of the runtime.
        exact: the same of eager float32.
        precision: "fp32", "tf32", "bf16" or "fp16".
        eager: the rows of eager torch in that precision.
    """
    if list(rows) != list(exact):
        return f"it gives {', '.join(rows)} instead of {', '.join(exact)}"
    for node, wanted in exact.items():
        of_eager = _cosine(eager[node], wanted) if eager else 1.0
        least = min(LEAST_COSINE[precision], 1 - 1.5 * (1 - of_eager))
        why = _differs(rows[node].cpu().double(), wanted.cpu().double(), precision, least)
        if why:
            return f"{why} at node {node!r}"
    return ""


def _cosine(rows: Tensor, exact: Tensor) -> float:
    """Return the least cosine of two rows that belong together; a row of zeros equals itself alone."""
    rows, exact = rows.cpu().double(), exact.cpu().double()
    same = (rows == exact).all(1)
    return float(torch.where(same, 1.0, torch.nn.functional.cosine_similarity(rows, exact, dim=1)).min())


def _differs(rows: Tensor, exact: Tensor, precision: str, least: float) -> str:
    if rows.shape != exact.shape:
        return f"it gives rows of shape {tuple(rows.shape)} instead of {tuple(exact.shape)}"
    if not torch.isfinite(rows).all():
        return "it gives values that are not finite"
    cosine = _cosine(rows, exact)
    if cosine < least:
        return f"a row has a cosine of {cosine:.6f} with that of float32, not {least:.6f} or more,"
    most = float((rows - exact).abs().max() / exact.std().clamp(min=torch.finfo(torch.float64).tiny))
    if most > MOST_DIFFERENCE.get(precision, float("inf")):
        return f"a value is off by {most:.1e} of the deviation, over {MOST_DIFFERENCE[precision]},"
    return ""
