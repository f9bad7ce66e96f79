"""What the graph of autograd proves of a function, against the derivative of each example's output by each input."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fishexp.fisher.layouts import Weighing, summary
from fishexp.fisher.proof import Graph

# examples; as many as there are tokens, so that shapes do not tell the two apart
N = 4


def entries(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


def products(x: Tensor) -> Tensor:
    return x @ x.transpose(1, 2)


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


# of (examples, N, 6); the first are proven, the second mix or move examples
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "entries": lambda x: entries(x.tanh() * 2 + x.exp()),
    "sum kept": lambda x: x.sum(1, keepdim=True).flatten(1),
    "sum": lambda x: x.sum((1, 2))[:, None],
    "mean": lambda x: x.mean(-1),
    "largest": lambda x: x.amax(1),
    "norm": lambda x: x.norm(dim=2),
    "softmax": lambda x: entries(x.softmax(1)),
    "cumsum": lambda x: entries(x.cumsum(1)),
    "slice": lambda x: entries(x[:, 1:3]),
    "select": lambda x: x[:, 2],
    "flip": lambda x: entries(x.flip(1)),
    "roll": lambda x: entries(x.roll(1, 1)),
    "cat": lambda x: entries(torch.cat([x, x.tanh()], 1)),
    "stack": lambda x: entries(torch.stack([x, x.tanh()], 1)),
    "split": lambda x: entries(x.split(2, 1)[1]),
    "unbind": lambda x: x.unbind(1)[1],
    "gather": lambda x: entries(x.gather(1, torch.zeros(N, 2, 6, dtype=torch.long))),
    "transpose": lambda x: x.transpose(0, 1).tanh().sum(0),
    "permute": lambda x: x.permute(2, 0, 1).tanh().sum(0),
    "tokens first, flattened": lambda x: x.transpose(0, 1).reshape(-1, 6).tanh().view(N, N, 6).sum(0),
    "flattened": lambda x: x.reshape(-1, 6).tanh().view(N, N, 6).sum(1),
    "product with a weight": lambda x: (x @ torch.ones(6, 3, dtype=x.dtype)).flatten(1),
    "products": lambda x: entries(products(x)),
    "attention": lambda x: entries(attention(x[:, None])),
    "layer norm": lambda x: entries(F.layer_norm(x, (6,))),
    "layer norm over two": lambda x: entries(F.layer_norm(x, (N, 6))),
    "batch norm that is set": lambda x: entries(F.batch_norm(x, x.new_zeros(N), x.new_ones(N))),
    "pad": lambda x: entries(F.pad(x, (1, 1, 2, 0))),
    "last of each": lambda x: x[torch.arange(N), torch.tensor([0, 1, 1, 3])],
    "a mask of one each": lambda x: x[torch.eye(N, dtype=torch.bool).flip(1)],
    "pool": lambda x: entries(F.adaptive_avg_pool2d(x[:, None], 1)),
    "convolution": lambda x: entries(F.conv1d(x, torch.ones(2, N, 3, dtype=x.dtype))),
}  # fmt: skip

MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "sum kept": lambda x: entries(x + x.sum(0, keepdim=True)),
    "sum kept of all": lambda x: x.sum((0, 2), keepdim=True).expand(N, N, 6).flatten(1),
    "mean": lambda x: x.mean(0)[:, :3],
    "largest": lambda x: x.amax(0),
    "largest of all": lambda x: entries(x * x.max()),
    "norm": lambda x: entries(x / x.norm()),
    "standard deviation": lambda x: entries(x / x.std(0)),
    "softmax": lambda x: entries(x.softmax(0)),
    "cumsum": lambda x: entries(x.cumsum(0)),
    "flip": lambda x: entries(x.flip(0)),
    "roll": lambda x: entries(x.roll(1, 0)),
    "roll of all": lambda x: entries(x.roll(1)),
    "slices": lambda x: entries(torch.cat([x[1:], x[:1]])),
    "select": lambda x: entries(x + x[0]),
    "stack": lambda x: entries(torch.stack(x.unbind(0)[::-1])),
    "split": lambda x: entries(torch.cat(x.split(2)[::-1])),
    "unbind": lambda x: entries(x + x.unbind(0)[2]),
    "gather": lambda x: entries(x.gather(0, torch.ones(N, N, 6, dtype=torch.long))),
    "index select": lambda x: entries(x.index_select(0, torch.tensor([3, 2, 1, 0]))),
    "index": lambda x: entries(x[torch.tensor([3, 2, 1, 0])]),
    "index of tokens by examples": lambda x: x[torch.tensor([1, 0, 3, 2]), torch.arange(N)],
    "a mask of other numbers": lambda x: x[torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]) > 0],
    "transpose": lambda x: entries(x.transpose(0, 1)),
    "transpose, then a shape": lambda x: x.transpose(0, 1).reshape(N, -1),
    "permute": lambda x: entries(x.permute(1, 2, 0)),
    "expand": lambda x: x[:1].expand(N, N, 6).flatten(1),
    "product": lambda x: torch.ones(N, N, dtype=x.dtype) @ x.flatten(1),
    "product with a transpose": lambda x: x.flatten(1) @ x.flatten(1).T,
    "products, tokens first": lambda x: products(x.transpose(0, 1)).transpose(0, 1).flatten(1),
    "products with all examples": lambda x: (torch.ones(N, N, N).to(x) @ x.transpose(0, 1)).transpose(0, 1).flatten(1),
    "attention, tokens first": lambda x: entries(attention(x.transpose(0, 1))),
    "attention over examples": lambda x: attention(x.transpose(0, 1)[:, None]).permute(2, 0, 1, 3).flatten(1),
    "layer norm": lambda x: entries(F.layer_norm(x, tuple(x.shape))),
    "batch norm": lambda x: entries(F.batch_norm(x, None, None, training=True)),
    "convolution over examples": lambda x: F.conv1d(x.transpose(0, 1)[:, :, :3], torch.ones(N, N, 3).to(x))[..., 0],
    "pool over examples": lambda x: entries(F.avg_pool2d(x.mT.permute(1, 2, 0), (1, 3), 1, (0, 1)).permute(2, 0, 1)),
}  # fmt: skip


def looked_at(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Graph]:
    """Return inputs, the logits of a function of them, and its graph."""
    x = torch.rand(N, N, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    logits = function(x.clone())
    assert len(logits) == N
    return x, logits, Graph(logits, N)


def influence(x: Tensor, logits: Tensor) -> Tensor:
    """Return (examples, *inputs) whether an example's logits depend on an input."""
    weights = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)
    terms = (logits * weights).flatten(1).sum(1)
    return torch.stack([torch.autograd.grad(term, x, retain_graph=True)[0] for term in terms]) != 0


@pytest.mark.parametrize("case", APART)
def test_examples_that_stay_apart_are_proven_to(case: str) -> None:
    x, logits, graph = looked_at(APART[case])
    layout = graph.layout_of(Graph.end_of(x))
    assert layout is not None
    for i, depends in enumerate(influence(x, logits)):
        assert depends.any()
        assert torch.equal(layout.only(depends, i), depends)


@pytest.mark.parametrize("case", MIXED)
def test_nothing_is_proven_of_examples_that_do_not(case: str) -> None:
    x, logits, graph = looked_at(MIXED[case])
    layout = graph.layout_of(Graph.end_of(x))
    if layout is not None:  # they may have moved to another place, if it is the right one
        for i, depends in enumerate(influence(x, logits)):
            assert torch.equal(layout.only(depends, i), depends), case


def test_weighing_finds_no_rows_where_two_examples_share_one() -> None:
    weighing = Weighing(3, torch.device("cpu"))
    g = torch.rand(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    owners = torch.tensor([2, 0, 0, 1, 2, 2, 0])
    weighed = weighing.factors[owners][:, None] * g
    found = weighing.layout(summary(g), summary(weighed), by_rows=True)
    assert found is not None
    assert torch.equal(found.numbers_of(g[:, 0]), owners)
    assert weighing.layout(summary(g), summary(weighed), by_rows=False) is None
    shared = weighed.clone()
    shared[3] = (weighing.factors[1] * 0.7 + weighing.factors[2] * 0.3) * g[3]
    assert weighing.layout(summary(g), summary(shared), by_rows=True) is None
