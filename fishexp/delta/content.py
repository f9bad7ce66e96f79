"""What a delta consists of, whether it is in memory or in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fishexp.delta.fingerprint import Fingerprint, digest
from fishexp.delta.moved import Moved


@dataclass(frozen=True, eq=False, repr=False)
class Content:
    """New values of some entries of a model's tensors, and what the model was before.

    Attributes:
        base: name -> what each tensor of the base is. Tied tensors stand under one name.
        moved: name -> the new values of a tensor that has any. What ``base`` lacks is new, and stored whole.
        removed: Tensors of the base that are there no more; of files only.
        tied: Another name of a tensor -> the one that ``base`` or ``moved`` has.
    """

    base: Mapping[str, Fingerprint]
    moved: Mapping[str, Moved]
    removed: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def result(self) -> dict[str, Fingerprint]:
        """What each tensor is afterwards, by name."""
        found = {name: one for name, one in self.base.items() if name not in self.removed}
        return found | {name: moved.after for name, moved in self.moved.items()}

    @cached_property
    def before(self) -> str:
        """SHA-256 of the base; where it equals another delta's ``after``, this one follows on that."""
        return digest(self.base)

    @cached_property
    def after(self) -> str:
        """SHA-256 of the result."""
        return digest(self.result)
