"""A sparsified module is still that module: it does what the plain one does, or says in one line that it cannot."""

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from fishexp.errors import FishexpError
from fishexp.sparse import Sparse, sparsify
from fishexp.sparse.entry_memory import EntryMemory
from fishexp.sparse.parameter import weights
from tests.support.cases import conv_net, images, sentences, steps, tiny_bert
from tests.support.modules import mask_of, numbers, objective, tokens

RESTORE = r"call sparse\.restore\(\)"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def kept_gradients(model: nn.Module, sparse: Sparse, dense: nn.Module, use: Callable[[nn.Module], Tensor]) -> None:
    """Assert that both models give the same, and that the kept entries get the dense gradient."""
    torch.testing.assert_close(use(model), use(dense), rtol=1e-12, atol=1e-12)
    for one in (model, dense):
        use(one).tanh().square().sum().backward()
    gradients = {name: p.grad for name, p in dense.named_parameters()}
    for (name, at), values in zip(sparse.positions().items(), sparse.parameters(), strict=True):
        wanted, found = gradients[name], values.grad
        assert (wanted is None) == (found is None), name
        if wanted is not None and found is not None:
            torch.testing.assert_close(found.flatten(), wanted.take(at), rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda: nn.Linear(5, 3), numbers(4, 5)), (lambda: nn.Conv2d(2, 3, 3), numbers(1, 2, 5, 5)),
        (lambda: nn.Embedding(9, 4), tokens(3, 6)), (lambda: nn.Embedding(9, 4, sparse=True), tokens(3, 6)),
        (lambda: nn.Conv1d(2, 3, 3), numbers(1, 2, 5)), (lambda: nn.LayerNorm(5), numbers(4, 5)),
        (lambda: nn.EmbeddingBag(9, 4), tokens(3, 6)), (lambda: nn.PReLU(5), numbers(4, 5)),
        (lambda: nn.GRUCell(5, 4), numbers(4, 5)),
    ],
)  # fmt: skip
def test_the_input_may_be_named(build: Callable[[], nn.Module], inputs: Tensor) -> None:
    model = build().double()
    dense = copy.deepcopy(model)
    kept = sparsify(model, mask_of(model))
    if isinstance(dense, nn.Embedding):
        dense.sparse = False
    kept_gradients(model, kept, dense, lambda one: one(input=inputs))


def test_meta_has_shapes_gradients_and_no_kept_entries() -> None:
    model, table = conv_net(), nn.Embedding(4, 3)
    both = nn.ModuleList([model, table])
    sparsify(both, mask_of(both))
    both.to("meta")
    inputs = torch.ones(5, 2, 4, 4, device="meta", dtype=torch.float64, requires_grad=True)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            out = model(inputs)
            assert (out.shape, out.device.type) == ((5, 3), "meta")
            assert table(torch.zeros(2, 7, dtype=torch.long, device="meta")).shape == (2, 7, 3)
    out.sum().backward()
    assert inputs.grad is not None
    with pytest.raises(FishexpError, match="lost its kept entries on the meta device; call sparsify again"):
        model.to_empty(device="cpu")


def test_to_empty_and_loading_train_on() -> None:
    model, dense = conv_net(), conv_net()
    mask = mask_of(model)
    state = copy.deepcopy(model.state_dict())
    sparse, reference = sparsify(model, mask), sparsify(dense, mask)
    model.to_empty(device="cpu").load_state_dict(state)
    for one, kept in ((model, sparse), (dense, reference)):
        steps(one, torch.optim.SGD(kept.parameters(), 0.1), images())
    torch.testing.assert_close(dict(model.state_dict()), dict(dense.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("build", [net, conv_net])
def test_assigned_data_is_the_weights(build: Callable[[], nn.Sequential], grad: bool) -> None:
    model, dense = build().eval(), build().eval()
    sparse = sparsify(model, mask_of(model))
    with torch.set_grad_enabled(grad):
        for one in (model, dense):
            for layer in one:
                if isinstance(layer, nn.Linear):
                    layer.weight.data = numbers(*layer.weight.shape)
                    layer.weight.data.mul_(2)
                    layer.bias.data = layer.bias.data + 1
    inputs = numbers(3, 4) if build is net else images()[0]
    assert torch.equal(model.state_dict()[f"{len(model) - 1}.weight"], dense.state_dict()[f"{len(model) - 1}.weight"])
    kept_gradients(model, sparse, dense, lambda one: one(inputs))


@pytest.mark.parametrize("grad", [True, False])
def test_data_of_another_shape_is_refused(grad: bool) -> None:
    model, inputs = net(), numbers(3, 4)
    sparsify(model, mask_of(model))

    def resize() -> None:
        model[0].weight.data = torch.zeros(7, 4).double()  # type: ignore[union-attr]
        model(inputs)

    with torch.set_grad_enabled(grad), pytest.raises(FishexpError, match=r"0.weight is partly kept.*" + RESTORE):
        resize()


def bert(kind: Any = BertForMaskedLM) -> Any:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config.num_labels = 3
    return kind(config).double().eval()


def test_resized_token_embeddings_are_refused_and_nothing_has_changed() -> None:
    model = bert()
    sparsify(model, mask_of(model))
    ids = tokens(3, 6)
    before = model(ids).logits
    with pytest.raises(FishexpError, match=r"word_embeddings.weight is partly kept.*" + RESTORE):
        model.resize_token_embeddings(30, mean_resizing=False)
    assert model.get_input_embeddings().num_embeddings == 20
    assert torch.equal(model(ids).logits, before)


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def no_grad(use: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return torch.no_grad()(use)


def forward_of(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, x: torch.func.functional_call(model, parameters, x).sum()


def detached(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


X = numbers(3, 4)
REFUSED: dict[str, Callable[[Any], Any]] = {
    "prune": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "prune, no grad": no_grad(lambda m: prune.random_unstructured(m[0], "bias", 0.5)),
    "parametrize": lambda m: parametrize.register_parametrization(m[0], "weight", Double()),
    "parametrize, no grad": no_grad(lambda m: parametrize.register_parametrization(m[0], "weight", Double())),
    "weight norm": lambda m: parametrizations.weight_norm(m[0]),
    "orthogonal": lambda m: parametrizations.orthogonal(m[0]),
    "old spectral norm": lambda m: spectral_norm(m[0]),
    "old weight norm": lambda m: weight_norm(m[0]),
    "delete": lambda m: delattr(m[0], "weight"),
    "jit.script": lambda m: torch.jit.script(m),
    "jit.trace": lambda m: torch.jit.trace(m, X),
    "jit.trace, no grad": no_grad(lambda m: torch.jit.trace(m, X)),
    "export": lambda m: torch.export.export(m, (X,), strict=False),
    "export, no grad": no_grad(lambda m: torch.export.export(m, (X,), strict=False)),
    "onnx": lambda m: torch.onnx.export(m, (X,), "/dev/null", dynamo=False),
    "quantize_dynamic": lambda m: quantize_dynamic(m, {nn.Linear}),
    "vmap": lambda m: torch.func.vmap(m)(X),
    "vmap, no grad": no_grad(lambda m: torch.func.vmap(m)(X)),
    "grad": lambda m: torch.func.grad(forward_of(m))(detached(m), X),
    "grads of examples": lambda m: torch.func.vmap(torch.func.grad(forward_of(m)), (None, 0))(detached(m), X),
    "jacrev": lambda m: torch.func.jacrev(m)(X),
    "jvp": lambda m: torch.func.jvp(m, (X,), (X,)),
    "functional_call": lambda m: forward_of(m)(detached(m), X),
    "functional_call, no grad": no_grad(lambda m: forward_of(m)(detached(m), X)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_what_would_pass_kept_entries_by_is_refused_and_nothing_has_changed(what: str) -> None:
    model, dense = net(), net()
    sparse, before = sparsify(model, mask_of(model, 0.5)), copy.deepcopy(model.state_dict())
    with pytest.raises(FishexpError, match=RESTORE) as error:
        REFUSED[what](model)
    assert "\n" not in str(error.value)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    kept_gradients(model, sparse, dense, lambda one: one(X))
    if what not in ("quantize_dynamic", "onnx"):  # which take no float64, and need another package
        sparse.restore()
        REFUSED[what](model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_a_full_graph_is_refused_and_nothing_has_changed(grad: bool) -> None:
    model, dense = net(), net()
    sparse = sparsify(model, mask_of(model, 0.5))
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, FishexpError), match=r"aten\.equal|cannot follow"):
        compiled(X)
    kept_gradients(model, sparse, dense, lambda one: one(X))


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_weight_is_refused_and_one_on_its_kept_entries_called(register: str) -> None:
    model = net()
    sparse = sparsify(model, mask_of(model))
    with pytest.raises(FishexpError, match=r"a hook on 0.weight, which is partly kept, would not be called again"):
        getattr(model[0].weight, register)(print)
    seen = []
    next(sparse.parameters()).register_hook(lambda gradient: seen.append(gradient.shape))
    objective(model, X).backward()
    assert seen == [next(sparse.parameters()).shape]


def test_kept_entries_replaced_for_a_call_get_the_gradients() -> None:
    model, dense = net(), net()
    sparse = sparsify(model, mask_of(model))
    values = {
        name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if name.endswith("values")
    }
    torch.func.functional_call(model, values, X).tanh().square().sum().backward()
    objective(dense, X).backward()
    for (name, at), found in zip(sparse.positions().items(), values.values(), strict=True):
        gradient = dense.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(found.grad, gradient.take(at), rtol=1e-12, atol=1e-12)
    kept_gradients(model, sparse, net(), lambda one: one(X))


def test_names_are_the_models_and_those_of_the_kept_entries() -> None:
    """Also where each tensor is listed once for each name."""
    model, own = net(), list(dict(net().named_parameters()))
    sparsify(model, {name: torch.arange(p.numel()).view(p.shape) > 0 for name, p in model.named_parameters()})
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert sorted(names) == sorted([*own, *(f"{name}_kept.values" for name in own)])
    assert list(model.state_dict()) == own


def test_marks_on_a_parameter_stay() -> None:
    model = net()
    model[0].weight.no_decay = True  # type: ignore[union-attr]
    sparsify(model, mask_of(model))
    assert weights(model)["0.weight"].no_decay  # type: ignore[attr-defined]


@dataclasses.dataclass
class Outputs:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Forms(nn.Module):
    """Take and return values of many forms."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, pair: tuple[Tensor, dict[str, Any]], flag: bool = False, extra: Tensor | None = None) -> Any:
        out = self.net(pair[0]) + self.net(pair[1]["x"]) + (0 if extra is None else extra)
        return Outputs(out, (out,)) if flag else {"out": (out, None)}


def test_inputs_and_outputs_of_any_form() -> None:
    torch.manual_seed(0)
    model = Forms()
    dense = copy.deepcopy(model)
    sparse = sparsify(model, mask_of(model))
    kept_gradients(model, sparse, dense, lambda one: one((X, {"x": 2 * X, "n": None}))["out"][0])
    kept_gradients(model, sparse, dense, lambda one: one((X, {"x": X}), True, extra=X[:, :3]).hidden[0])


@pytest.mark.parametrize("return_dict", [True, False])
def test_the_form_of_hugging_face_with_labels_inside(return_dict: bool) -> None:
    model = bert(BertForSequenceClassification)
    dense = copy.deepcopy(model)
    sparse = sparsify(model, mask_of(model))
    inputs, labels = sentences()
    batch = {**inputs, "labels": labels, "token_type_ids": None, "output_hidden_states": True}
    kept_gradients(model, sparse, dense, lambda one: one(**batch, return_dict=return_dict)[0])


def test_packed_sequences() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(4, 3, batch_first=True).double()
    dense = copy.deepcopy(model)
    sparse = sparsify(model, mask_of(model))
    packed = pack_padded_sequence(numbers(3, 5, 4), torch.tensor([5, 3, 1]), batch_first=True)
    kept_gradients(model, sparse, dense, lambda one: one(packed)[0].data)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_is_the_plain_models_and_looks_at_no_weight(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, after steps too, and under autocast."""
    model, dense = tiny_bert().eval(), tiny_bert().eval()
    sparse = sparsify(model, mask_of(model))
    inputs, labels = sentences()
    optimiser = torch.optim.AdamW(sparse.parameters(), 0.01, fused=True)
    for _ in range(2):
        steps(model, optimiser, (inputs, labels), n=1)
        dense.load_state_dict(model.state_dict())
        with mode():
            assert torch.equal(model(**inputs).logits, dense(**inputs).logits)
            with monkeypatch.context() as context:
                context.setattr(EntryMemory, "read", lambda self: pytest.fail("looked at a weight"))
                model(**inputs)
    model.float()
    dense.float()
    with mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(**inputs).logits, dense(**inputs).logits)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_inference_sees_each_step() -> None:
    model, dense = net(), net()
    sparse = sparsify(model, mask_of(model))
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager")
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(compiled(X), dense(X), rtol=1e-12, atol=1e-12)
            next(sparse.parameters()).data.add_(1)
            dense[0].weight.view(-1)[sparse.positions()["0.weight"]] += 1  # type: ignore[union-attr,operator]


@pytest.mark.alone
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_is_at_most_3_percent_dearer_than_the_plain_models(mode: Any) -> None:
    """A BERT of minilm's shape with 0.5 % kept, 16 sentences of 64 tokens: least times of one thread.

    What is added does not depend on the input: it is measured with one token, beside which other differences are small.
    """
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    dense = BertModel(config).eval()
    model = copy.deepcopy(dense)
    sparsify(model, mask_of(model, 0.005))
    threads = torch.get_num_threads()

    def seconds(one: nn.Module, inputs: Tensor) -> float:
        start = time.process_time()
        one(inputs)
        return time.process_time() - start

    token, batch = torch.ones(1, 1, dtype=torch.long), torch.randint(1000, (16, 64))
    torch.set_num_threads(1)
    try:
        with mode():
            added = [(seconds(dense, token), seconds(model, token)) for _ in range(51)]
            whole = min(seconds(dense, batch) for _ in range(5))
    finally:
        torch.set_num_threads(threads)
    plain, sparse = map(min, zip(*added, strict=True))
    assert sparse - plain <= 0.03 * whole


@pytest.mark.parametrize("how", ["values", "in place", "data", "assigned data", "loaded"])
def test_inference_sees_whatever_was_written(how: str) -> None:
    model, dense = net(), net()
    sparse = sparsify(model, mask_of(model))
    before = model(X).detach()
    with torch.no_grad():
        model(X)
        if how == "values":
            next(sparse.parameters()).data.add_(1)
            dense[0].weight.view(-1)[sparse.positions()["0.weight"]] += 1  # type: ignore[union-attr,operator]
        for one in (model, dense):
            if how == "in place":
                one[0].weight.add_(1)  # type: ignore[union-attr,operator]
            elif how == "data":
                one[0].weight.data.add_(1)  # type: ignore[union-attr,operator]
            elif how == "assigned data":
                one[0].weight.data = torch.ones(6, 4).double()  # type: ignore[union-attr]
            elif how == "loaded":
                one.load_state_dict({name: value + 1 for name, value in one.state_dict().items()})
        assert not torch.equal(model(X), before)
        assert torch.equal(model(X), dense(X))
    kept_gradients(model, sparse, dense, lambda one: one(X))


def test_a_quantised_or_distributed_tensor_is_refused() -> None:
    class Other(Tensor):
        pass

    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(torch.zeros(4, 4).as_subclass(Other))
    with pytest.raises(FishexpError, match="weight is a Other; only plain tensors can be kept in part"):
        sparsify(model, mask_of(nn.Linear(4, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Linear(4, 4)
        sparsify(model, mask_of(model))
        model.weight = nn.Parameter(torch.zeros(4, 4).as_subclass(Other))
    with pytest.raises(FishexpError, match="weight is partly kept and was replaced by a Other"):
        model(torch.ones(1, 4))
