"""Triton kernels that bring all partly kept weights on a GPU up to date, however many they are."""
# what Triton compiles is no Python to a type checker:
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

# entries that a program of the kernels handles
BLOCK = 1024
_INTEGERS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}


@triton.jit
def _find_changes(addresses, counts, changed, block_tensor, block_start, NUMBER: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Set ``changed`` of each tensor of which a value is not as synced."""
    program = tl.program_id(0)
    tensor = tl.load(block_tensor + program)
    entry = tl.load(block_start + program) + tl.arange(0, BLOCK)
    inside = entry < tl.load(counts + tensor)
    values = tl.load(addresses + 4 * tensor).to(tl.pointer_type(NUMBER))
    synced = tl.load(addresses + 4 * tensor + 1).to(tl.pointer_type(NUMBER))
    differs = tl.load(values + entry, mask=inside, other=0) != tl.load(synced + entry, mask=inside, other=0)
    if tl.max(differs.to(tl.int32), axis=0) > 0:
        tl.store(changed + tensor, 1)


@triton.jit
def _write(
    addresses, counts, changed, block_tensor, block_start,
    NUMBER: tl.constexpr, PLACE: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Write the values of each tensor that is ``changed`` into its weight, or take the weight's."""
    program = tl.program_id(0)
    tensor = tl.load(block_tensor + program)
    entry = tl.load(block_start + program) + tl.arange(0, BLOCK)
    inside = entry < tl.load(counts + tensor)
    values = tl.load(addresses + 4 * tensor).to(tl.pointer_type(NUMBER)) + entry
    synced = tl.load(addresses + 4 * tensor + 1).to(tl.pointer_type(NUMBER)) + entry
    weight = tl.load(addresses + 4 * tensor + 2).to(tl.pointer_type(NUMBER))
    places = tl.load(addresses + 4 * tensor + 3).to(tl.pointer_type(PLACE)) + entry
    weight += tl.load(places, mask=inside, other=0)
    if tl.load(changed + tensor) != 0:
        now = tl.load(values, mask=inside, other=0)
        tl.store(weight, now, mask=inside)
    else:
        now = tl.load(weight, mask=inside, other=0)
        tl.store(values, now, mask=inside)
    tl.store(synced, now, mask=inside)


class Table:
    """Hold where on the device the tensors lie that the kernels work on, of one type each.

    Args:
        tensors: (values, synced, weight as a vector, places in it) of each, the first three integers of one size. Their
            memory has to outlive the table, which does not hold them.
    """

    def __init__(self, tensors: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        values, _, _, places = tensors[0]
        device, sizes = values.device, [len(own[0]) for own in tensors]
        starts = [(index, start) for index, size in enumerate(sizes) for start in range(0, size, BLOCK)]
        self._number, self._place = _INTEGERS[values.element_size()], _INTEGERS[places.element_size()]
        self._addresses = torch.tensor([[t.data_ptr() for t in own] for own in tensors], device=device)
        self._counts = torch.tensor(sizes, dtype=torch.int32, device=device)
        self._block_tensor, self._block_start = (
            torch.tensor(column, dtype=torch.int32, device=device) for column in zip(*starts, strict=True)
        )
        self._changed = torch.zeros(len(tensors), dtype=torch.int32, device=device)

    def reconcile(self) -> None:
        """Do for all tensors what :meth:`fishexp.sparse.parameter.SparseParameter.reconcile` does for one."""
        tables = self._addresses, self._counts, self._changed, self._block_tensor, self._block_start
        grid = (len(self._block_start),)
        self._changed.zero_()
        _find_changes[grid](*tables, self._number, BLOCK)
        _write[grid](*tables, self._number, self._place, BLOCK)
