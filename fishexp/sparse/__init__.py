"""Sparse training: the kept entries of a model become the only weights that train."""

from fishexp.sparse.sparsify import Sparse, sparsify

__all__ = ["Sparse", "sparsify"]
