"""What the rows say about the curvature of a linear problem: the second moments of their columns, in short.

With Z the standardised rows, G = Z'Z / N bounds every linear problem's second derivatives: those of logistic
regression are at most ½ (I - 11'/C) ⊗ G (Böhning, Multinomial logistic regression algorithm, 1992), those of
the squared hinge 2 G, and mostly a fraction of that. One look at G serves all penalties and classes. Narrow
tables take its eigenvectors; wide ones the largest of them, from a random sketch (Frangella, Tropp and Udell,
Randomized Nyström preconditioning, SIAM J. Matrix Anal. Appl. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.heads.passes import NARROW, Passes
from featcache.heads.scaling import row_blocks
from featcache.heads.threads import eigenvectors

_SKETCH = 192  # directions of a sketch
_ROUNDED = 1e-5  # of the largest value; so exact are eigenvectors in float32
_CLEAR = 1e-5  # of the sum of eigenvalues; below, float32 has its part in them
_RUN = 16  # rows looked at that lie side by side
_GATHERED = 1 << 23  # values that go into one product
_SCALES, _BISECTIONS = (1e-6, 2.0), 20
_ROWS_A_DIRECTION = 16  # that are looked at, where there are as many


@dataclass(frozen=True)
class Curvature:
    """G in short: eigenvectors (D, r) with values (r,), and `rest`, the value of all other directions."""

    vectors: Tensor
    values: Tensor
    rest: float

    @property
    def complete(self) -> bool:
        """Whether no direction lies outside the eigenvectors; what rounding leaves there says nothing."""
        return self.vectors.shape[0] == self.vectors.shape[1]

    def solve(
        self, gradient: Tensor, scale: Tensor, rest: Tensor, penalty: Tensor, intercept: Tensor
    ) -> Tensor:
        """Return (scale · G + penalty)^-1 times gradients (P, C, D + 1), for problems' scales, … (P,).

        Outside the eigenvectors 1 / rest is taken, `rest` (P,) a curvature with its penalty. The last column
        is the intercept's, of second moment 1 and with a penalty (P,) of its own.
        """
        short = 1 / (scale[:, None] * self.values + penalty[:, None])
        if not self.complete:
            if len(self.values):  # below, rounding and not the rows would decide outside the eigenvectors
                rest = torch.maximum(rest, scale * _ROUNDED * self.values.max())
            short -= (1 / rest)[:, None]
        weights = gradient[..., :-1]
        along = (weights.to(self.vectors.dtype) @ self.vectors) * short[:, None].to(self.vectors.dtype)
        found = (along @ self.vectors.t()).to(gradient.dtype)
        if not self.complete:
            found += weights / rest[:, None, None].to(gradient.dtype)
        last = gradient[..., -1:] / (scale + intercept)[:, None, None].to(gradient.dtype)
        return torch.cat([found, last], 2)

    def fit(
        self, step: Tensor, turn: Tensor, rest: Tensor, penalty: Tensor, intercept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the scales and rests (P,) with which `solve` turns changes of gradients into the steps.

        That is, for steps and what they changed (P, C, D + 1), into some whose product with the change is the
        steps' own, within the eigenvectors and outside; outside it is `rest` where that says nothing.
        """
        own, changed = (each[..., :-1].to(self.vectors.dtype) @ self.vectors for each in (step, turn))
        inside, along = _sum(own * changed), changed.double().square().sum(dim=1)
        if not self.complete:
            outside = _sum(step[..., :-1] * turn[..., :-1]) - inside
            others = _sum(turn[..., :-1].square()) - along.sum(dim=1)
            says = (outside > 0) & (others > 0)
            rest = torch.where(says, torch.maximum(others / outside, penalty), rest)
        last, product = _sum(turn[..., -1:].square()), inside + _sum(step[..., -1:] * turn[..., -1:])
        low, high = (torch.full_like(product, bound).log() for bound in _SCALES)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            scale = middle.exp()
            found = (along / (scale[:, None] * self.values + penalty[:, None])).sum(dim=1)
            found += last / (scale + intercept)
            low, high = torch.where(found > product, middle, low), torch.where(found > product, high, middle)
        return ((low + high) / 2).exp(), rest


def _sum(values: Tensor) -> Tensor:
    """Return the sums (P,) of stacks (P, C, n), float64."""
    return values.sum(dim=(1, 2), dtype=torch.float64)


def curvature(passes: Passes) -> Curvature:
    """Look at some rows' second moments; the same table gives the same answer."""
    if passes.width <= NARROW:
        return _whole(passes)
    return _sketched(passes)


def _whole(passes: Passes) -> Curvature:
    total = torch.zeros((passes.width, passes.width), device=passes.device)
    count = 0
    for rows in _standardised(passes, passes.width):
        total.addmm_(rows.t(), rows)
        count += len(rows)
    values, vectors = eigenvectors(total / count)  # a small penalty lets small ones decide: exact ones
    return Curvature(vectors.float().to(passes.device), values.clamp_(min=0).to(passes.device), 0.0)


def _sketched(passes: Passes) -> Curvature:
    generator = torch.Generator().manual_seed(0)
    size = min(_SKETCH, passes.width)
    start = torch.randn((passes.width, size), generator=generator).to(passes.device)
    start = torch.linalg.qr(start)[0]
    image, count = torch.zeros_like(start), 0
    for rows in _standardised(passes, size):
        image.addmm_(rows.t(), rows @ start)
        count += len(rows)
    vectors, values = _nystrom(start.double(), image.double() / count)
    live = float((passes.scale != 1).sum()) or float(passes.width)
    rest = max((live - float(values.sum())) / max(live - size, 1.0), 0.0)
    return Curvature(vectors.float(), values, min(rest, float(values.min())) if len(values) else rest)


def _nystrom(start: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvectors (D, r) and values (r,) of the Nyström approximation from Ω and GΩ (D, K).

    Directions that rounding has a part in are left out, so r may be less than K, even 0.
    """
    core, turned = _roots(start.t() @ image)
    basis = image @ (turned / core.sqrt())
    values, turned = _roots(basis.t() @ basis)
    return basis @ (turned / values.sqrt()), values


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a symmetric matrix that are well above 0, and their vectors."""
    values, vectors = torch.linalg.eigh((matrix + matrix.t()) / 2)
    clear = values > _CLEAR * values.clamp(min=0).sum()  # of none, none
    return values[clear], vectors[:, clear]


def _standardised(passes: Passes, directions: int) -> Iterator[Tensor]:
    """Yield standardised rows (n, D), spread evenly over the table, enough of them for so many directions.

    Many small runs of rows are gathered for each: a table may be sorted by class, and thin products are slow.
    """
    runs = _runs(passes, directions)
    most = max(runs[0].stop, _GATHERED // passes.width)
    mean, scale = passes.mean.float(), passes.scale.float()
    space, filled = torch.empty((most, passes.width), device=passes.device), 0
    for run in runs:
        count = run.stop - run.start
        if filled + count > most:
            yield space[:filled].sub_(mean).div_(scale)
            filled = 0
        space[filled : filled + count] = passes.table.read(run)
        filled += count
    yield space[:filled].sub_(mean).div_(scale)


def _runs(passes: Passes, directions: int) -> list[slice]:
    """Return runs of rows spread evenly over the table."""
    rows, wanted = passes.rows, directions * _ROWS_A_DIRECTION
    each = min(_RUN, rows)
    if rows <= wanted:
        return list(row_blocks(rows, 1, each))
    starts = torch.linspace(0, rows - each, -(-wanted // each), dtype=torch.float64).round().long().tolist()
    return [slice(start, start + each) for start in starts]
