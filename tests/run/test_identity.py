"""What decides the numbers of a run is its identity, wherever it lies, and what no longer holds is said."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.utils import get_args_parser

import fishexp as library
from fishexp.delta.fingerprint import fingerprint
from fishexp.run import record as recorded
from fishexp.run.config import read_command, register_resolvers
from fishexp.run.identity import _shareable_text, run_id, shareable
from fishexp.training import trainer
from tests.support.cli import QUICK, Result, fishexp, records
from tests.support.resuming import SMALL, Cut, cut_after, run_folder

BEFORE, AFTER = "a" * 12, "b" * 12  # commits
EVERY_STEP = ("snapshot_minutes=0", "resume=true")
OWN_DATA = '''
import os
from pathlib import Path
from typing import Annotated
import torch
from fishexp.data.datasets import Dataset
from fishexp.data.images import Images
from fishexp.data.metrics import accuracy


def load(*, table: str, other: str | None, more: list[Annotated[str, "x"]] = [], open=None) -> Dataset:
    """Make images of a file of numbers."""
    generator = torch.Generator().manual_seed(int(Path(table).read_text()) + int(os.environ.get("SHIFT", 0)))
    part = Images(torch.randint(0, 200, (64, 1, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(64) % 2,
                  mean=(0.5,), std=(0.3,))
    return Dataset(part, {"": part}, classes=2, channels=1, metrics=accuracy)
'''
OWN_METHOD = '''
import torch


def scores(problem):
    """Score at random, and not without a trace."""
    with torch.no_grad():
        TRACE
    return {name: torch.rand(p.shape) for name, p in problem.model.named_parameters()}
'''


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own_and_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("fishexp.run.record", "fishexp.run.resume"):
        monkeypatch.setattr(f"{module}.commit", lambda: BEFORE)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Write a data set of one's own, which reads the file numbers/table.txt; return the options that choose it."""
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("conf/data", "conf/method", "numbers"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "own_table.py").write_text(OWN_DATA)
    (tmp_path / "conf/data/own.yaml").write_text("name: own_table\ntable: ???\nother: null\nmore: []\nopen: null\n")
    (tmp_path / "numbers/table.txt").write_text("1")
    return ("--config-dir=conf", "data=own", "data.table=numbers/table.txt", "regime.epochs=1", "method=random")


def glue(root: Path, lines: int = 8) -> Path:
    """Write SST-2 of a few lines."""
    (root / "SST-2").mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev"):
        rows = "".join(f"the cat sees a {'dog' if i % 3 else 'cat'} .\t{i % 2}\n" for i in range(lines))
        (root / "SST-2" / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}")
    return root


def on_glue(root: Path, model: Path) -> tuple[str, ...]:
    return (
        "data=glue", "data.task=sst2", f"data.root={root}", "model=bert_base", "model.pretrained=false",
        f"model.path={model}", "data.max_length=16", "regime.epochs=1", "regime.batch_size=4", "method=random",
        "keep=0.2", "resume=true",
    )  # fmt: skip


def test_the_same_examples_elsewhere_are_the_same_run_and_others_are_not(tmp_path: Path, bert_folder: Path) -> None:
    first = on_glue(glue(tmp_path / "here"), bert_folder)
    assert fishexp(*first).status == 0
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "glue")
    (tmp_path / "there" / "glue" / "SST-2" / "test.tsv").write_text("not read")
    assert "is done already\n" in fishexp(*on_glue(tmp_path / "there" / "glue", bert_folder)).out
    dev = tmp_path / "here" / "SST-2" / "dev.tsv"
    dev.write_text(dev.read_text().replace("dog", "cat"))
    assert "is done already" not in fishexp(*first).out
    assert len({record["run_id"] for record in records(tmp_path)}) == 2


@pytest.mark.parametrize("edited", ["vocab.txt", "config.json"])
def test_another_tokenizer_or_config_is_another_run(tmp_path: Path, bert_folder: Path, edited: str) -> None:
    options = on_glue(glue(tmp_path / "glue"), bert_folder)
    assert fishexp(*options).status == 0
    (bert_folder / "README.md").write_text("No run reads this.")
    assert "is done already\n" in fishexp(*options).out
    file = bert_folder / edited
    file.write_text(file.read_text().replace("cat", "cow").replace('"hidden_size": 8', '"hidden_size": 16'))
    assert "is done already" not in fishexp(*options).out


def test_a_file_that_an_option_of_ones_own_names_is_part_of_the_identity(tmp_path: Path, own: tuple[str, ...]) -> None:
    """So is a folder, but not the outputs that lie in it."""
    for options in (own, (*own, "data.other=.")):
        assert fishexp(*options).status == 0
    assert len({record["run_id"] for record in records(tmp_path)}) == 2
    (tmp_path / "moved.txt").write_text("1")
    for options in ((*own, "data.table=moved.txt"), (*own[:2], "data.table=moved.txt", *own[3:])):
        assert "is done already" in fishexp(*options, "resume=true").out
    (tmp_path / "numbers/table.txt").write_text("2")
    assert "is done already" not in fishexp(*own, "resume=true").out
    assert [record["config"]["data"]["table"][0] for record in records(tmp_path)] == ["@"] * 3


@pytest.mark.parametrize("option", ["more=[FILE,FILE]", "open={a:{b:FILE}}", "open=FILE"])
def test_files_count_wherever_an_option_may_name_them(tmp_path: Path, own: tuple[str, ...], option: str) -> None:
    """In lists, and in what has no annotation."""
    file = tmp_path / "more.txt"
    file.write_text("1")
    options = (*own, f"data.{option.replace('FILE', str(file))}", "resume=true")
    assert fishexp(*options).status == 0
    assert "is done already" in fishexp(*options).out
    assert str(tmp_path) not in json.dumps([record["config"] for record in records(tmp_path)])
    file.write_text("2")
    assert "is done already" not in fishexp(*options).out


def test_names_of_layers_and_metrics_are_no_files(tmp_path: Path, bert_folder: Path) -> None:
    options = (*on_glue(glue(tmp_path / "glue"), bert_folder), "method=lora", "method.targets=[query]")
    register_resolvers()
    command = get_args_parser().parse_args([*options, "regime.best=true", "regime.metric=accuracy"])
    before = run_id(read_command(command).configs[0])
    for folder in ("query", "accuracy"):
        (tmp_path / folder).mkdir()
    assert run_id(read_command(command).configs[0]) == before


def test_all_that_lies_in_a_folder_of_data_counts_behind_links_too(tmp_path: Path, own: tuple[str, ...]) -> None:
    """Whatever it is called: a class of workers, and a card that says what the columns are."""
    for file in ("pictures/workers/a.png", "pictures/README.md", "elsewhere/b.png", "elsewhere/more/c.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("one")
    (tmp_path / "pictures/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/more/back").symlink_to(tmp_path / "pictures")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "elsewhere")

    def identity() -> str:
        return _shareable_text("pictures", Path("pictures/outputs"), named=False)

    seen = {identity()}
    for file in ("workers/a.png", "README.md", "link/b.png", "link/more/c.png"):
        (tmp_path / "pictures" / file).write_text("another")
        seen.add(identity())
    assert len(seen) == 5
    for name in (".hidden", "outputs/of_a_run"):
        (tmp_path / "pictures" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pictures" / name).write_text("not read")
    assert identity() in seen


def test_examples_that_changed_unseen_are_not_gone_on_with(
    tmp_path: Path, own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        cut_after(2, patch)
        with pytest.raises(Cut):
            fishexp(*own, "regime.batch_size=8", *EVERY_STEP)
    monkeypatch.setenv("SHIFT", "1")
    message = fishexp(*own, "regime.batch_size=8", *EVERY_STEP).mistake()
    assert message == "the examples of this run are other ones than when it was interrupted; resume=false begins anew"
    monkeypatch.delenv("SHIFT")
    assert "continued from a snapshot" in fishexp(*own, "regime.batch_size=8", *EVERY_STEP).out


def test_a_record_names_no_folder_of_this_machine_and_no_password(tmp_path: Path, own: tuple[str, ...]) -> None:
    options = (*own, "data.other=https://me:secret@host/data.csv")
    assert fishexp(*options).status == 0
    assert fishexp(*own, f"data.table={tmp_path}/gone.txt").status == 1
    assert fishexp(*own, f"data.table={tmp_path}/numbers/table.txt").status == 0
    first, missing, third = records(tmp_path)
    assert first["config"]["data"]["other"] == "https://host/data.csv"
    assert missing["config"]["data"]["table"] == "gone.txt"
    for found in (first, missing, third):
        text = json.dumps(found["config"])
        assert str(tmp_path) not in text
        assert "secret" not in text
        assert run_id(found["config"]) == found["run_id"]
        assert shareable(found["config"]) == found["config"]


def test_what_is_done_says_what_changed_since_and_strict_runs_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fishexp(*QUICK).status == 0
    assert fishexp(*QUICK, "resume=strict").out.endswith("is done already\n")

    shutil.rmtree(run_folder("outputs"))
    said = fishexp(*QUICK, "resume=true").out
    assert " is done already; since then: " in said
    assert said.endswith(" is gone; resume=strict runs it again\n")
    again = fishexp(*QUICK, "resume=strict").out
    assert " runs again, since then: " in again
    assert len(records(tmp_path)) == 2
    library.load_run(run_folder("outputs"))

    monkeypatch.setattr("fishexp.run.resume.commit", lambda: AFTER)
    changed = f"commit {BEFORE} -> {AFTER}"
    assert f"since then: {changed}; resume=strict" in fishexp(*QUICK, "resume=true").out
    assert f"runs again, since then: {changed}\n" in fishexp(*QUICK, "resume=strict").out
    assert len(records(tmp_path)) == 3


def test_code_of_ones_own_that_changed_is_said_too(tmp_path: Path, own: tuple[str, ...]) -> None:
    assert fishexp(*own).status == 0
    assert records(tmp_path)[0]["versions"]["own_table"]
    (tmp_path / "own_table.py").write_text(OWN_DATA.replace("0, 200", "0, 100"))
    assert "own_table" in fishexp(*own, "resume=true").out


@pytest.mark.parametrize(("resume", "goes_on"), [("true", True), ("strict", False)])
def test_a_snapshot_of_other_code(resume: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut_after(4, patch)
        with pytest.raises(Cut):
            fishexp(*SMALL, "regime.epochs=2", "snapshot_minutes=0")
    monkeypatch.setattr(recorded, "commit", lambda: AFTER)
    result = fishexp(*SMALL, "regime.epochs=2", f"resume={resume}")
    assert result.status == 0
    assert f"commit {BEFORE} -> {AFTER}" in result.out
    assert ("continued from a snapshot" in result.out) == goes_on
    assert ("begun anew" in result.out) == (not goes_on)


def test_commits_of_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that changes neither package nor configuration has the same code."""
    monkeypatch.setattr(recorded, "_ROOT", tmp_path)
    recorded._git("init", "-q")
    commits = []
    for name in ("fishexp/a.py", "README.md", "conf/b.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        recorded._git("add", "-A")
        recorded._git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", name)
        commits.append(recorded._git("rev-parse", "HEAD"))
    package, readme, configuration = commits
    assert recorded.same_code(package, package)
    assert recorded.same_code(package, readme)
    assert not recorded.same_code(readme, configuration)
    assert not recorded.same_code(f"{readme}+", f"{readme}+")  # whatever it was that was not committed
    assert not recorded.same_code("0" * 12, readme)
    assert not recorded.same_code(None, readme)
    assert recorded.same_code(None, None)  # from wheels, whose versions are compared


@pytest.fixture
def leaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, ...]]:
    """Return a function that writes a method whose scores do something to the model, and the options that choose it."""

    def method(trace: str) -> tuple[str, ...]:
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "leaves_traces", raising=False)
        (tmp_path / "conf/method").mkdir(parents=True)
        (tmp_path / "leaves_traces.py").write_text(OWN_METHOD.replace("TRACE", trace))
        (tmp_path / "conf/method/traces.yaml").write_text("name: leaves_traces\n")
        return ("--config-dir=conf", *QUICK[:3], "method=traces")

    return method


def test_scores_that_change_a_weight_are_refused(tmp_path: Path, leaving: Callable[[str], tuple[str, ...]]) -> None:
    message = fishexp(*leaving("problem.model.fc.weight.data.mul_(2)")).mistake()
    assert message.startswith("method=leaves_traces has changed fc.weight; it may look at the model")
    assert [record["status"] for record in records(tmp_path)] == ["failed"]


def test_scores_that_move_statistics_leave_a_run_that_loads(leaving: Callable[[str], tuple[str, ...]]) -> None:
    """As those of the original FISH do."""
    trained(fishexp(*leaving("problem.model.train(); problem.model(torch.rand(2, 1, 8, 8))")), run_folder("outputs"))


def damage(file: Path) -> None:
    """Flip a bit in the last tensor of a file, in place: whatever is linked to it is damaged too."""
    with file.open("r+b") as opened:
        opened.seek(-1, 2)
        last = opened.read(1)
        opened.seek(-1, 2)
        opened.write(bytes([last[0] ^ 1]))


def trained(result: Result, folder: Path) -> dict[str, Any]:
    assert result.status == 0, result
    model, _ = library.load_run(folder)
    return {name: fingerprint(tensor) for name, tensor in model.state_dict().items()}


def test_a_damaged_base_that_runs_share_is_written_anew(tmp_path: Path) -> None:
    options = (*SMALL, "regime.epochs=1")
    whole = trained(fishexp(*options, "outputs=whole"), run_folder("whole"))
    assert fishexp(*options, "outputs=shared", "keep=0.01").status == 0
    (base,) = Path("shared/bases").glob("*")
    damage(base)
    result = fishexp(*options, "outputs=shared")
    (folder,) = Path("shared").glob("*/*/random-0.02/*")
    assert (folder / "base.safetensors").exists()
    assert trained(result, folder) == whole


@pytest.mark.parametrize("regime", [(), ("regime=checkpointing",)])
def test_a_damaged_base_is_written_anew_when_its_run_resumes(
    regime: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*SMALL, *regime, "regime.epochs=2")
    whole = trained(fishexp(*options, "outputs=whole"), run_folder("whole"))
    with monkeypatch.context() as patch:
        cut_after(12, patch)
        with pytest.raises(Cut):
            fishexp(*options, "outputs=cut", *EVERY_STEP)
    damage(run_folder("cut") / "base.safetensors")
    shutil.rmtree("cut/bases", ignore_errors=True)
    result = fishexp(*options, "outputs=cut", *EVERY_STEP)
    assert "continued from a snapshot" in result.out
    assert trained(result, run_folder("cut")) == whole
    assert (run_folder("cut") / "base.safetensors").exists()


@pytest.mark.parametrize("regime", ["transfer", "checkpointing"])
def test_a_base_that_is_damaged_while_the_run_goes_on_is_not_relied_on(
    regime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run leaves all weights, or fails where its epochs need the base."""
    options = (*SMALL, f"regime={regime}", "regime.epochs=1")
    whole = trained(fishexp(*options, "outputs=whole"), run_folder("whole"))
    evaluate = trainer.evaluate

    def and_damage(*arguments: Any) -> Any:
        damage(run_folder("cut") / "base.safetensors")
        return evaluate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", and_damage)
        result = fishexp(*options, "outputs=cut", *EVERY_STEP)
    if regime == "checkpointing":
        assert result.status == 1
        assert result.err.endswith("base.safetensors is not what was written; start again with resume=true\n")
        result = fishexp(*options, "outputs=cut", *EVERY_STEP)
    assert trained(result, run_folder("cut")) == whole
    assert (run_folder("cut") / "model.safetensors").exists() == (regime == "transfer")


def test_the_digest_of_examples_is_that_of_what_a_model_gets(own: tuple[str, ...], tmp_path: Path) -> None:
    import importlib

    module = importlib.import_module("own_table")
    (tmp_path / "other.txt").write_text("2")
    first, again, other = (module.load(table=str(tmp_path / name), other=None)
                           for name in ("numbers/table.txt", "numbers/table.txt", "other.txt"))  # fmt: skip
    assert first.digest() == again.digest() != other.digest()
    again.train.labels = again.train.labels.clone()
    again.train.labels[-1] ^= 1
    assert first.digest() != again.digest()
    assert torch.equal(first.train.pixels, again.train.pixels)
