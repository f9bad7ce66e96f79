"""One model, one mask chosen before the first step: the paper's parameter-efficient transfer."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge, Gt

from fishexp.examples import Metrics
from fishexp.loop import OptimiserName, evaluate, linear_schedule, make_optimiser, train_epoch
from fishexp.masks import Mask
from fishexp.problem import Problem
from fishexp.settings import Decay
from fishexp.sparse import mask_gradients, sparsify
from fishexp.tracking import Log


def train(
    problem: Problem,
    choose: Callable[[], Mask],
    log: Log,
    decay: Decay,
    *,
    epochs: Annotated[int, Ge(0)],
    batch_size: Annotated[int, Ge(1)],
    accumulate: Annotated[int, Ge(1)],
    lr: Annotated[float, Gt(0)],
    optimiser: OptimiserName,
    weight_decay: Annotated[float, Ge(0)],
    warmup: Annotated[float, Ge(0)],
    clip: Annotated[float, Gt(0)] | None,
    drop_last: bool,
    evaluation_batch_size: Annotated[int, Ge(1)],
) -> Metrics:
    """Train the entries that ``choose`` names; evaluate after each epoch.

    Args:
        choose: Scores the weights and returns the mask; not called if ``epochs`` is 0.
        decay: ``kept``: weight decay reaches the kept entries only. ``all``: it reaches every weight, as in the
            original CIFAR-10 code; the optimiser's state is then as large as the model.
        epochs: Passes over the training examples; 0 evaluates only.
        batch_size: Examples a pass through the model.
        accumulate: Batches an optimiser step.
        lr: Peak learning rate.
        warmup: Epochs over which the learning rate rises, at most a quarter of all.
        clip: Largest norm of the kept entries' gradient; None for no limit.
        drop_last: Leave out a smaller last batch, unless it is the only one.

    Returns:
        The metrics after the last epoch.
    """
    if epochs == 0:
        with log.clock("evaluate"):
            metrics = evaluate(problem, evaluation_batch_size)
        log.epoch(0, metrics)
        return metrics

    mask = choose()
    sparse = sparsify(problem.model, mask) if decay == "kept" else None
    parameters = mask_gradients(problem.model, mask) if sparse is None else sparse.parameters()
    stepper = make_optimiser(optimiser, parameters, lr, weight_decay)
    examples = problem.epoch_size(batch_size, drop_last=drop_last)
    steps = math.ceil(math.ceil(examples / batch_size) / accumulate)
    if warmup > epochs / 4:
        log.say(
            f"regime.warmup={warmup} is over a quarter of {epochs} epochs: the learning rate rises for {epochs / 4}"
        )
        warmup = epochs / 4
    schedule = linear_schedule(stepper, steps * epochs, int(steps * warmup))

    metrics: Metrics = {}
    with log.bar(examples * epochs) as bar:
        for epoch in range(1, epochs + 1):
            bar.describe(f"epoch {epoch}/{epochs}")
            with log.clock("train"):
                batches = problem.epoch(batch_size, drop_last=drop_last)
                loss = train_epoch(
                    problem,
                    stepper,
                    schedule,
                    batches,
                    accumulate=accumulate,
                    clip=clip,
                    advance=bar.advance,
                    name=f"epoch {epoch}",
                )
            with log.clock("evaluate"):
                metrics = evaluate(problem, evaluation_batch_size)
            log.epoch(epoch, {"train_loss": loss, **metrics})
            if epoch == 1 and sparse is not None and (ways := Counter(sparse.ways().values())):
                counts = ", ".join(f"{ways[way]} {way}" for way in sorted(ways))
                log.say(f"gradients of {ways.total()} partly kept products in the last batch: {counts}")
    return metrics
