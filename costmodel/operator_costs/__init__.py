"""What each aten operator costs: registered functions of shapes, one file per family."""

from costmodel.operator_costs import attention, convolution, matmul, memory_bound, recurrent
from costmodel.operator_costs.registry import OPERATOR_COSTS, Call, Piece, TensorMeta, register_cost

__all__ = ["OPERATOR_COSTS", "Call", "Piece", "TensorMeta", "register_cost"]

_FAMILIES = (attention, convolution, matmul, memory_bound, recurrent)
