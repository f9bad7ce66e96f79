"""Diagonal Fisher information of a model's weights, exact for every example."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fishexp.errors import FishexpError
from fishexp.fisher.batches import Batches
from fishexp.fisher.estimator import Labels, Loss, Scoring
from fishexp.fisher.eval_mode import evaluation_mode
from fishexp.fisher.layer_rules import Power
from fishexp.masks.topk import Scores
from fishexp.sparse.modules import plain


def diagonal_fisher(
    model: nn.Module,
    batches: Batches,
    labels: Labels = "true_label",
    power: Power = "square",
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
    as_is: bool = False,
    advance: Callable[[int], None] = lambda examples: None,
) -> Scores:
    r"""Fisher information of each weight on its own: the mean over examples of the squared gradient.

    ``true_label`` is the empirical Fisher, with the gradient g of ``loss`` at the true label. ``expected`` is
    :math:`\sum_c p_c\, g_c^2` with the model's own probabilities p and g_c the gradient of -log p_c: exact, at the
    price of a backward pass per class. ``sampled`` draws one label per example from p, an unbiased estimate of it.

    Args:
        model: Returns logits (examples, classes), or an object with ``.logits``. It is scored in evaluation mode; its
            mode, buffers, gradients and the global random stream are as before afterwards. A BatchNorm that has seen no
            batch yet is scored with the statistics of ``batches``, since in evaluation mode it would be the identity.
            A batch takes one pass if each module that holds parameters takes and returns tensors, examples first; two
            examples are scored both ways to see whether that is so. If not, each example takes a pass, and the log
            says why.
        batches: (inputs, labels). Inputs are a tensor or a mapping of tensors (keyword arguments), examples first. The
            cut into batches does not change the result, an untrained BatchNorm's statistics aside.
        power: ``square``, or ``absolute`` for |g| instead of its square.
        loss: For ``true_label``; cross-entropy if None. ``expected`` and ``sampled`` know classes only.
        generator: Draws the labels of ``sampled``; if None, a new one with seed 0.
        as_is: Score in the mode the model is in, one example a pass, as the original code did: a BatchNorm in training
            mode then normalises each example by itself and its running statistics move.
        advance: Told the number of examples scored since it was last called, to show progress.

    Returns:
        name -> tensor of the parameter's shape for every parameter, frozen ones too; in float32 at least. Beside them
        the working memory is the activations of a batch and one buffer of the largest parameter's size, two if
        that is used more than once in a pass.

    Raises:
        FishexpError: If there is no example, or ``expected`` or ``sampled`` is asked of a model with one output.
    """
    with plain(model), nullcontext(batches) if as_is else evaluation_mode(model, batches) as scored:
        parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        scoring = Scoring(model, _zeros(parameters), labels, power, loss, generator or torch.Generator().manual_seed(0))
        count = 0
        together = not as_is
        for inputs, targets in scored:
            if count == 0 and together:
                together = len(targets) > 1 and scoring.can_batch(inputs, targets)
            if together:
                scoring.together(inputs, targets)
            else:
                scoring.apart(inputs, targets)
            count += len(targets)
            advance(len(targets))
    if count == 0:
        raise FishexpError("the Fisher information needs at least one example, got no batch")
    return {name: scoring.totals[p].div_(count) for name, p in parameters.items()}


def _zeros(parameters: Mapping[str, nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """In float32 at least: in bfloat16 a sum stops to grow after some 256 equal terms."""
    return {
        p: torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
        for p in parameters.values()
    }
