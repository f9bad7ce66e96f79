"""Bit-Fit: which parameters are biases, by the names that torch gives them."""

from torch import nn

from fishexp.methods import bitfit
from tests.support.training import problem


def test_every_bias_is_chosen_whatever_it_is_called_and_nothing_else() -> None:
    model = nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 8),
        nn.MultiheadAttention(4, 2, add_bias_kv=True),  # bias_k and bias_v are tokens
        nn.LSTM(4, 3, 2, bidirectional=True),
        nn.GRUCell(3, 3),
        nn.Linear(3, 2),
    )
    ours = problem(model, (5,))
    ours.head = ("4.weight", "4.bias")
    chosen = {name: bool(kept.all()) for name, kept in bitfit.mask(ours).items()}
    assert all(kept.any() == chosen[name] for name, kept in bitfit.mask(ours).items())
    rest = {name for name, whole in chosen.items() if not whole}
    biases = {name for name, p in model.named_parameters() if p.dim() == 1 and "norm" not in name}
    assert rest == chosen.keys() - biases - {"4.weight", "0.norm1.bias", "0.norm2.bias"}
    assert {"1.bias_k", "1.bias_v", "0.norm1.weight"} < rest
    assert bitfit.outline(model, ours.head, None).trains == sum(
        p.numel() for name, p in model.named_parameters() if chosen[name]
    )
