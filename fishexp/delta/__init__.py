"""Deltas: what training changed in a model, exact to the bit, and bound to the model that it was trained from.

A file is a safetensors file of vectors:

- ``values.F32``, ``values.BF16`` and so on, for each type that occurs: the new values of all tensors of that type, one
  tensor after the other by name, each in the order of its positions;
- ``positions`` (uint8): the positions of all tensors, one after the other by name, each in a coding of its own, see
  :mod:`fishexp.masks.position_codec`. Tensors stored whole have none.

Its metadata have one key, ``fishexp.delta``, with a JSON object in ASCII, keys sorted, without spaces:

- ``version``: 1;
- ``base``: name -> [type, shape, SHA-256 or null]: each tensor of the model that the delta is for;
- ``moved``: name -> [coding, number of values, bytes of positions, SHA-256 of the whole tensor afterwards], and then
  [type, shape] where these are not the base's: a tensor that the base does not have, or one with more rows. Coding
  ``whole``: all of the tensor, row after row;
- ``removed``: names of the base's tensors that are there no more;
- ``seed``: null, or the mask of those tensors whose coding is ``seed``: seed, threshold times 2**24, ties, SHA-256 of
  the positions in hexadecimal, and the numbers, among all names sorted, of the parameters that have scores, in the
  order in which these are drawn; see :mod:`fishexp.masks.random_masks`;
- ``tied``: another name of a tensor -> the one that it has in ``base`` or ``moved``;
- ``checksum``: SHA-256 of this object without ``checksum``, followed by the data of the vectors, in hexadecimal.

A tensor's SHA-256 is that of its entries, row after row and little-endian; in the JSON it stands in base64. ``before``
and ``after`` of a delta are the SHA-256 of the JSON list [[name, type, shape, SHA-256 in hexadecimal], ...] of the base
and of the result, sorted by name.
"""

from fishexp.delta.apply import Undo
from fishexp.delta.combine import Overlap, merge
from fishexp.delta.delta import Delta
from fishexp.delta.stack import Stack
from fishexp.delta.tasks import MergedTasks, merge_tasks

__all__ = ["Delta", "MergedTasks", "Overlap", "Stack", "Undo", "merge", "merge_tasks"]
