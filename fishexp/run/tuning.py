"""Learning rates chosen on held-out examples: the best of those tried, and which to try next."""

from collections.abc import Mapping, Sequence

# times that a grid of learning rates grows at each end
MOST_GROWN = 3


def best_rate(tried: Mapping[float, float | None]) -> float | None:
    """Return the learning rate of the highest score, of equals the smallest; None if all failed or are undefined.

    Args:
        tried: Learning rate -> score; None of a run that failed, or whose metric is undefined.
    """
    scores = {lr: score for lr, score in tried.items() if score is not None}
    return min(scores, key=lambda lr: (-scores[lr], lr)) if scores else None


def rates_beyond(rates: Sequence[float], tried: Mapping[float, float | None], grow: float) -> list[float]:
    """Return the rates to try next: beyond the largest or the smallest, if no other is better than it.

    A run that failed, or whose metric is undefined, is worse than any other. Where all are, there are none to try.

    Args:
        rates: The rates that the grid began with.
        tried: Learning rate -> score, as for :func:`best_rate`.
        grow: Factor from a rate to the next; the grid grows ``MOST_GROWN`` times at most at each end.
    """
    scores = [score for score in tried.values() if score is not None]
    if not scores:
        return []
    best, largest, smallest = max(scores), max(tried), min(tried)
    above = tried[largest] == best and sum(lr > max(rates) for lr in tried) < MOST_GROWN
    below = tried[smallest] == best and sum(lr < min(rates) for lr in tried) < MOST_GROWN
    return [float(f"{lr:.12g}") for lr in [largest * grow] * above + [smallest / grow] * below]
