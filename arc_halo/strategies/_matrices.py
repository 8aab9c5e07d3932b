"""What the strategies over singular vectors share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.types import FuseContext

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arc_halo.types import FloatArray

    Float64 = NDArray[np.float64]


def merged(
    tensors: Sequence[FloatArray],
    context: FuseContext,
    scale: float,
    of_matrices: Callable[[list[Float64]], Float64],
) -> FloatArray:
    """B + scale * what is made of the changes: of matrices as said, of others their mean."""
    assert context.base is not None
    changes = [np.subtract(tensor, context.base, dtype=np.float64) for tensor in tensors]
    is_matrix = changes[0].ndim == 2 and changes[0].size > 0
    change = of_matrices(changes) if is_matrix else sum(changes, np.zeros(())) / len(changes)
    return np.asarray(context.base + scale * change, context.base.dtype)
