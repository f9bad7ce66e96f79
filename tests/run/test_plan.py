"""`plan=true`: what the runs of a command would train, take and leave, told without their data, and true of them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra._internal.utils import get_args_parser
from torch import Tensor, nn

from fishexp.masks import top_k
from fishexp.models import resnet
from fishexp.run import plan
from fishexp.run.config import read_command, register_resolvers
from fishexp.run.forecast import Forecast, Outlines, forecast
from fishexp.run.identity import run_id
from fishexp.run.settings import GROUPS, Config, component, component_module, options_of
from fishexp.run.yamls import CONF
from fishexp.sparse import Sparse, sparsify
from fishexp.sparse.parameter import INDICES, SparseParameter, weights
from fishexp.training.trainer import Trainer
from tests.conftest import TINY
from tests.support.cli import QUICK, fishexp, records
from tests.support.glue_files import LAYOUTS, write_task

OPTIONS = {group: sorted(file.stem for file in Path(CONF, group).glob("*.yaml")) for group in GROUPS}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_resolvers()
    monkeypatch.chdir(tmp_path)


def composed(*overrides: str) -> Config:
    """Compose the configuration of a run."""
    (config,) = read_command(get_args_parser().parse_args(overrides)).configs
    return config


def foretold(*overrides: str) -> Forecast:
    return forecast(composed(*overrides), Outlines())


def table(out: str) -> list[dict[str, str]]:
    """Read the lines of a table by where the cells of its header stand; all but the first column end there."""
    header, *lines = out.splitlines()
    heads = re.split(r" {2,}", header)
    rows = [re.split(r" {2,}", line) for line in lines]
    return [dict(zip(heads, row, strict=True)) for row in rows if len(row) == len(heads)]


def test_it_runs_nothing_and_writes_nothing(tmp_path: Path) -> None:
    result = fishexp("plan=true")
    assert (result.status, list(tmp_path.iterdir())) == (0, [])
    (row,) = table(result.out)
    assert (row["run"], row["weights"], row["k"]) == ("digits/resnet8/fish-0.005", "308,074", "1,540")
    assert (row["head (of k)"], row["steps"], row["time a run"]) == ("1,290 (84%)", "220", "not measured")
    assert "time not measured: outputs/records.jsonl has no finished run of these settings" in result.out


def test_a_row_for_each_setting_of_a_sweep_whatever_the_seed() -> None:
    rows = table(fishexp("-m", "method=random,full", "keep=0.5%,2%", "seed=0-2", "plan=true").out)
    assert [(row["run"], row["runs"]) for row in rows] == [
        ("method=random keep=0.005", "3"), ("method=random keep=0.02", "3"), ("method=full keep=0.005", "3"),
    ]  # fmt: skip
    assert [row["k"] for row in rows] == ["1,540", "6,161", "308,074"]


def test_a_keep_that_does_not_pay_for_the_head_gets_the_line_that_a_run_gets() -> None:
    planned = fishexp("keep=0.001", "plan=true")
    assert planned.mistake() == fishexp("keep=0.001", *QUICK).mistake()
    assert planned.out == ""
    sweep = fishexp("-m", "keep=0.001,0.01", "plan=true")
    assert sweep.mistake() == f"keep=0.001: {planned.mistake()}"
    assert [row["run"] for row in table(sweep.out)] == ["keep=0.01"]
    assert "\nkeep=0.001  refused\n" in sweep.out


def test_examples_that_are_all_held_out_are_no_matter_of_workers() -> None:
    line = fishexp("best=true", "data.train_limit=1", "plan=true").mistake()
    assert line == "regime.validation_fraction=0.1 leaves nothing to train on: there are 1 training examples"


def test_a_run_that_a_sweep_names_twice_is_counted_once() -> None:
    sweep = fishexp("-m", "method=random,full", "keep=0.005,0.01", "seed=0-1", "plan=true").out
    assert [row["runs"] for row in table(sweep)] == ["2", "2", "2"]
    assert "\n6 runs; " in sweep


def test_time_is_that_of_finished_runs_with_other_seeds_and_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fishexp("-m", *QUICK, "seed=0,1")
    lines = [record | {"seconds": {"train": 100.0 * record["seed"] + 100}} for record in records(tmp_path)]
    Path("outputs/records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sweep = fishexp("-m", *QUICK, "seed=0-3", "lr=0.1,0.3", "keep=0.005,0.01", "plan=true")
    assert [row["time a run"] for row in table(sweep.out)] == ["2 min", "not measured"] * 2  # 150 s
    assert "16 runs: 20 min one after another, by 4 finished of these settings" in sweep.out
    assert "and 8 runs of which none is" in sweep.out
    again = ("-m", *QUICK, "seed=0-3", "plan=true")
    assert "4 runs, 2 of them done already: 5 min" in fishexp(*again, "resume=true").out
    monkeypatch.setattr(plan, "changes_since_done", lambda record, config, folder: ["commit"] * record["seed"])
    assert "4 runs, 1 of them done already: 8 min" in fishexp(*again, "resume=strict").out
    assert len(records(tmp_path)) == 2


def test_it_is_no_part_of_a_runs_identity() -> None:
    config = composed()
    assert run_id(config | {"plan": True}) == run_id(config)


NEEDS: dict[str, Sequence[str]] = {
    "data=csv": ("train=own.csv",), "data=imagefolder": ("root=own", "model.arch=resnet18"),
    "data=hf": ("data.path=stanfordnlp/imdb",), "data=glue": ("data.root=null", "model=minilm"),
    "model=auto": ("data=glue", "model.path=tiny"), "model=bert_base": ("data=glue", "model.path=tiny"),
    "model=bert_large": ("data=glue", "model.path=tiny"), "model=minilm": ("data=glue",),
    "model=torchvision": ("data=cifar10",), "method=lora": ("data=glue", "model=minilm"),
}  # fmt: skip


@pytest.mark.parametrize("choice", [f"{group}={name}" for group, names in OPTIONS.items() for name in names])
def test_every_component_has_a_plan(choice: str, bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FISHEXP_DATA", raising=False)
    Path("own.csv").write_text("text,label\na cat,yes\n")
    for image in ("own/cat/1.png", "own/cat/2.png", "own/dog/1.png"):
        Path(image).parent.mkdir(parents=True, exist_ok=True)
        Path(image).touch()
    found = foretold(choice, *NEEDS.get(choice, ()), "keep=0.5")
    assert None not in (found.weights, found.trains, found.head, found.adds, found.dense_adds, found.delta.bytes)
    assert (found.steps is None) == (choice in ("data=csv", "data=hf"))
    assert (found.merge is None) == (choice != "regime=distributed")


def test_what_only_data_tell_is_a_question_mark(bert_folder: Path) -> None:
    Path("own.csv").write_text("text,label\na cat,yes\n")
    result = fishexp("data=csv", "train=own.csv", "plan=true")
    (row,) = table(result.out)
    assert (row["weights"], row["steps"]) == ("22,713,986", "?")
    assert "data=csv: classes and examples are counted when it is read; 2 classes are assumed" in result.out
    number = fishexp("data=csv", "train=own.csv", "kind=number", "plan=true").out
    assert "data=csv: examples are counted when it is read\n" in number
    assert (
        fishexp("data=csv", "train=none.csv", "plan=true").mistake() == "none.csv is missing; name a file of examples"
    )
    # a classifier that is there already says how many classes there are
    (bert_folder / "config.json").write_text(
        json.dumps(
            TINY | {"architectures": ["BertForSequenceClassification"], "id2label": {i: f"{i}" for i in range(5)}}
        )
    )
    assert (
        "; 5 classes are assumed" in fishexp("data=csv", "train=own.csv", "keep=1", "model.path=tiny", "plan=true").out
    )


def test_components_of_ones_own_are_foretold_as_far_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for group, name, text in (
        ("data", "planless_data", "def load(): ..."),
        ("method", "planless_mask", "def mask(problem): ..."),
        ("model", "planless_net", _NET),
    ):
        Path("conf", group).mkdir(parents=True)
        Path("conf", group, f"{name}.yaml").write_text(f"name: {name}\n")
        Path(f"{name}.py").write_text(text)
    config = ("--config-dir", "conf", "plan=true")
    data = fishexp(*config, "data=planless_data")
    (row,) = table(data.out)
    assert [row[column] for column in ("weights", "k", "delta", "steps")] == ["?"] * 4
    assert "data=planless_data: its module has no function outline" in data.out
    mask = fishexp(*config, "method=planless_mask")
    (row,) = table(mask.out)
    assert [row[column] for column in ("weights", "k", "head (of k)", "to train k")] == ["308,074", "?", "1,290", "?"]
    (row,) = table(fishexp(*config, "model=planless_net", "keep=0.99").out)
    assert (row["weights"], row["k"]) == ("650", "643")


_NET = """
from torch import nn
from fishexp.models import Model
def build(classes, channels):
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, classes)), ("1.weight",), lambda *_, **__: None)
"""


@pytest.mark.parametrize(
    "choices",
    [
        ("data=digits", "model=resnet8"),
        ("data=digits", "model=resnet9"),
        ("data=glue", "task=rte", "root=.", "model=minilm", "model.path=tiny", "pretrained=false", "max_length=9"),
        ("data=glue", "task=stsb", "root=.", "model=auto", "model.path=tiny", "pretrained=false", "max_length=9"),
    ],
)
def test_outlines_are_those_of_what_is_loaded(choices: Sequence[str], bert_folder: Path) -> None:
    for task in ("rte", "stsb"):
        write_task(Path(), LAYOUTS[task])
    config = composed(*choices)
    data = component("data", config["data"]).function()
    model = component("model", config["model"]).function(data.classes, data.channels)
    outline, network = (component_module(group, config[group])[0].outline for group in ("data", "model"))
    about = outline(**{key: config["data"][key] for key in options_of(outline)})
    assert about == (data.classes, data.channels, len(data.train))
    empty, head = network(data.classes, data.channels, **{key: config["model"][key] for key in options_of(network)})
    assert head == model.head
    shapes = {name: p.shape for name, p in model.network.state_dict().items()}
    assert {name: p.shape for name, p in empty.state_dict().items()} == shapes
    assert all(p.is_meta for p in empty.parameters())


def storage(tensors: list[Tensor]) -> int:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["random", "bitfit", "full"])
def test_memory_is_what_training_takes(method: str, optimiser: str) -> None:
    """Of a ResNet-8 after a step: all that is there beside the weights that were there before."""
    found = foretold(f"method={method}", f"optimiser={optimiser}", "keep=0.05")
    model = resnet.build(10, 1, layers=8, path=None)
    network, own = model.network, weights(model.network)
    if method == "random":
        generator = torch.Generator().manual_seed(0)
        scores = {name: torch.rand(p.shape, generator=generator) for name, p in own.items()}
        mask = top_k(scores, 0.05, model.head)
    else:
        kept = {name for name in own if method == "full" or name.endswith("bias") or name in model.head}
        mask = {name: torch.full_like(p, name in kept, dtype=torch.bool) for name, p in own.items()}
    sparse = sparsify(network, mask)
    parameters = list(sparse.parameters())
    make = {"sgd": lambda: torch.optim.SGD(parameters, momentum=0.9), "adamw": lambda: torch.optim.AdamW(parameters)}
    step = make[optimiser]()
    network(torch.randn(8, 1, 8, 8)).square().mean().backward()
    step.step()
    assert sum(int(entries.sum()) for entries in mask.values()) == found.trains
    assert found.adds == pytest.approx(storage(_state(network, sparse, step)), rel=0.12)
    plain = resnet.build(10, 1, layers=8, path=None).network
    assert found.dense_adds == sum(p.nbytes for p in plain.parameters()) * {"sgd": 2, "adamw": 3}[optimiser]


def _state(network: nn.Module, sparse: Sparse, step: torch.optim.Optimizer) -> list[Tensor]:
    own = {id(p) for p in weights(network).values()}
    partly = [m for m in network.modules() if isinstance(m, SparseParameter)]
    indices = [getattr(m, name, None) for m in partly for name in INDICES]
    state = [p for p in network.parameters() if id(p) not in own]
    state += [t for t in indices if t is not None] + [m.synced for m in partly]
    state += [p.grad for p in network.parameters() if p.grad is not None]
    state += [t for moments in step.state.values() for name, t in moments.items() if name != "step" and t is not None]
    buffers = {name for name, _ in network.named_buffers()}
    return state + [original for name, original in sparse._state.originals.items() if name not in buffers]


def test_a_run_leaves_and_takes_what_was_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    begin = Trainer.begin_next_epoch

    def noted(trainer: Trainer) -> None:
        steps.append(trainer.progress.steps)
        begin(trainer)

    monkeypatch.setattr(Trainer, "begin_next_epoch", noted)
    few = ("regime.epochs=1", "data.train_limit=200", "data.valid_limit=64")
    sweep = ("-m", "method=random,bitfit", "keep=0.02", *few)
    planned = {row["run"]: row for row in table(fishexp(*sweep, "plan=true").out)}
    fishexp(*sweep)
    for record in records(tmp_path):
        row = planned[f"method={record['method']}"]
        assert row["k"] == f"{record['kept']:,}"
        assert row["weights"] == f"{record['total']:,}"
        size, unit = row["delta"].strip("~").split()
        assert float(size) * {"kB": 1e3}[unit] == pytest.approx(record["bytes"]["delta"], rel=0.25)
    assert [f"{count}" for count in steps] == [row["steps"] for row in planned.values()] == ["3", "3"]


def test_a_merge_costs_what_the_run_says_before_it_starts() -> None:
    small = ("regime=distributed", "regime.backend=simulated", "regime.epochs=1", "data.train_limit=130")
    for more in ((), ("regime.masks=disjoint",), ("regime.wire=bf16",), ("decay=all",)):
        run = fishexp(*small, "method=random", "data.valid_limit=32", *more).out
        said = next(line for line in run.splitlines() if line.endswith("<- this run")).split()
        found = foretold(*small, "method=random", *more)
        assert found.merge is not None
        assert float(said[1]) == pytest.approx(found.merge.bytes / 1e6, rel=0.01)
        assert found.steps == 1  # 65 examples each, in batches of 64, without the last
