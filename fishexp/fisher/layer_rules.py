"""Gradients of the weights that a function of torch takes, example by example, from its input and output's gradient.

:data:`RULES` has a rule for each function whose formula is known, be it called by a module or not. Throughout, ``x`` is
the input and ``g`` the gradient of the output; a layout says which example each part of them belongs to.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.fisher.autograd_rules import Call, EinsumRule, PartRule, Rule
from fishexp.fisher.layouts import Blocks, Layout
from fishexp.fisher.powers import Power, add_power, add_product_powers, powered

# positions of a convolution's output; up to here products with the columns of its input beat torch's own gradient
FEW_POSITIONS = 64


class FormulaRule(Rule):
    """Compute the gradients of ``weight`` and ``bias`` by a formula."""

    def vectors(self, call: Call, name: Any, layout: Layout, g: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the gradients of all examples at once, if the weight is as small as a bias; None if not.

        Returns:
            (examples, *the weight's shape), summed in ``dtype``.
        """
        return None

    def weight_gradient(self, call: Call, layout: Layout, g: Tensor, i: int) -> Tensor:
        """Return the gradient of ``weight`` from the ``i``-th example, in a new tensor."""
        raise NotImplementedError

    def add_weight_powers(self, total: Tensor, call: Call, layout: Layout, g: Tensor, power: Power) -> None:
        """Add the powers of each example's gradient of ``weight``."""
        for i in range(layout.examples):
            add_power(total, self.weight_gradient(call, layout, g, i), power)

    def gradient(self, call: Call, name: Any, layout: Layout, g: Tensor, i: int) -> Tensor:
        vectors = self.vectors(call, name, layout, g, g.dtype)
        return self.weight_gradient(call, layout, g, i) if vectors is None else vectors[i].clone()

    def add_powers(self, total: Tensor, call: Call, name: Any, layout: Layout, g: Tensor, power: Power) -> None:
        vectors = self.vectors(call, name, layout, g, total.dtype)
        if vectors is None:
            self.add_weight_powers(total, call, layout, g, power)
        else:
            total.add_(powered(vectors, power).sum(0))


class LinearRule(FormulaRule):
    """Multiply the output's gradient by the input, summed over an example's tokens."""

    def __init__(self, *parameters: str, transposed: bool = False) -> None:
        """Make a rule; a ``transposed`` weight is (inputs, outputs)."""
        super().__init__(*parameters)
        self.transposed = transposed

    def applies(self, call: Call) -> bool:
        weight, bias = call.arguments["weight"], call.get("bias", None)
        if call.x.dim() < 2 or weight.dim() != 2 or {"alpha", "beta", "out"} & call.arguments.keys():
            return False
        outputs = weight.shape[1 if self.transposed else 0]
        return "bias" not in call.weights or bias.shape == (outputs,)  # addmm broadcasts others

    def joined(self, uses: Sequence[tuple[Call, Layout, Tensor]]) -> tuple[Call, Layout, Tensor] | None:
        """Put the tokens behind each other, as those of a recurrent layer's steps."""
        return tokens_joined(uses, lambda call, g: call.x.to(g.dtype))

    def vectors(self, call: Call, name: Any, layout: Layout, g: Tensor, dtype: torch.dtype) -> Tensor | None:
        return layout.sums(g, [g.dim() - 1], dtype) if name == "bias" else None

    def weight_gradient(self, call: Call, layout: Layout, g: Tensor, i: int) -> Tensor:
        left, right = (layout.part(t, i).flatten(0, -2) for t in self._factors(call, g))
        return left.t() @ right.to(g.dtype)

    def add_weight_powers(self, total: Tensor, call: Call, layout: Layout, g: Tensor, power: Power) -> None:
        left, right = (layout.tokens(t) for t in self._factors(call, g))
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            add_product_powers(total, left, right, power)
            return
        for rows, columns in zip(left, right, strict=True):
            if len(rows):
                add_power(total, rows.t().to(g.dtype) @ columns.to(g.dtype), power)

    def fits(self, call: Call, layout: Layout) -> bool:
        return not isinstance(layout, Blocks) or layout.dim < call.x.dim() - 1

    def _factors(self, call: Call, g: Tensor) -> tuple[Tensor, Tensor]:
        return (call.x.to(g.dtype), g) if self.transposed else (g, call.x.to(g.dtype))


class Conv2dRule(FormulaRule):
    """Correlate the input with the output's gradient."""

    by_rows = False

    def applies(self, call: Call) -> bool:
        return call.x.dim() == 4 and not call.x.is_complex()

    def fits(self, call: Call, layout: Layout) -> bool:
        return isinstance(layout, Blocks) and layout.dim == 0

    def vectors(self, call: Call, name: Any, layout: Layout, g: Tensor, dtype: torch.dtype) -> Tensor | None:
        return layout.sums(g, [1], dtype) if name == "bias" else None

    def weight_gradient(self, call: Call, layout: Layout, g: Tensor, i: int) -> Tensor:
        x, g = layout.part(call.x, i).to(g.dtype), layout.part(g, i)
        x, padding = self._padded(call, x)
        more = call.get("stride", 1), padding, call.get("dilation", 1), call.get("groups", 1)
        return nn.grad.conv2d_weight(x, call.arguments["weight"].shape, g, *more)  # type: ignore[arg-type]

    def add_weight_powers(self, total: Tensor, call: Call, layout: Layout, g: Tensor, power: Power) -> None:
        """Multiply the columns of the input where the output has few positions; elsewhere have some examples a call."""
        few = g[0, 0].numel() * len(g) // layout.examples <= FEW_POSITIONS
        if few and call.get("groups", 1) == 1:
            self._add_by_columns(total, call, layout, g, power)
        else:
            self._add_by_groups(total, call, layout, g, power)

    def _add_by_columns(self, total: Tensor, call: Call, layout: Layout, g: Tensor, power: Power) -> None:
        """Multiply the columns of the input by the output's gradient, with positions of the output as tokens."""
        x, padding = self._padded(call, call.x)
        columns = F.unfold(x, total.shape[2:], call.get("dilation", 1), padding, call.get("stride", 1))  # type: ignore[arg-type]
        left, right = (layout.tokens(t.transpose(1, 2)) for t in (g.flatten(2), columns))
        assert isinstance(left, Tensor)
        assert isinstance(right, Tensor)
        add_product_powers(total.flatten(1), left, right, power)

    def _add_by_groups(self, total: Tensor, call: Call, layout: Layout, g: Tensor, power: Power) -> None:
        """Have torch form gradients of several examples in a call, which take no more memory than ``g``, or of one."""
        assert isinstance(layout, Blocks)
        x, padding = self._padded(call, call.x.to(g.dtype))
        size = 1 if g.is_cuda else max(1, g.numel() // total.numel())  # not measured on a GPU: one by one there
        for some, own in zip(layout.first(x).split(size), layout.first(g).split(size), strict=True):
            self._add_some(total, call, padding, some, own, power)

    @staticmethod
    def _add_some(total: Tensor, call: Call, padding: Any, x: Tensor, g: Tensor, power: Power) -> None:
        """Make the channels of some examples groups of channels of one convolution, and add its gradients' powers.

        Args:
            padding: Width of the zeros still to be put around ``x``.
            x: (examples, images, channels, height, width).
            g: Likewise.
        """
        examples = len(x)
        x, g = (t.transpose(0, 1).flatten(1, 2) for t in (x, g))  # (images, examples * channels, height, width)
        shape = examples * len(total), *total.shape[1:]
        more = call.get("stride", 1), padding, call.get("dilation", 1), examples * call.get("groups", 1)
        gradients = nn.grad.conv2d_weight(x, shape, g, *more)  # type: ignore[arg-type]
        for gradient in gradients.view(examples, *total.shape):
            add_power(total, gradient, power)

    @staticmethod
    def _padded(call: Call, x: Tensor) -> tuple[Tensor, int | tuple[int, ...]]:
        """Return the input and the width of the zeros still to be put around it."""
        padding = call.get("padding", 0)
        if not isinstance(padding, str):
            return x, padding
        if padding == "valid":
            return x, 0
        widths, dilation = [], call.get("dilation", 1)
        for k, size in reversed(list(enumerate(call.arguments["weight"].shape[2:]))):
            total = (dilation if isinstance(dilation, int) else dilation[k]) * (size - 1)
            widths += [total // 2, total - total // 2]
        return F.pad(x, widths), 0


class EmbeddingRule(FormulaRule):
    """Add up the output's gradients at each row's tokens."""

    def applies(self, call: Call) -> bool:
        special = call.get("max_norm", None) is not None or call.get("scale_grad_by_freq", False)
        return not special and not call.get("sparse", False)

    def joined(self, uses: Sequence[tuple[Call, Layout, Tensor]]) -> tuple[Call, Layout, Tensor] | None:
        """Put the tokens behind each other, as those that an encoder and a decoder embed."""
        if len({call.get("padding_idx", None) for call, _, _ in uses}) > 1:
            return None
        found = tokens_joined(uses, lambda call, g: call.x[..., None])
        if found is None:
            return None
        call, layout, g = found
        return replace(call, arguments={**call.arguments, "input": call.x[..., 0]}), layout, g

    def weight_gradient(self, call: Call, layout: Layout, g: Tensor, i: int) -> Tensor:
        trained = self._trained(call) & (layout.numbers_of(call.x) == i)
        return g.new_zeros(call.arguments["weight"].shape).index_add_(0, call.x[trained], g[trained])

    def add_weight_powers(self, total: Tensor, call: Call, layout: Layout, g: Tensor, power: Power) -> None:
        """Form no gradient of the whole table, but of the rows that an example uses."""
        size = len(total)
        trained = self._trained(call)
        rows = call.x + size * layout.numbers_of(call.x)  # row of which example
        used, place = rows[trained].unique(return_inverse=True)
        sums = g.new_zeros(len(used), g.shape[-1], dtype=total.dtype)
        sums.index_add_(0, place, g[trained].to(total.dtype))  # a token repeated in an example: added before its square
        total.index_add_(0, used % size, powered(sums, power))

    def fits(self, call: Call, layout: Layout) -> bool:
        return not isinstance(layout, Blocks) or layout.dim < call.x.dim()

    @staticmethod
    def _trained(call: Call) -> Tensor:
        """Return where the tokens are not padding, whose row has no gradient."""
        padding = call.get("padding_idx", None)
        if padding is None:
            return torch.ones_like(call.x, dtype=torch.bool)
        return call.x != padding % len(call.arguments["weight"])


def tokens_joined(
    uses: Sequence[tuple[Call, Layout, Tensor]], inputs: Callable[[Call, Tensor], Tensor]
) -> tuple[Call, Layout, Tensor] | None:
    """Return one use of a weight with the tokens of several, as :meth:`Rule.joined` does; None for scattered rows.

    Args:
        inputs: (call, gradient of its output) -> its input, (..., features).
    """
    blocks = [(call, layout, g) for call, layout, g in uses if isinstance(layout, Blocks)]
    if len(blocks) < len(uses):
        return None
    x = torch.cat([layout.tokens(inputs(call, g)) for call, layout, g in blocks], 1)
    g = torch.cat([layout.tokens(g) for _, layout, g in blocks], 1)
    call = uses[0][0]
    return replace(call, arguments={**call.arguments, "input": x}), Blocks(len(x), 0), g


class GroupedProductRule(FormulaRule):
    """Cover matrices of experts, (experts, inputs, outputs), of which each takes the rows up to its offset."""

    def applies(self, call: Call) -> bool:
        return call.x.dim() == 2 and call.arguments["weight"].dim() == 3 and call.get("bias", None) is None

    def weight_gradient(self, call: Call, layout: Layout, g: Tensor, i: int) -> Tensor:
        own = (layout.numbers_of(call.x[:, 0]) == i).nonzero().flatten()
        ends = torch.searchsorted(own, call.arguments["offs"].long()).tolist()
        gradient = g.new_zeros(call.arguments["weight"].shape)
        for matrix, start, end in zip(gradient, [0, *ends], ends, strict=False):
            rows = own[start:end]
            torch.mm(call.x[rows].t().to(g.dtype), g[rows], out=matrix)
        return gradient


class NormRule(FormulaRule):
    """Cover a norm that multiplies its normalised input by a weight and adds a bias."""

    def __init__(self, *parameters: str, normalised: Callable[[Call, Tensor], Tensor]) -> None:
        """Make a rule; ``normalised`` returns the input of a call as it is before weight and bias."""
        super().__init__(*parameters)
        self.normalised = normalised

    def vectors(self, call: Call, name: Any, layout: Layout, g: Tensor, dtype: torch.dtype) -> Tensor:
        g = g * self.normalised(call, call.x.to(g.dtype)) if name == "weight" else g
        return layout.sums(g, self.kept(call, g), dtype)

    def kept(self, call: Call, g: Tensor) -> list[int]:
        """Return the dimensions that the weight has."""
        return [1]

    def fits(self, call: Call, layout: Layout) -> bool:
        return isinstance(layout, Blocks) and layout.dim == 0


class LayerNormRule(NormRule):
    """Cover a norm whose weights have the last dimensions of its input."""

    def kept(self, call: Call, g: Tensor) -> list[int]:
        return list(range(g.dim() - len(call.arguments["normalized_shape"]), g.dim()))

    def fits(self, call: Call, layout: Layout) -> bool:
        shape = call.arguments["normalized_shape"]
        return layout.dim < call.x.dim() - len(shape) if isinstance(layout, Blocks) else len(shape) == 1


class BatchNormRule(NormRule):
    """Cover a norm that uses running statistics, so that no example has a part in another's output."""

    def applies(self, call: Call) -> bool:
        return call.get("running_mean", None) is not None and not call.get("training", False)


LINEAR = LinearRule("input", "weight", "bias")

# function of torch -> its rule; calls of all others that take weights are differentiated by autograd, or their weights
# are given to each example (weight_uses.py)
RULES: dict[Callable[..., Any], Rule] = {
    F.linear: LINEAR,
    torch.addmm: LinearRule("bias", "input", "weight", transposed=True),
    torch.Tensor.addmm: LinearRule("bias", "input", "weight", transposed=True),
    torch.matmul: LinearRule("input", "weight", transposed=True),
    torch.Tensor.matmul: LinearRule("input", "weight", transposed=True),
    torch.mm: LinearRule("input", "weight", transposed=True),
    torch._grouped_mm: GroupedProductRule(  # pyright: ignore[reportPrivateImportUsage]
        "input", "weight", "offs", "bias", "out_dtype"
    ),
    F.conv2d: Conv2dRule("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.embedding: EmbeddingRule(
        "input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"
    ),
    F.layer_norm: LayerNormRule(
        "input", "normalized_shape", "weight", "bias", "eps",
        normalised=lambda c, x: F.layer_norm(x, c.arguments["normalized_shape"], eps=c.get("eps", 1e-5)),
    ),
    F.rms_norm: LayerNormRule(
        "input", "normalized_shape", "weight", "eps",
        normalised=lambda c, x: F.rms_norm(x, c.arguments["normalized_shape"], eps=c.get("eps", None)),
    ),
    F.group_norm: NormRule(
        "input", "num_groups", "weight", "bias", "eps",
        normalised=lambda c, x: F.group_norm(x, c.arguments["num_groups"], eps=c.get("eps", 1e-5)),
    ),
    F.batch_norm: BatchNormRule(
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps",
        normalised=lambda c, x: F.batch_norm(
            x, c.arguments["running_mean"], c.arguments["running_var"], eps=c.get("eps", 1e-5)
        ),
    ),
}  # fmt: skip

# function -> a rule for calls that the one above does not hold for, or that have none there
PART_RULES: dict[Callable[..., Any], Rule] = {
    F.conv1d: PartRule(3),
    F.conv2d: PartRule(4),
    F.conv3d: PartRule(5),
    F.conv_transpose1d: PartRule(3),
    F.conv_transpose2d: PartRule(4),
    F.conv_transpose3d: PartRule(5),
    F.embedding: PartRule(1),
    F.embedding_bag: PartRule(2),
    F.bilinear: PartRule(2),
    torch.einsum: EinsumRule(),
    F.prelu: PartRule(2),
    F.instance_norm: PartRule(3),
}
