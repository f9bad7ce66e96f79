"""What training changed, as a file."""

from fishexp.delta.delta import Delta
from fishexp.delta.undo import Undo

__all__ = ["Delta", "Undo"]
