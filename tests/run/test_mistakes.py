"""Each mistake of a user gets a clear line and exit status 2, no traceback, before anything is trained."""

import os
import sys
from pathlib import Path

import pytest

from fishexp.run.yamls import CONF
from tests.support.cli import QUICK, fishexp, records

METHODS = sorted(file.stem for file in Path(CONF, "method").glob("*.yaml"))

COMPOSITION = {
    "model=resnet50": "model=resnet50: no such model; did you mean resnet9? there are: auto, bert_base, bert_large, "
    "minilm, resnet18, resnet34, resnet8, resnet9, torchvision; any other: model=torchvision model.arch=..., "
    "model=auto model.path=...",
    "method=fsh": f"method=fsh: no such method; did you mean fish? there are: {', '.join(METHODS)}",
    "data=imagenet": "data=imagenet: no such data; did you mean imagefolder? there are: cifar10, csv, digits, glue, "
    "hf, imagefolder",
    "regime=federal": "regime=federal: no such regime; there are: checkpointing, distributed, transfer",
    "data=glue/rte": "data=glue/rte: no such data; did you mean glue?",
    "metod=fish": "unknown key metod; did you mean method?",
    "+sead=1": "unknown key sead; did you mean seed?",
    "method.smaples=3": "unknown key method.smaples; did you mean method.samples?",
    "+method.smaples=3": "unknown key method.smaples; did you mean method.samples?",
    "++method.smaples=3": "unknown key method.smaples; did you mean method.samples?",
    "regime.lr.peak=3": "unknown key regime.lr.peak; did you mean regime.lr?",
    "model@other=resnet8": "unknown key model@other; --help shows all",
    "=3": "=3 is not key=value: the key is missing",
    "outputs=a=b": "outputs=a=b: a value with = is to be quoted: 'outputs=\"a=b\"'",
    "outputs=a(b)": "outputs=a(b): a value with ( is to be quoted: 'outputs=\"a(b)\"'",
    "outputs=a#b": "outputs=a#b: a value with # is to be quoted: 'outputs=\"a#b\"'",
    "outputs=a~b": "outputs=a~b: a value with ~ is to be quoted: 'outputs=\"a~b\"'",
    "outputs=~/runs": "outputs=~/runs: your shell left the ~ as it is; write outputs=$HOME/runs",
    "outputs=实验": "outputs=实验: a value with 实 is to be quoted: 'outputs=\"实验\"'",
    "outputs=a,b": "outputs=a,b is 2 values: add -m to carry out a run for each, as in -m outputs=a,b; if it is one "
    "value, quote it: 'outputs=\"a,b\"'",
    "outputs=[a]": "outputs=['a'] should be a valid string; if it is one, quote it: 'outputs=\"[a]\"'",
    "outputs=3": "outputs=3 should be a valid string; if it is one, quote it: 'outputs=\"3\"'",
    "outputs=": "outputs= is empty, as with a variable that is not set; give a path, or leave it away",
    "records=": "records= is empty, as with a variable that is not set; give a path, or leave it away",
    "data.name=5": "data.name=5 should be a text; quote it: 'data.name=\"5\"'",
    "data.name=": "data.name= is a part of the run's folder, and does not begin with . or /",
    "data.name=..": "data.name=.. is a part of the run's folder, and does not begin with . or /",
    "seed=0,1,2": "seed=0,1,2 is 3 values: add -m to carry out a run for each, as in -m seed=0,1,2",
    "seed=1-5": "seed=1-5 is 5 values: add -m to carry out a run for each, as in -m seed=1-5",
    "seed=5-1": "seed=5-1 counts down; write seed=1-5",
    "seed=interval(0,5)": "seed=interval(0,5): a sweep lists its values; write seed=range(0,5) or seed=0,1,2",
    "seed=range(3,3)": "seed=range(3,3) stands for no value at all",
    "method=glob(*)": f"method=glob(*) is {len(METHODS)} values: add -m",
    "method=glob(x*)": f"method=glob(x*) stands for no value at all; there are: {', '.join(METHODS)}",
    "hydra.mode=MULTIRUN": "hydra.mode=MULTIRUN: write -m for a sweep, and nothing for a single run",
    "hydra/sweeper=basic": "hydra/sweeper=basic: a sweep is every combination of the values",
    "hydra.rundir=a": "unknown key hydra.rundir; --cfg hydra shows all",
    "lr": "lr is not key=value",
    "epoch=3": "unknown key epoch; did you mean epochs? --help shows all",
    "workers=2": "unknown key workers: regime=transfer does not have it, but regime=distributed",
    "data.lr=2": "unknown key data.lr; did you mean regime.lr?",
    "train.lr=2": "unknown key train.lr; did you mean regime.lr?",
    "gpu=all": "gpu=all: gpu takes numbers, as nvidia-smi shows them: gpu=0, gpu=0,1; or device=cpu",
    "--config-name=mine": "--config-name mine: there is no mine.yaml in conf/, nor in a folder of --config-dir",
    "--config-path=mine": "--config-path would replace conf/; --config-dir DIR adds to it",
    "--resolve": "--resolve and --package say how --cfg prints; add --cfg job",
    "--shell-completion": "--shell-completion takes install=SHELL or uninstall=SHELL: bash, fish or zsh",
    "--experimental-rerun=x": "--experimental-rerun is not supported",
    "seed=[1": "seed=[1: a value with [ is to be quoted: 'seed=\"[1\"'",
    "keep=0": "keep is a fraction in (0, 1], got 0",
    "keep=1.5": "keep is a fraction in (0, 1], got 1.5; did you mean 0.015?",
    "keep=-1": "keep is a fraction in (0, 1], got -1",
    "keep=nan": "keep=nan should be a finite number",
    "keep=abc": "keep=abc should be a valid number",
    "keep=null": "method=fish needs keep, the fraction of all weights that may move",
    "seed=-1": "seed=-1 should be greater than or equal to 0",
    "seed=1.5": "seed=1.5 should be a valid integer",
    "threads=1099511627776": f"this machine has {os.cpu_count()} cores; give at most {64 * (os.cpu_count() or 1)}",
    f"threads={64 * (os.cpu_count() or 1) + 1}": f"this machine has {os.cpu_count()} cores; give at most",
    "threads=0": "threads=0 should be greater than or equal to 1",
    "device=gpu": "device=gpu should be 'auto', 'cpu', 'cuda' or 'mps'",
    "precision=fp16": "precision=fp16 should be 'fp32' or 'bf16'",
    "wandb=on": "wandb=on should be 'disabled', 'offline' or 'online'",
    "regime.epochs=${epoch}": "regime.epochs: Interpolation key 'epoch' not found",
    "--keep=3": "unrecognized arguments: --keep=3; no dashes stand before a key: keep=3",
    "--keep": "unrecognized arguments: --keep; --help shows what there is",
    "keep=0.1 seed=3": "keep=0.1 seed=3: these are several settings in one argument; no quotes stand around them",
    "+lr=3": "regime.lr is there already; leave the + away",
    "~lr": "~lr: every key has a value; give it another",
    "method=[fish]": "method=[fish]: method is one name, such as method=fish",
    "method={name:fish}": "method={name:fish}: method is one name, such as method=fish",
    "data=cifar10,digits": "data=cifar10,digits is 2 values: add -m to carry out a run for each, as in -m data=",
    "name=x": "unknown key name; --help shows all",
    "SEED=1": "unknown key SEED; did you mean seed? --help shows all",
    "device=cuda:0": "device=cuda:0 should be 'auto', 'cpu', 'cuda' or 'mps'; gpu=0 is cuda on that GPU",
    "outputs=${oc.env:NOPE}": "Environment variable 'NOPE' not found",
    "--config-dir=nowhere": "--config-dir nowhere is not a folder",
}


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FISHEXP_DATA", raising=False)


@pytest.mark.parametrize("argument", COMPOSITION)
def test_a_run_that_cannot_be_composed_is_refused(argument: str, tmp_path: Path) -> None:
    assert COMPOSITION[argument] in fishexp(argument).mistake()
    assert not (tmp_path / "outputs").exists()


TOGETHER = {
    ("-m", "seed=interval(0,5)"): "seed=interval(0,5): a sweep lists its values",
    ("-m", "hydra.job.chdir=true,false"): "hydra.job.chdir=true,false: a sweep is over settings of runs",
    ("-m", "method=random,full", "samples=3"): "unknown key samples: method=full does not have it, but "
    "method=activation, method=fish, method=gradient, method=relative and method=snip",
    (
        "-m",
        "method=random,full",
        "method.samples=3",
    ): "unknown key method.samples: method=full does not have it, but method=",
    ("-m", "hydra/launcher=slurm"): "hydra/launcher=slurm: no such hydra/launcher; ",
    (
        "-m",
        "hydra/launcher=submitit_slurm",
        "seed=0",
    ): "hydra/launcher=submitit_slurm begins a job again when its time is "
    "up; add resume=true, so that its runs go on instead",
    ("--cfg", "hydra", "-m"): "--multirun and --cfg do not go together; leave one away",
    ("--info", "--run"): "--run and --info do not go together; leave one away",
    ("hydra.run.dir=${nope}",): "hydra.run.dir: Interpolation key 'nope' not found",
    ("gpu=0", "device=cpu"): "gpu=0 stands for device=cuda on that GPU; leave device=cpu away, or gpu=",
}


@pytest.mark.parametrize("arguments", TOGETHER, ids=" ".join)
def test_arguments_that_do_not_go_together(arguments: tuple[str, ...]) -> None:
    assert TOGETHER[arguments] in fishexp(*arguments).mistake()


LAUNCHED = {
    (
        "RANK=0",
        "WORLD_SIZE=2",
    ): "RANK and WORLD_SIZE are set, as by torchrun, but LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR "
    "MASTER_PORT not: start workers with torchrun, or unset RANK and WORLD_SIZE for a run of its own",
    (
        "RANK=0",
        "WORLD_SIZE=2",
        "LOCAL_RANK=a",
        "LOCAL_WORLD_SIZE=1",
        "MASTER_ADDR=a",
        "MASTER_PORT=1",
    ): "LOCAL_RANK=a in the environment should be a number, as torchrun sets it",
    ("LOCAL_RANK=3", "RANK=3"): "method=fsh: no such method",
}


@pytest.mark.parametrize("variables", LAUNCHED, ids=" ".join)
def test_variables_that_another_launcher_left(variables: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in variables:
        monkeypatch.setenv(*variable.split("="))
    assert LAUNCHED[variables] in fishexp("regime=distributed", "method=fsh").mistake()


OPTIONS = {
    ("method.samples=abc",): "method.samples=abc should be a valid integer",
    ("method.samples=0",): "method.samples=0 should be greater than or equal to 1",
    ("method.labels=true",): "method.labels=True should be 'true_label', 'expected' or 'sampled'",
    ("method=magnitude", "method.order=big"): "method.order=big should be 'largest' or 'smallest'",
    ("method.unit=rows",): "method.unit=rows should be 'entry', 'row', 'column' or 'channel'",
    ("method=random", "unit=3"): "method.unit=3 should be 'entry', 'row', 'column' or 'channel'",
    ("regime.epochs=-1",): "regime.epochs=-1 should be greater than or equal to 0",
    ("regime.epochs=1.5",): "regime.epochs=1.5 should be a valid integer",
    ("regime.lr=0",): "regime.lr=0 should be greater than 0",
    ("regime.lr=nan",): "regime.lr=nan should be a finite number",
    ("regime.lr=null",): "regime.lr has no default here; give regime.lr=...",
    ("regime.batch_size=0",): "regime.batch_size=0 should be greater than or equal to 1",
    ("data.train_limit=0",): "data.train_limit=0 should be greater than or equal to 1",
    ("data=glue", "data.task=squad"): "data.task=squad should be 'cola', 'sst2',",
    ("model=resnet34", "model.layers=50"): "model.layers=50 should be 8, 9, 18 or 34",
    ("-m", "method.samples=64,-5"): "method.samples=-5 should be greater than or equal to 1",
    ("-m", "keep=0.005,7"): "keep is a fraction in (0, 1], got 7",
}


@pytest.mark.parametrize("arguments", OPTIONS, ids=" ".join)
def test_options_out_of_range(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Refuse the last run of a sweep too, before any has started."""
    assert OPTIONS[arguments] in fishexp(*arguments).mistake()
    assert not (tmp_path / "outputs" / "records.jsonl").exists()


MISFITS = {
    ("keep=0.004",): "keep=0.004 pays for 1232 of 308074 weights, fewer than the 1290 of fc.weight, fc.bias",
    ("data.holdout=1437",): "data.holdout=1437 leaves nothing to train on: there are 1437 training examples",
    ("data=cifar10", "data.root=nowhere"): "data.root=nowhere does not hold cifar-10-batches-py/",
    ("data=glue", "model=minilm", "data.root=nowhere"): "nowhere/SST-2/train.tsv is missing",
    (
        "model=resnet18",
        "batch_size=127",
        "drop_last=false",
    ): "regime.batch_size=127 leaves a last batch, of 128 examples,",
    ("model=resnet18", "batch_size=1"): "regime.batch_size=1 leaves batches of 1, whose variance BatchNorm cannot take",
    ("model=minilm",): "this model reads text, but the data set is images",
    ("model.path=nowhere",): "model.path=nowhere",
}


@pytest.mark.parametrize("arguments", MISFITS, ids=" ".join)
def test_parts_that_do_not_fit(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Refuse a run before it trains; the failure is on record."""
    assert MISFITS[arguments] in fishexp(*QUICK, *arguments).mistake()
    (record,) = records(tmp_path)
    assert record["status"] == "failed"
    assert MISFITS[arguments] in record["error"]
    assert record["seconds"]["train"] == 0


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device=cuda: torch" in fishexp(*QUICK, "device=cuda").mistake()


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert fishexp(*QUICK, "outputs=file").mistake().startswith("outputs=file cannot be")
    assert fishexp(*QUICK, "records=file/records.jsonl").mistake().startswith("records=file cannot be")
    assert fishexp(*QUICK, "outputs=/proc/fishexp").mistake().startswith("outputs=/proc/fishexp cannot be made")


def test_debug_shows_the_traceback() -> None:
    result = fishexp(*QUICK, "data.holdout=1437", "debug=true")
    assert result.status == 2
    assert "Traceback (most recent call last)" in result.err
    assert result.err.endswith(
        "fishexp: data.holdout=1437 leaves nothing to train on: there are 1437 training examples\n"
    )


def test_records_that_are_a_folder_and_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert fishexp(*QUICK, "records=folder").mistake() == "records=folder is not a file that can be written"
    (tmp_path / "outputs" / "digits").write_text("")
    assert fishexp(*QUICK).mistake().endswith("Not a directory")


YAMLS = {
    "- fish": "is not a table; it holds lines such as name: fish",
    "": "has no name: NAME, which says the module with its function",
    "name: 3": "has no name: NAME, which says the module with its function",
    "name: fish\0": "cannot be read: unacceptable character #x0000",
    "name: fish\nname: full": "found duplicate key name",
    "name: [": "cannot be read: while parsing a flow",
    "name: fish\n1: 2": "the key 1 is not a word; put it in quotes",
    "defaults: 3\nname: fish": "defaults is a list of names, such as [fish, _self_]",
    "defaults: [nope]\nname: fish": "its defaults name nope, and there is no method/nope.yaml",
}


@pytest.mark.parametrize("text", YAMLS)
def test_a_yaml_of_the_user_that_says_no_component(text: str, tmp_path: Path) -> None:
    """The line names the file, also where the apostrophe in its folder is one of Hydra's quotes."""
    (tmp_path / "it's mine" / "method").mkdir(parents=True)
    (tmp_path / "it's mine" / "method" / "odd.yaml").write_text(text)
    mistake = fishexp("--config-dir", "it's mine", "method=odd").mistake()
    assert mistake.startswith("it's mine/method/odd.yaml")
    assert YAMLS[text] in mistake


def test_yamls_of_the_user_that_would_not_be_read(tmp_path: Path) -> None:
    """conf/ comes first: a file of the same name in another folder would be passed over without a word."""
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "fish.yaml").write_text("name: fish\nsamples: 7")
    assert fishexp("--config-dir", ".", "method=fish").mistake() == (
        "method/fish.yaml: method=fish is in conf/ already; give yours another name"
    )
    (tmp_path / "config.yaml").write_text("seed: 7")
    assert fishexp("--config-dir", ".").mistake().startswith("config.yaml: conf/ has a config.yaml; give yours another")
    (tmp_path / "config.yaml").rename(tmp_path / "bare.yaml")
    assert fishexp("--config-dir", ".", "--config-name", "bare").mistake() == (
        "--config-name bare chooses no data; its first line is defaults: [config, _self_]"
    )


def test_a_configuration_of_the_user_begins_with_ours(tmp_path: Path) -> None:
    (tmp_path / "it's").mkdir()
    (tmp_path / "it's" / "mine.yaml").write_text("defaults: [config, _self_]\nseed: 7\nregime: {lr: 0.3}")
    command = ("--config-dir", "it's", "--config-name", "mine", "--cfg", "job", "-p")
    assert (fishexp(*command, "seed").out, fishexp(*command, "regime.lr").out) == ("7\n", "0.3\n")


def test_yamls_and_modules_of_the_user_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my conf (1)" / "method").mkdir(parents=True)
    for name, text in {"torn": "name: [", "bad": "name: bad_syntax", "lacks": "name: lacks_import"}.items():
        (tmp_path / "my conf (1)" / "method" / f"{name}.yaml").write_text(text)
    (tmp_path / "bad_syntax.py").write_text("def scores(problem) return 1")
    (tmp_path / "lacks_import.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    conf = ("--config-dir", "my conf (1)")
    assert "torn.yaml" in fishexp(*conf, "method=torn").mistake()
    assert fishexp(*conf, "method=bad").mistake().startswith("method=bad_syntax: bad_syntax cannot be imported: ")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it was not installed
    (tmp_path / "lacks_extra.py").write_text("def load():\n    import torchvision")
    (tmp_path / "my conf (1)" / "data").mkdir()
    (tmp_path / "my conf (1)" / "data" / "late.yaml").write_text("name: lacks_extra")
    missing = fishexp(*conf, "data=late", "method=random", "lr=0.1").mistake()
    assert missing.endswith("torchvision is not installed; pip install 'fishexp[vision]'")
    assert fishexp(*conf, "method=lacks").mistake() == (
        "method=lacks_import: lacks_import needs no_such_package, which is not installed"
    )
