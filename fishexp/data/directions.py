"""Which way a metric is better, by its name."""

from collections.abc import Iterable

# metrics of which less is better; of all others more is
LESS_IS_BETTER = frozenset(
    "loss error error_rate mse rmse mae nll cross_entropy perplexity brier ece wer cer".split()  # noqa: SIM905
)


def less_is_better(metric: str, metrics: Iterable[str]) -> bool:
    """Tell whether less of a metric is better, be it that of a set of several: ``mse_matched``.

    Args:
        metrics: Names of all metrics of the run; each set has a loss, as ``loss_matched``.
    """
    ends = ["", *(name.removeprefix("loss") for name in metrics if name.startswith("loss_"))]
    return any(metric.removesuffix(end) in LESS_IS_BETTER for end in ends)
