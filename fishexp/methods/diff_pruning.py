"""Diff pruning: changes of the weights and gates on them are learned together (Guo, Rush & Kim, 2021)."""

import math
from copy import deepcopy
from itertools import count
from typing import Annotated, Any, Literal, TypeAlias

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fishexp.errors import FishexpError
from fishexp.masks.started import Started
from fishexp.sparse.parameter import weights
from fishexp.training.apart import Passes, draw_seed, train_apart
from fishexp.training.data_parallel import take_stream_of_first
from fishexp.training.problem import Problem
from fishexp.training.streams import stream
from fishexp.training.trainer import linear_factor

Penalty: TypeAlias = Literal["paper", "code"]

# longer than training does, so that runs with the same weights and examples share them (fishexp/run/cached_scores.py)
SCORES_TAKE_LONG = True
# ends of the interval to which a sigmoid is stretched before it is cut to [0, 1]
_LEFT, _RIGHT = -1.5, 1.5
# logit of a gate as training begins
_FIRST = 5.0
# the uniform numbers that open gates keep this distance from 0 and 1
_MARGIN = 1e-4
# learning rate of the logits, which stays as it is
_GATE_LR = 0.1
# largest norm of the gradient of the changes, and of that of the logits
_CLIP = 1.0
# of AdamW; the last is added to the root of the second moment before the correction of its bias
_BETAS, _EPS = (0.9, 0.999), 1e-8


class GatedModel(nn.Module):
    """Compute a model with changed weights W0 + z_g z w, with gates that are drawn anew at each forward pass.

    A gate z is hard-concrete: a sigmoid of its logit and logistic noise, stretched to [-1.5, 1.5] and cut to [0, 1].
    Each weight has one, and each tensor z_g if ``structured``. The head has none: its weights are W0 + w.

    Args:
        model: With the weights W0, which stay as they are; its buffers do not.
        head: Names of the parameters without gates.
        structured: Whether tensors have gates of their own beside those of their entries.
        generator: Draws the gates; on the model's device.

    Attributes:
        base: name -> W0.
        changes: name -> w, zero as training begins.
        gates: name -> logits of the gates of a tensor's entries, without the head.
        tensor_gates: name -> logit of the gate of a tensor; empty unless ``structured``.
    """

    def __init__(
        self, model: nn.Module, head: tuple[str, ...], generator: torch.Generator, *, structured: bool
    ) -> None:
        super().__init__()
        self.model, self._generator = model, generator
        self.base = {name: p.detach() for name, p in weights(model).items()}
        gated = {name: p for name, p in self.base.items() if name not in head}
        self.changes = {name: nn.Parameter(torch.zeros_like(p)) for name, p in self.base.items()}
        self.gates = {name: nn.Parameter(torch.full_like(p, _FIRST)) for name, p in gated.items()}
        tensors = gated if structured else {}
        self.tensor_gates = {name: nn.Parameter(p.new_full((), _FIRST)) for name, p in tensors.items()}

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Compute what the model does, with new gates."""
        return functional_call(self.model, {n: p + self.change(n) for n, p in self.base.items()}, inputs, named)

    def change(self, name: str) -> Tensor:
        """Compute the change of a weight, with new gates."""
        change = self.changes[name]
        for gates in (self.gates, self.tensor_gates):
            if name in gates:
                change = self._draw(gates[name]) * change
        return change

    def _draw(self, logits: Tensor) -> Tensor:
        """Draw a gate for each logit."""
        uniform = torch.rand(logits.shape, generator=self._generator, device=logits.device, dtype=logits.dtype)
        noise = uniform.clamp_(_MARGIN, 1 - _MARGIN).logit_()
        return F.hardtanh((noise + logits).sigmoid() * (_RIGHT - _LEFT) + _LEFT, 0.0, 1.0)

    def penalty(self, kind: Penalty) -> Tensor:
        """Compute how many gates are open on average: an entry's and its tensor's both (paper), or either (code)."""
        total = torch.zeros((), device=next(iter(self.base.values())).device)
        for name, logits in self.gates.items():
            open_entries = _probability_open(logits).sum()
            if name not in self.tensor_gates:
                total = total + open_entries
                continue
            open_tensor = _probability_open(self.tensor_gates[name])
            total = total + (open_entries * open_tensor if kind == "paper" else open_entries + open_tensor)
        return total


def _probability_open(logits: Tensor) -> Tensor:
    """Compute the probability that a gate is not 0."""
    return (logits - math.log(-_LEFT / _RIGHT)).sigmoid()


def scores(
    problem: Problem,
    *,
    structured: bool,
    penalty: Penalty,
    penalty_weight: Annotated[float, Ge(0)],
    stage1_epochs: Annotated[int, Ge(1)],
    stage1_lr: Annotated[float, Gt(0)],
    stage1_batch_size: Annotated[int, Ge(1)],
    stage1_accumulate: Annotated[int, Ge(1)],
    stage1_drop_last: bool,
) -> Started:
    """Learn changes and gates (stage 1), and score each weight by its change through gates that are drawn a last time.

    Stage 2 is the selection of the largest changes, and stage 3 the training of these by the regime, which begins with
    the changes themselves, without gates. The head is paid for out of ``keep`` and trains whole; with ``compat=fish`` a
    threshold selects as in the authors' code (:func:`fishexp.masks.started.above_threshold`). A run that is cut in
    stage 1 begins anew.

    Stage 1 trains with AdamW as transformers had it, without weight decay: changes at ``stage1_lr``, which falls to 0
    in a straight line, logits at 0.1, both with a gradient of norm 1 at most. It takes 60 bytes a weight in float32.

    Args:
        structured: Whether tensors have gates beside those of their entries.
        penalty: ``code`` counts the open gates of entries and of tensors, as the code does with which the paper's
            results were made. ``paper`` counts the entries whose gate and whose tensor's gate are open, as the paper
            says; the gradient of a tensor's logit is then that of all its entries, and AdamW lowers it by 0.1 a step
            from the first one on: 94 steps on SST-2 closed two thirds of minilm's tensors, most matrices among them.
        penalty_weight: Factor of the penalty. 1.25e-7 was published for the 334 million weights of BERT-large, whose
            penalty is 42 as training begins; for the same with other models, it is to be 42 divided by their weights.

    Raises:
        FishexpError: If the model recomputes activations.

    Source:
        Guo, Rush & Kim, "Parameter-Efficient Transfer Learning with Diff Pruning", arXiv:2012.07463, and the code at
        dguo98/DiffPruning, 085fa7d.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in problem.model.modules()):
        raise FishexpError(
            "method=diff_pruning cannot recompute activations, as gates are drawn anew each time; "
            "take model.activation_checkpointing=false"
        )
    seed = draw_seed(problem)
    shared = deepcopy(problem.model, {id(p): p for p in problem.model.parameters()})  # its buffers are to stay
    gates = _gate_stream(seed, problem.device)
    model = GatedModel(shared, problem.head, gates, structured=structured)
    passes = Passes(stage1_epochs, stage1_batch_size, stage1_accumulate, stage1_drop_last)
    optimizer = _optimizer(model, stage1_lr, penalty, penalty_weight)
    steps = passes.epoch_steps(problem) * stage1_epochs
    schedule = LambdaLR(optimizer, [linear_factor(steps, 0), lambda step: 1.0])
    names = {"prefix": "method.stage1_", "what": "learning gates"}
    train_apart(problem, model, optimizer, schedule, passes, clip=None, seed=seed, **names)
    take_stream_of_first(problem, gates)
    with torch.no_grad():
        changes = {name: model.change(name).abs() for name in model.base}
        return Started(changes, {name: p + model.changes[name] for name, p in model.base.items()})


def _gate_stream(seed: int, device: torch.device) -> torch.Generator:
    return stream(seed, "gates") if device.type == "cpu" else torch.Generator(device).manual_seed(seed)


def _optimizer(model: GatedModel, lr: float, penalty: Penalty, penalty_weight: float) -> Optimizer:
    """Make the optimiser of changes and logits, whose steps add the gradient of the penalty and clip both gradients."""
    logits = [*model.gates.values(), *model.tensor_gates.values()]
    groups: list[dict[str, Any]] = [{"params": [*model.changes.values()], "lr": lr}, {"params": logits, "lr": _GATE_LR}]
    optimizer = torch.optim.AdamW(groups, betas=_BETAS, weight_decay=0.0, fused=True)
    steps = count(1)

    def prepare(optimizer: Optimizer, *_: Any) -> None:
        (penalty_weight * model.penalty(penalty)).backward()
        eps = _EPS / math.sqrt(1 - _BETAS[1] ** next(steps))  # torch adds it after the correction, transformers before
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], _CLIP)
            group["eps"] = eps

    optimizer.register_step_pre_hook(prepare)
    return optimizer
