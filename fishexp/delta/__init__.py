"""Deltas: what training changed in a model, exact to the bit, and bound to the model that it was trained from.

A file is a safetensors file of vectors:

- ``values.F32``, ``values.BF16`` and so on, for each type that occurs: the new values of all tensors of that type, one
  tensor after the other by name, each in the order of its positions. Where they are few beside the model and it saves
  bytes, there are uint8 vectors instead, ``values.F32.0``, ``values.F32.1`` and so on: the same values as byte planes,
  see :mod:`fishexp.delta.planes`;
- ``positions`` (uint8): the positions of the kept entries of all tensors, one after the other by name, each in a coding
  of its own, see :mod:`fishexp.masks.position_codec`. Tensors kept whole have none;
- ``unmoved`` (uint8): likewise which of the kept entries of a tensor did not move, counted from 0, as ``gaps``. They
  have no value, as it is the base's;
- ``header`` (uint8): the JSON object below, as it is or as a raw deflate stream of at least an eighth of its bytes.

Its metadata have one key, ``fishexp.delta``, with a JSON object: ``version``: 2; ``header``: bytes of the header's
text; ``checksum``: SHA-256 in hexadecimal of that text, followed by the values of each type by the type's name, as they
are before they are planes, ``positions`` and ``unmoved``. So equal deltas have equal checksums, whatever zlib wrote
them.

The header is a JSON object, like the metadata in ASCII, keys sorted, without spaces:

- ``base``: name -> [type, shape, SHA-256 or null]: each tensor of the model that the delta is for;
- ``moved``: name -> [coding, number of kept entries, bytes of positions, number of those that did not move, bytes that
  say which, SHA-256 of the whole tensor afterwards], and then [type, shape] where these are not the base's: a tensor
  that the base does not have, or one with more rows. Coding ``whole``: all of the tensor, row after row;
- ``removed``: names of the base's tensors that are there no more;
- ``seed``: null, or the mask of those tensors whose coding is ``seed``: seed, threshold times 2**24, ties, SHA-256 of
  the positions in hexadecimal, and the numbers, among all names sorted, of the parameters that have scores, in the
  order in which these are drawn; see :mod:`fishexp.masks.random_masks`;
- ``tied``: another name of a tensor -> the one that it has in ``base`` or ``moved``.

Files of version 1 are read too. They have neither planes nor ``unmoved``, and the metadata are the header, without the
two numbers of unmoved entries, with ``version`` and ``checksum``: that of the header without ``checksum``, followed by
the data of the vectors in the order of the file.

A tensor's SHA-256 is that of its entries, row after row and little-endian; in the JSON it stands in base64. ``before``
and ``after`` of a delta are the SHA-256 of the JSON list [[name, type, shape, SHA-256 in hexadecimal], ...] of the base
and of the result, sorted by name.
"""

from fishexp.delta.apply import Undo
from fishexp.delta.combine import Overlap, merge
from fishexp.delta.delta import Delta
from fishexp.delta.hub import load_from_hub, push_to_hub
from fishexp.delta.patches import Patch
from fishexp.delta.peft_export import write_adapter
from fishexp.delta.peft_import import read_adapter
from fishexp.delta.stack import Stack
from fishexp.delta.tasks import MergedTasks, merge_tasks

__all__ = [
    "Delta",
    "MergedTasks",
    "Overlap",
    "Patch",
    "Stack",
    "Undo",
    "load_from_hub",
    "merge",
    "merge_tasks",
    "push_to_hub",
    "read_adapter",
    "write_adapter",
]
