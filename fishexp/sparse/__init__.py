"""Sparse training: the kept entries of a model become the only weights that train."""

from fishexp.sparse.handle import Sparse
from fishexp.sparse.sparsify import sparsify

__all__ = ["Sparse", "sparsify"]
