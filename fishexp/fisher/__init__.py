"""Diagonal Fisher information of a model's weights, exact for every example."""

from fishexp.fisher.diagonal import diagonal_fisher

__all__ = ["diagonal_fisher"]
