"""Communication of one linear layer under 1-D, 2-D, 2.5-D and 3-D tensor parallelism.

Y[T, N] = X[T, K] W[K, N] with T tokens (batch x sequence) over p ranks, forward and backward. The algorithms
are the papers'; volumes are bytes that each rank sends, counted with the bus factors of nccl-tests: an
all-reduce of M bytes over q ranks 2 (q-1)/q M, a pipelined broadcast or reduction M, an all-gather or
reduce-scatter of M (gathered) bytes (q-1)/q M.

    1d    Megatron-LM (arXiv 1909.08053): column- and row-parallel layers in turn, so that a layer has one
          all-reduce, of Y forward (row) or of dX backward (column): over a pair the mean of the two,
          (p-1)/p * T N forward and (p-1)/p * T K backward.
    2d    Optimus (arXiv 2104.05343; SUMMA): a q x q mesh, q^2 = p. Forward: q steps, each a broadcast of a
          block of X along the row and of W along the column: (T K + K N) / q. Backward: dX = dY W^T
          broadcasts W and reduces dX, dW = X^T dY broadcasts X and reduces dW: twice that.
    2.5d  Tesseract (arXiv 2105.14500): d layers of q x q, d q^2 = p; tokens are split over the layers too:
          (T K / d + K N) / q, and the weight gradient is all-reduced over them: 2 (d-1)/d * K N / q^2.
    3d    Bian et al. (arXiv 2105.14450; the 3-D product on a cube), q^3 = p: forward all-gathers X and W and
          reduce-scatters Y: (q-1)/q * (T K + K N + T N) / q^2; backward two such products.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from costmodel.errors import PlanError

__all__ = ["SCHEMES", "LinearShape", "crossover_tokens", "layer_volume_bytes", "mesh_side"]

SCHEMES = ("1d", "2d", "2.5d", "3d")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """A linear layer: `tokens` rows, `inputs` x `outputs` weight, `element_bytes` per number."""

    tokens: int
    inputs: int
    outputs: int
    element_bytes: int = 2

    def __post_init__(self) -> None:
        if min(self.tokens, self.inputs, self.outputs, self.element_bytes) < 1:
            raise PlanError(f"{self}: every size must be at least 1")


def mesh_side(scheme: str, p: int, *, depth: int = 1) -> int:
    """Side q of the mesh: p = q^2 (2d), depth * q^2 (2.5d), q^3 (3d), p (1d). Raises PlanError otherwise."""
    if scheme not in SCHEMES:
        raise PlanError(f"tensor parallel scheme {scheme!r}: must be one of {', '.join(SCHEMES)}")
    if p < 1 or depth < 1:
        raise PlanError(f"tp({p}), depth({depth}): must be at least 1")
    if scheme == "1d":
        return p
    if scheme == "3d":
        q = round(float(p) ** (1 / 3))
        if q**3 != p:
            raise PlanError(f"tp({p}) is not a cube: 3d tensor parallelism needs q^3 ranks (8, 27, 64, ...)")
        return int(q)
    layers = depth if scheme == "2.5d" else 1
    q = isqrt(p // layers)
    if q * q * layers != p:
        raise PlanError(
            f"tp({p}) != depth({layers}) * q^2: {scheme} tensor parallelism needs a square mesh per layer"
        )
    return q


def layer_volume_bytes(scheme: str, shape: LinearShape, p: int, *, depth: int = 1) -> tuple[float, float]:
    """Bytes each rank sends for one linear layer, (forward, backward); see the module's formulas."""
    q = mesh_side(scheme, p, depth=depth)
    x = shape.tokens * shape.inputs * shape.element_bytes
    y = shape.tokens * shape.outputs * shape.element_bytes
    w = shape.inputs * shape.outputs * shape.element_bytes
    if p == 1:
        return 0.0, 0.0
    if scheme == "1d":
        reduced = 2 * (p - 1) / p
        return reduced * y / 2, reduced * x / 2
    if scheme == "3d":
        once = (q - 1) / q * (x + w + y) / q**2
        return once, 2 * once
    layers = depth if scheme == "2.5d" else 1
    if q == 1:
        forward = backward = 0.0
    else:
        forward = (x / layers + w) / q
        backward = 2 * forward
    return forward, backward + 2 * (layers - 1) / layers * w / q**2


def crossover_tokens(scheme: str, inputs: int, outputs: int, p: int, *, depth: int = 1) -> float:
    """Tokens above which a scheme sends less than 1d; infinity where it never does.

    Every volume is a T + b with 1d's b = 0: T* = b / (a_1d - a).
    """

    def total(name: str, tokens: int, layers: int) -> float:
        shape = LinearShape(tokens=tokens, inputs=inputs, outputs=outputs, element_bytes=1)
        return sum(layer_volume_bytes(name, shape, p, depth=layers))

    slope = total(scheme, 2, depth) - total(scheme, 1, depth)
    fixed = total(scheme, 1, depth) - slope
    line = total("1d", 2, 1) - total("1d", 1, 1)
    return fixed / (line - slope) if line > slope else float("inf")
