"""A sparsified model says what trains, is saved and resumed by it, copied with it, and becomes the plain one again."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from transformers.trainer_pt_utils import get_parameter_names

import fishexp
from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse import Sparse, sparsify
from fishexp.sparse.parameter import weights
from fishexp.sparse.sparsify import mask_gradients
from tests.support.cases import NETS, conv_net, images, steps, tiny_bert, trained
from tests.support.modules import CASES, built, mask_of, objective, random_mask


@pytest.mark.parametrize("case", CASES)
def test_a_restored_model_is_the_plain_one(case: str) -> None:
    """Module by module: names, classes, what requires a gradient, and the gradients themselves."""
    (model, inputs), (plain, _) = built(case), built(case)
    kinds = [type(module) for module in model.modules()]
    first = next(iter(weights(model)))
    for net in (model, plain):
        weights(net)[first].requires_grad_(len(weights(net)) == 1)
    sparse = sparsify(model, mask_of(model))
    sparse.restore()
    assert repr(model) == repr(plain)
    assert [type(module) for module in model.modules()] == kinds
    assert [vars(module).keys() for module in model.modules()] == [vars(module).keys() for module in plain.modules()]
    for net in (model, plain):
        objective(net, inputs).backward()
    for (name, found), (wanted_name, wanted) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert (name, found.requires_grad) == (wanted_name, wanted.requires_grad)
        assert torch.equal(found, wanted)
        assert (found.grad is None) == (wanted.grad is None)
        if found.grad is not None and wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=0)


@pytest.mark.parametrize("net", NETS)
def test_a_restored_model_has_the_trained_weights_and_its_delta(net: str) -> None:
    build, data = NETS[net]
    model, base = build().eval(), build().eval()
    sparse = sparsify(model, random_mask(model))
    optimizer = optim.SGD(sparse.parameters(), 0.1)
    steps(model, optimizer, data())
    tuned = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in sparse.parameters():
            p.add_(1.0)  # not read yet when restore is called
    sparse.restore()
    for name, kept in random_mask(base).items():
        torch.testing.assert_close(model.state_dict()[name], tuned[name] + kept, rtol=0, atol=0)
    sparse.delta().apply_(base)
    torch.testing.assert_close(dict(base.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    for call in (optimizer.step, optimizer.zero_grad):
        with pytest.raises(FishexpError, match="an optimiser of an earlier mask cannot step"):
            call()


def test_what_replaced_kept_entries_can_no_longer_do() -> None:
    """After restore, and after another mask, which the first must not undo."""
    for replace in (lambda model, sparse: sparse.restore(), lambda model, _: sparsify(model, mask_of(model, 0.5))):
        model = conv_net()
        sparse = sparsify(model, mask_of(model))
        state = sparse.state_dict()
        replace(model, sparse)
        for call in (
            sparse.restore,
            sparse.state_dict,
            lambda sparse=sparse, state=state: sparse.load_state_dict(state),
        ):
            with pytest.raises(FishexpError, match="restored, or sparsified anew, and no longer trains"):
                call()
        assert repr(sparse).endswith("; no longer trained)")


def test_a_part_that_is_sparsified_alone_replaces_the_mask_of_the_whole() -> None:
    model = conv_net()
    sparse = sparsify(model, mask_of(model))
    part: Any = model[5]  # type: ignore[index]
    sparsify(part, mask_of(part))
    with pytest.raises(FishexpError, match="no longer trains"):
        sparse.restore()
    whole = sparsify(model, mask_of(model))
    assert Sparse.of(model)._state is whole._state
    whole.restore()
    assert repr(model) == repr(conv_net())
    assert all(p.requires_grad for p in model.parameters())


class Double(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_a_module_that_was_parametrised_meanwhile_is_restored_after_that_is_undone() -> None:
    """Its bias, which is kept whole, may be; restored at once, its weight would stay partly kept."""
    model = conv_net()
    mask = random_mask(model)
    sparse = sparsify(model, mask)
    layer: Any = model[5]  # type: ignore[index]
    nn.utils.parametrize.register_parametrization(layer, "bias", Double())
    with pytest.raises(
        FishexpError, match=r"5.weight is partly kept, .* became a ParametrizedLinear .* undo that first"
    ):
        sparse.restore()
    assert repr(sparse).endswith("tensors)")
    nn.utils.parametrize.remove_parametrizations(layer, "bias")
    sparse.restore()
    assert repr(model) == repr(conv_net())


def test_a_module_that_was_made_anew_with_its_children_is_plain_again() -> None:
    model: Any = conv_net()
    mask = mask_of(model)
    mask["1.weight"] = torch.arange(4) < 2
    sparse = sparsify(model, mask)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    sparse.restore()
    assert {type(module).__name__ for module in model.modules()} & {"SyncBatchNorm", "SparseParameter"} == {
        "SyncBatchNorm"
    }
    objective(model.eval(), images()[0]).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_weight_that_was_replaced_by_another_shape_leaves_all_as_it_is() -> None:
    model: Any = conv_net()
    sparse = sparsify(model, mask_of(model))
    kinds = [type(module) for module in model.modules()]
    del model[5]._parameters["weight"]
    model[5]._parameters["weight"] = nn.Parameter(torch.ones(2, 16).double())
    with pytest.raises(FishexpError, match=r"5.weight is partly kept and was replaced by a Parameter of shape"):
        sparse.restore()
    assert [type(module) for module in model.modules()] == kinds


def test_the_second_of_two_masks_restores_what_was_before_the_first() -> None:
    model = conv_net()
    model[0].requires_grad_(False)  # type: ignore[index]
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    sparsify(model, mask_of(model))
    sparsify(model, mask_of(model, 0.5)).restore()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    sparsify(model, mask_of(model))
    mask_gradients(model, mask_of(model))
    with pytest.raises(FishexpError, match="0 sparsified models in this Sequential"):
        Sparse.of(model)


def test_repr_and_summary_count_what_is_kept() -> None:
    model, inputs = built("linear on sequences")
    mask = mask_of(model)
    mask["2.weight"][:], mask["2.bias"][:] = False, True
    sparse = sparsify(model, mask, "dense")
    first, bias = int(mask["0.weight"].sum()), int(mask["0.bias"].sum())
    kept = first + bias + 3
    assert repr(sparse) == f"Sparse({kept} of 75 weights ({kept / 75:.2%}); in 3 of 4 tensors)"
    objective(model, inputs).backward()
    assert repr(sparse) == f"Sparse({kept} of 75 weights ({kept / 75:.2%}); in 3 of 4 tensors; gradients: dense 1)"
    lines = [line.split() for line in sparse.summary().splitlines()]
    assert lines == [
        ["weight", "kept", "of", "share"],
        ["0.weight", str(first), "40", f"{first / 40:.2%}"],
        ["0.bias", str(bias), "8", f"{bias / 8:.2%}"],
        ["2.weight", "0", "24", "0.00%"],
        ["2.bias", "3", "3", "100.00%"],
        ["all", str(kept), "75", f"{kept / 75:.2%}"],
    ]


def by_dimensions(name: str, weight: Tensor) -> dict[str, float]:
    return {"weight_decay": 0.3} if weight.ndim >= 2 else {}


def test_groups_by_the_dimensions_of_the_weights_decay_as_dense_training_does() -> None:
    """Frozen entries are put back after each dense step."""
    dense, model = conv_net(), conv_net()
    mask = random_mask(model)
    for kept in mask.values():
        kept.view(-1)[0] = True
    sparse = sparsify(model, mask)
    groups = sparse.groups(by_dimensions)
    assert [len(group["params"]) for group in groups] == [2, 3]
    before = copy.deepcopy(dense.state_dict())
    big, small = ([p for p in dense.parameters() if (p.ndim >= 2) == chosen] for chosen in (True, False))
    optimizers = (
        optim.AdamW(groups, 0.01, weight_decay=0.0),
        optim.AdamW([{"params": big, "weight_decay": 0.3}, {"params": small}], 0.01, weight_decay=0.0),
    )
    for _ in range(4):
        for net, optimizer in zip((model, dense), optimizers, strict=True):
            steps(net, optimizer, images(), n=1)
        with torch.no_grad():
            for name, p in dense.named_parameters():
                p.copy_(torch.where(mask[name], p, before[name]))
    for name, p in weights(model).items():
        torch.testing.assert_close(p, dense.state_dict()[name], rtol=1e-12, atol=1e-12, msg=name)


def test_named_parameters_have_the_names_of_the_weights() -> None:
    model = tiny_bert()
    mask = random_mask(model)
    sparse = sparsify(model, mask)
    named = dict(sparse.named_parameters())
    assert list(named) == list(sparse.positions()) == [name for name in weights(model) if mask[name].any()]
    assert list(named.values()) == list(sparse.parameters())
    assert optim.AdamW(sparse.named_parameters()).state_dict()["param_groups"][0]["param_names"] == list(named)


def test_a_weight_that_is_kept_whole_and_assigned_anew_is_the_one_that_trains() -> None:
    model, other = conv_net(), conv_net()
    mask = random_mask(model)
    first, second = sparsify(model, mask), sparsify(other, mask)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    for net, sparse in ((model, first), (other, second)):
        steps(net, optim.SGD(sparse.parameters(), 0.1), images())
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def test_rules_by_name_such_as_transformers_decide_as_for_the_plain_model() -> None:
    """Its Trainer gives no decay to biases and what is in a LayerNorm."""
    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    model = tiny_bert()
    decayed = get_parameter_names(model, [nn.LayerNorm], forbidden)
    mask = mask_of(model, 0.5)
    sparse = sparsify(model, mask)
    found = {name.removesuffix("_kept.values") for name in get_parameter_names(model, [nn.LayerNorm], forbidden)}
    assert found & dict(sparse.named_parameters()).keys() == set(decayed) & dict(sparse.named_parameters()).keys()


def resumable() -> tuple[nn.Module, Sparse, optim.Optimizer]:
    """Build a model whose running statistics train, too, and draws no random numbers."""
    model = conv_net()
    model[3] = nn.Identity()  # type: ignore[index]
    sparse = sparsify(model, random_mask(model))
    return model, sparse, optim.AdamW(sparse.parameters(), 0.01, fused=True)


def run(model: nn.Module, optimizer: optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        inputs, labels = images(5 + number)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_loop_resumes_to_the_bit_from_a_state_as_small_as_what_trains() -> None:
    whole, sparse, optimizer = resumable()
    run(whole, optimizer, range(6))
    model, first, begun = resumable()
    run(model, begun, range(3))
    file = io.BytesIO()
    torch.save({"sparse": first.state_dict(), "optimizer": begun.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert sum(t.numel() for t in saved["sparse"]["values"].values()) == sum(p.numel() for p in sparse.parameters())
    model, second, resumed = resumable()
    second.load_state_dict(saved["sparse"])
    resumed.load_state_dict(saved["optimizer"])
    run(model, resumed, range(3, 6))
    torch.testing.assert_close(dict(model.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)
    base = resumable()[0]
    second.delta().apply_(base)  # its base is the model before training, not before resuming
    torch.testing.assert_close(dict(base.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)


def other_mask() -> Mask:
    return {name: kept.flatten().roll(1).view_as(kept) for name, kept in random_mask(conv_net()).items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(sparsify(conv_net(), other_mask()).state_dict()), "the state is of mask"),
        (lambda state: state.pop("mask"), "a state has mask, values, buffers, got buffers, values"),
        (lambda state: state["values"].pop("5.weight"), "5.weight is in the model only"),
        (lambda state: state["buffers"].update(more=torch.ones(1)), "more is in the state only"),
        (
            lambda state: state["values"].update({"5.weight": state["values"]["5.weight"].float()}),
            r"5.weight is float64 \(\d+,\) in the model, float32 \(\d+,\) in the state",
        ),
        (lambda state: state["buffers"].update({"1.running_var": torch.ones(1)}), r"1.running_var is float64 \(4,\)"),
    ],
)
def test_a_state_of_another_mask_or_model_is_refused_and_nothing_has_changed(
    change: Callable[[dict], object], message: str
) -> None:
    model, trained_model = conv_net(), conv_net()
    mask = random_mask(model)
    sparse, other = sparsify(model, mask), sparsify(trained_model, mask)
    steps(trained_model, optim.SGD(other.parameters(), 0.1), images())
    state = other.state_dict()
    change(state)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FishexpError, match=message):
        sparse.load_state_dict(state)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_a_digest_is_that_of_the_mask() -> None:
    """Not of values, types or gradient methods; another entry, or a name, is another mask."""
    model = conv_net()
    mask = random_mask(model)
    first = sparsify(model, mask).digest()
    assert sparsify(model.float(), mask, "dense").digest() == first
    assert sparsify(conv_net(), other_mask()).digest() != first
    shapes = [{name: torch.ones(2, dtype=torch.bool) for name in order} for order in ("ab", "ac")]
    digests = set()
    for mask in shapes:
        named = nn.Module()
        for name in mask:
            named.register_parameter(name, nn.Parameter(torch.zeros(2)))
        digests.add(sparsify(named, mask).digest())
    assert len(digests) == 2


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("made", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("net", NETS)
def test_the_kept_entries_of_a_copy(net: str, made: Callable[[Any], Any]) -> None:
    """With the base of its delta; copied together, model and kept entries are one another's."""
    build, data = NETS[net]
    base, model = build().eval(), build().eval()
    sparse = sparsify(model, random_mask(model))
    trained(model, list(sparse.parameters()), data())
    (together, others), alone = made((model, sparse)), made(model)
    for copied, found in ((together, others), (alone, Sparse.of(alone))):
        assert found._model is copied
        own = set(copied.parameters())
        assert all(p in own for p in found.parameters())
        assert not own & set(model.parameters())
        wanted = trained(copied, list(found.parameters()), data())
        tuned = copy.deepcopy(base)
        found.delta().apply_(tuned)
        torch.testing.assert_close(dict(tuned.state_dict()), dict(copied.state_dict()), rtol=0, atol=0)
        found.restore()
        torch.testing.assert_close(dict(copied.named_parameters()), wanted, rtol=0, atol=0)
    assert Sparse.of(model).digest() == sparse.digest()  # which trains on


def test_the_kept_entries_in_a_wrapped_model_and_where_there_are_none_or_several() -> None:
    model = conv_net()
    sparse = sparsify(model, random_mask(model))
    averaged = AveragedModel(model)
    assert Sparse.of(averaged)._model is averaged.module
    assert Sparse.of(nn.Sequential(model)).digest() == sparse.digest()
    for wrong, number in ((conv_net(), 0), (model[5], 0), (nn.Sequential(model, averaged), 2)):  # type: ignore[index]
        with pytest.raises(FishexpError, match=f"{number} sparsified models in this"):
            Sparse.of(wrong)


def test_public_names_are_listed_before_they_are_used() -> None:
    assert {*fishexp.__all__, "Sparse", "__version__"} <= set(dir(fishexp))
    assert fishexp.Sparse is Sparse
    assert all(getattr(fishexp, name) is not None for name in fishexp.__all__)
