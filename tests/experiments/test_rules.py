"""`make rules`, `make table1`, `make figure2`: which runs, shared by which of them; what their reports say."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import figure2, rules, table1
from experiments.__main__ import HOME, main
from experiments.figure2 import overlap
from experiments.figure2.profiles import LABELS
from experiments.lib import sweep
from experiments.lib.durations import REPOSITORY
from experiments.lib.experiment import Experiment, sections
from experiments.lib.plan import plan
from experiments.lib.records import recorded_runs
from experiments.lib.results import Result, result_of
from experiments.lib.sentences import RULES, Cell
from experiments.lib.settings import as_overrides, composed_run, composed_runs
from experiments.lib.study import Study
from experiments.rules.findings import leads_by_rate
from fishexp.delta import Delta
from fishexp.run.identity import run_id
from tests.support.tables import chosen, reported, rows, words, write_records

EXPERIMENTS: dict[str, Experiment[Cell]] = {
    "rules": rules.EXPERIMENT,
    "table1": table1.EXPERIMENT,
    "figure2": figure2.EXPERIMENT,
}
STUDIES = {study.name: study for study in rules.EXPERIMENT.profiles["cpu"]}
SST2 = STUDIES["sst2"]
FISH, RANDOM = Cell("fish"), Cell("random")
COMMON = (
    "data=glue data.task=sst2 data.train_limit=3000 regime.epochs=2 model=minilm precision=fp32 threads=1 device=cpu "
)


def first_kinds(study: Study[Cell]) -> list[Cell]:
    """A cell of each rule, and of each way to share out: budgets and examples are numbers."""
    return list({(cell.rule, cell.per, cell.labels): cell for cell in study.cells}.values())


def test_the_runs_of_the_cpu_profile(tmp_path: Path) -> None:
    """Word for word, as the identity of runs on record hangs on them."""
    lines = [run for cell in SST2.cells for run in chosen(SST2, cell, {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.65})]
    commands = list(plan([SST2], write_records(tmp_path, lines)))
    network = "method.per=network method.unit=entry keep=0.005"
    fish = f"method=fish method.samples=1024 method.labels=true_label {network}"
    held_out = "data.holdout=500 seed=0 regime.lr=0.0005,0.002,0.008"
    assert set(commands[0].overrides) == words(f"{COMMON} {fish} {held_out}")
    smallest = f"method=magnitude method.order=smallest {network}"
    assert set(commands[3].overrides) == words(f"{COMMON} {smallest} {held_out}")
    assert [command.step for command in commands] == ["sst2 rates"] * 10 + ["sst2 table"] * 50
    table = [words(f"{COMMON} {fish} seed={seed} regime.lr=0.002") for seed in range(5)]
    assert [set(commands[10 + 10 * seed].overrides) for seed in range(5)] == table


@pytest.mark.parametrize(("name", "profile"), [(n, p) for n, each in EXPERIMENTS.items() for p in each.profiles])
def test_every_kind_of_run_can_be_composed_and_no_two_cells_are_one_run(name: str, profile: str) -> None:
    for study in EXPERIMENTS[name].profiles[profile][:2]:
        ids = []
        for cell in first_kinds(study):
            run = composed_run(study.settings(cell, study.report, {"regime.lr": 0.1}))
            assert run["keep"] == cell.keep
            assert run["method"].get("per", cell.per) == cell.per
            ids.append(run_id(run))
            assert study.choose is not None or study.known[study.sources[cell]] > 0
        assert len(set(ids)) == len(ids) > 0


def test_runs_are_shared_by_the_experiments() -> None:
    """The same command in each, so that none runs twice."""
    for name in ("table1", "figure2"):
        assert EXPERIMENTS[name].shares == "rules"
        (study,) = [s for s in EXPERIMENTS[name].profiles["cpu"] if s.name == "sst2"]
        assert FISH in study.cells
        for step in ({"seed": 1, "regime.lr": 0.002}, {"data.holdout": 500, "seed": 0, "regime.lr": 0.002}):
            ours, theirs = (composed_runs(as_overrides(s.settings(FISH, s.report, step))) for s in (SST2, study))
            assert [run_id(run) for run in ours] == [run_id(run) for run in theirs]


def test_further_seeds_of_another_experiment_do_not_count(tmp_path: Path) -> None:
    """So that a table has one n, whatever the records that it shares hold."""
    lines = chosen(SST2, FISH, {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.65}) + reported(SST2, FISH, 2e-3, (0.8, 0.82, 0.84, 0.1))
    runs = recorded_runs(write_records(tmp_path, lines))
    found = result_of(replace(SST2, seeds=range(3)), FISH, runs).group
    assert found is not None
    assert [run["config"]["seed"] for run in found.runs] == [0, 1, 2]
    assert result_of(replace(SST2, seeds=range(4, 6)), FISH, runs).group is None


def test_a_failure_of_a_further_seed_does_not_count_either(tmp_path: Path) -> None:
    lines = chosen(SST2, FISH, {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.65})
    lines += reported(SST2, FISH, 2e-3, (0.0, 0.0, 0.0, 0.0), status="failed")
    runs = recorded_runs(write_records(tmp_path, lines))
    assert result_of(replace(SST2, seeds=range(3)), FISH, runs).failed == 3
    assert result_of(SST2, FISH, runs).failed == 4


def test_a_command_of_another_experiment_leaves_its_records_with_the_rules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(sweep, "_call", lambda command: commands.append(command) or 2)
    monkeypatch.setattr(sweep, "finished", lambda records: {})  # whatever is committed
    monkeypatch.setattr("experiments.lib.experiment.sections", lambda *_: [])
    assert main(["figure2"], {"PROFILE": "cpu"}) == 2
    assert {f"records={HOME / 'rules' / 'records.jsonl'}", "outputs=outputs/rules"} <= set(commands[0])


def written(name: str, path: Path) -> str:
    EXPERIMENTS[name].write_report(path.parent, sections(EXPERIMENTS[name], path))
    return (path.parent / "README.md").read_text()


def test_the_report_of_the_rules(tmp_path: Path) -> None:
    tried = {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.65}
    lines = [run for cell in (FISH, RANDOM) for run in chosen(SST2, cell, tried)]
    lines += reported(SST2, FISH, 2e-3, (0.80, 0.82, 0.84)) + reported(SST2, RANDOM, 2e-3, (0.70, 0.72, 0.74))
    text = written("rules", write_records(tmp_path, lines))
    header, _, fish, random, magnitude, *_ = rows(text, "## SST-2, 0.5 %")
    by = dict(zip(header, fish, strict=True))
    assert (by["rule"], by["Accuracy in %"], by["lr"]) == ("fish", "82.0 ± 2.0 (3 seeds)", "0.002")
    assert dict(zip(header, random, strict=True))["Accuracy in %"] == "72.0 ± 2.0 (3 seeds)"
    assert "missing" in dict(zip(header, magnitude, strict=True))["Accuracy in %"]
    assert "STS-B" not in text.partition("## ")[2]  # which has no results


def compared(text: str, title: str, name: str) -> list[list[str]]:
    """Return the rows of the differences to ``name`` below ``title``."""
    return rows(text.partition(title)[2], f"### Differences to {name}\n")[2:]


def test_differences_to_random_and_to_fish_and_of_shares_to_none(tmp_path: Path) -> None:
    """FISH is 10 points ahead in every seed but for a tenth of one; a share for each matrix changes nothing clear."""
    tried = {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.65}
    shares = STUDIES["sst2-per"]
    matrix = replace(FISH, per="matrix")
    lines = [run for cell in (FISH, RANDOM) for run in chosen(SST2, cell, tried)] + chosen(shares, matrix, tried)
    lines += reported(SST2, FISH, 2e-3, (0.80, 0.82, 0.841)) + reported(SST2, RANDOM, 2e-3, (0.70, 0.72, 0.74))
    of_shares = reported(shares, matrix, 2e-3, (0.84, 0.80, 0.82))
    for run in of_shares:
        run["commit"] = "fedcba987654"
    lines += of_shares
    text = written("rules", write_records(tmp_path, lines))
    title, other = "## SST-2, 0.5 %\n", "## SST-2, 0.5 %, a share"
    assert [row[:4] for row in compared(text, title, "random")] == [["fish", "network", "0.005", "**+10.03**"]]
    assert [row[:4] for row in compared(text, title, "fish")] == [["random", "network", "0.005", "**-10.03**"]]
    (row,) = compared(text, other, "the same rule over the network")
    assert row[:4] == ["fish", "matrix", "0.005", "-0.03"]
    assert row[6:] == ["–", "–", "3"]
    code = "Runs of different code stand together: commits fedcba987654, 0123456789ab;"
    assert code in text.partition(other)[2]  # its own, and those that they are compared with
    assert text.count("stand together") == 1
    assert "no predictions on record" in text
    assert text.count("### Differences to") == 3
    answer = text.partition("## The answer\n")[2].partition("\n## ")[0]
    ahead = "fish +10.0 [+9.9, +10.2]"
    title, other = "SST-2, 0.5 %", "SST-2, 0.5 %, a share for each matrix or row"
    assert "\n1 of the 2 comparisons that can be tested are clear: of the rules," in answer
    told = {(row[0], row[2]): row[3:] for row in rows(text, "## The answer\n")[2:]}
    assert told[title, "random"] == [ahead, "none", "", "3 seeds"]
    assert (title, "fish") not in told  # the same comparison from the other side
    above, below, neither, seeds = told[other, "the same rule over the network"]
    assert (above, below, neither[:23], seeds) == ("none", "none", "fish per matrix -0.0 [-", "3 seeds")
    few = written("rules", write_records(tmp_path, [run for run in lines if run["config"]["seed"] < 2]))
    assert "\n0 of the 0 comparisons that can be tested are clear: of the rules," in few
    assert rows(few, "## The answer\n")[2][2:] == ["random", "–", "–", "fish +10.0", "2 seeds"]
    for name in ("cpu-sst2.png", "cpu-sst2-per.png"):
        assert (name in text) == (tmp_path / name).exists() == (name == "cpu-sst2.png")  # one cell makes no picture


def test_the_answer_tells_of_figure_2_and_of_table_1_what_the_rules_do_not(tmp_path: Path) -> None:
    """FISH by 32 examples is 10 points below that by 1,024; Diff Pruning is 4 above it and takes thrice as long."""
    (figure,), (table, _) = (EXPERIMENTS[name].profiles["cpu"] for name in ("figure2", "table1"))
    few, pruned, lora = replace(FISH, samples=32), Cell("diff_pruning"), Cell("lora")
    tried = {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.65}
    lines = [run for cell in (FISH, RANDOM, pruned, lora) for run in chosen(table, cell, tried)]
    lines += reported(table, FISH, 2e-3, (0.80, 0.82, 0.84)) + reported(figure, few, 2e-3, (0.70, 0.72, 0.741))
    lines += reported(table, RANDOM, 2e-3, (0.70, 0.72, 0.74))
    pruned_runs = reported(table, pruned, 2e-3, (0.84, 0.86, 0.881))
    for run in pruned_runs:
        run["seconds"] = {"train": 5400.0}
    lines += pruned_runs + reported(table, lora, 2e-3, (0.80, 0.83, 0.83))
    text = written("rules", write_records(tmp_path, lines))
    told = {row[0]: row[1:] for row in rows(text, "## The answer\n")[2:]}
    assert told["Figure 2, sst2"][2:4] == ["none", "32 true_label -10.0 [-10.1, -9.8]"]
    assert told["Table 1, sst2"][1:4] == ["fish at 0.005", "Diff Pruning +4.0 [+3.9, +4.2]", "none"]
    assert told["Table 1, sst2"][4].startswith("LoRA +0.0 [-")  # of random above
    assert "Table 1, stsb" not in told
    assert "takes as long as 3 runs of FISH (Table 1, sst2).\n" in text


@pytest.mark.parametrize(
    ("tried", "second"),
    [
        ({5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.65}, 8e-3),
        ({5e-4: 0.65, 2e-3: 0.7, 8e-3: 0.65}, 5e-4),  # of equals the smallest
        ({5e-4: None, 2e-3: 0.7, 8e-3: None}, None),
    ],
)
def test_a_rule_at_its_second_best_rate_is_compared_with_itself_at_the_best(
    tried: dict[float, float | None], second: float | None, tmp_path: Path
) -> None:
    lines = chosen(SST2, FISH, tried) + reported(SST2, FISH, 2e-3, (0.80, 0.82, 0.84, 0.9))
    lines += chosen(SST2, RANDOM, tried)
    lines += reported(SST2, FISH, 8e-3, (0.75, 0.77, 0.791)) + reported(SST2, FISH, 5e-4, (0.7, 0.7, 0.7))
    text = written("rules", write_records(tmp_path, lines))
    title = "## SST-2, 0.5 %, each rule at its second-best rate\n"
    score = {8e-3: "77.0 ± 2.1 (3 seeds)", 5e-4: "70.0 ± 0.0 (3 seeds)", None: "missing"}[second]
    assert rows(text, title)[2][3:5] == [score, f"{second:g}" if second else "missing"]
    if second == 8e-3:
        (row,) = compared(text, title, "the same rule at its best rate")
        assert row[:4] == ["fish", "network", "0.005", "**-4.97**"]
        assert rows(text, "## The answer\n")[2][6] == "3 seeds"  # that both have
    assert text.count("### Learning rates") == 1  # the same for both, and the same leads
    assert [row[0] for row in rows(text, "How much of FISH")[2:]] == ["SST-2, 0.5 %"]


def test_a_rule_at_the_edge_of_the_grid_is_tried_beyond(tmp_path: Path) -> None:
    lines = chosen(SST2, FISH, {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.75})
    commands = list(plan([replace(SST2, sources={FISH: FISH})], write_records(tmp_path, lines)))
    assert [run["regime"]["lr"] for run in commands[1].to_do(set())] == [0.032]
    assert all(command.waits for command in commands[2:])


def test_the_report_of_table_1_says_what_is_the_papers(tmp_path: Path) -> None:
    study = table1.EXPERIMENT.profiles["cpu"][0]
    full = Cell("full", None)
    lines = chosen(study, full, {2e-5: 0.6, 8e-5: 0.9, 3.2e-4: 0.65}) + reported(study, full, 8e-5, (0.80, 0.82, 0.84))
    text = written("table1", write_records(tmp_path, lines))
    assert "dense training 82.5, FISH at\n0.5 % 82.6, at 0.08 % 81.3" in text
    assert rows(text, "## sst2")[2][:3] == ["dense training", "–", "82.0 ± 2.0 (3 seeds)"]
    assert "multiple" not in text
    lines += chosen(study, FISH, {5e-4: 0.6, 2e-3: 0.9, 8e-3: 0.65}) + reported(study, FISH, 2e-3, (0.81, 0.8, 0.84))
    for run, train in zip(lines[-3:], (4000.0, 1000.0, 9000.0), strict=True):  # the fastest counts
        run["seconds"] = {"scores": 200.0, "train": train}
    text = written("table1", write_records(tmp_path, lines))
    assert "as a multiple of FISH at 0.005's: dense training 1.5." in text
    assert (tmp_path / "cpu-sst2.png").stat().st_size > 10_000


def positions(kept: list[int], size: int) -> torch.Tensor:
    mask = torch.zeros(size)
    mask[kept] = 1
    return mask


def test_figure_2_draws_scores_and_measures_overlaps_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the deltas in the run folders; what was measured stays when these are gone."""
    (study,) = figure2.EXPERIMENT.profiles["cpu"]
    few, many = replace(FISH, samples=32), FISH
    lines = chosen(study, many, {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.65})
    runs = {cell: reported(study, cell, 2e-3, (0.8, 0.82)) for cell in (few, many)}
    for number, run in enumerate(run for each in runs.values() for run in each):
        run["run_id"] = f"{number:08x}"
    lines += [run for each in runs.values() for run in each]
    base = {"a": torch.zeros(30), "b": torch.zeros(20), "head": torch.zeros(3)}
    masks = {(few, 0): ([1, 2, 3, 4], [0]), (few, 1): ([1, 2, 3, 4], [0]),
             (many, 0): ([3, 4, 5, 6], [0]), (many, 1): ([1, 2, 3, 4], [1])}  # fmt: skip
    for cell, each in runs.items():
        for run in each:
            a, b = masks[cell, run["config"]["seed"]]
            folder = tmp_path / "outputs" / "glue" / "minilm" / "fish" / f"seed{run['config']['seed']}-{run['run_id']}"
            folder.mkdir(parents=True)
            after = {"a": positions(a, 30), "b": positions(b, 20), "head": torch.ones(3)}
            Delta.diff(base, after).save(folder / "delta.safetensors")
    for run in lines:
        run["seed"] = run["config"]["seed"]
    monkeypatch.setattr(overlap, "_OUTPUTS", tmp_path / "outputs")
    path = write_records(tmp_path, lines)
    text = written("figure2", path)
    assert (tmp_path / "cpu-sst2.png").stat().st_size > 10_000
    header, _, *table = rows(text, "### Overlap of masks")
    share = dict(zip(header, table[0], strict=True))
    assert share["32 true_label"] == "100%"
    assert share["1,024 true_label"] == "70%"  # 3 of 5, and 4 of 5
    assert share["256 true_label"] == "–"  # no run of it
    stored = json.loads((tmp_path / "cpu-sst2-overlap.json").read_text())
    assert stored["0.005: 32 true_label | 1,024 true_label"] == 0.7
    monkeypatch.setattr(overlap, "_OUTPUTS", tmp_path / "nowhere")
    assert written("figure2", path) == text


def test_masks_of_other_budgets_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would hide behind the names of those that are."""
    monkeypatch.setattr(overlap, "_masks", lambda result, _: {0: np.array([result.cell.keep, 2 * result.cell.keep])})
    cells = [replace(FISH, keep=keep, samples=samples) for keep in (0.0001, 0.005) for samples in (32, 256)]
    found = overlap._measured([Result(cell, None, cell, [], {}, None, 0) for cell in cells])
    assert found == {overlap._key(a, b): 1.0 for a in cells for b in cells if a.keep == b.keep}


def test_the_grid_of_figure_2() -> None:
    sst2, stsb = figure2.EXPERIMENT.profiles["gpu"]
    assert len(sst2.cells) == 4 * 4 * len(LABELS)
    assert len(stsb.cells) == 4 * 4  # of a regression no label can be drawn
    assert {cell.labels for cell in stsb.cells} == {"true_label"}
    assert len(set(sst2.sources.values())) == 4
    assert set(RULES) >= {cell.rule for cell in sst2.cells}


def test_a_rate_at_which_a_rule_predicts_one_class_is_marked(tmp_path: Path) -> None:
    lines = chosen(SST2, FISH, {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.578})
    shares = {"largest_class_holdout": 0.578, "largest_predicted_holdout": 1.0}
    lines[-1]["metrics"] |= shares
    text = written("rules", write_records(tmp_path, lines))
    assert rows(text, "### Learning rates")[2] == ["fish", "network", "0.005", "60.0", "**70.0**", "57.8 ‡"]
    assert "\n‡ predicted the same class" in text
    assert "the largest class is 57.8 % of glue/sst2" in text


def test_how_much_of_a_lead_is_the_rate(tmp_path: Path) -> None:
    """By hand: at the small rate 30 points, at the middle one none, and with each at its best one point behind."""
    assert leads_by_rate([]) == {}
    lines = chosen(SST2, FISH, {5e-4: 0.9, 2e-3: 0.8, 8e-3: 0.5}) + chosen(
        SST2, RANDOM, {5e-4: 0.6, 2e-3: 0.8, 8e-3: 0.91}
    )
    (section, *_) = sections(rules.EXPERIMENT, write_records(tmp_path, lines))
    assert leads_by_rate(section.results)[0.005] == pytest.approx({5e-4: 30, 2e-3: 0, 8e-3: -41, None: -1})
    header, _, leads = rows(written("rules", tmp_path / "records.jsonl"), "has its best of those tried.")
    assert header == ["examples", "keep", "both at 0.0005", "both at 0.002", "both at 0.008", "each at its best"]
    assert leads == ["SST-2, 0.5 %", "0.005", "+30.0", "+0.0", "-41.0", "-1.0"]


def test_what_the_first_screen_says_of_fish_is_what_the_tables_say() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    ((said, low, high),) = re.findall(r"random mask is (\S+) points \[(\S+), (\S+)\] above FISH", readme)
    report = (HOME / "rules" / "README.md").read_text()
    rule, _, _, mean, interval, _, _, _, seeds = rows(report, "### Differences to fish")[2]
    found = [abs(float(number)) for number in re.findall(r"[+-]\d+\.\d+", f"{mean} {interval}")]
    assert (rule, [f"{number:.1f}" for number in found], seeds) == ("random", [said, low, high], "5")
    second = {row[0]: row for row in rows(report, "each rule at its second-best rate\n")[2:]}
    (said,) = re.findall(r"but (\S+) with three where both", readme)
    assert f"{float(second['random'][3].split()[0]) - float(second['fish'][3].split()[0]):.1f}" == said
    assert second["random"][3].endswith("(3 seeds)")
    leads = rows((HOME / "table4" / "README.md").read_text(), "### Differences to random\n")[2:]
    assert {row[-1] for row in leads} == {"3"}
    of_clear, of_others = [], []
    for row in leads:
        assert row[3].startswith("**") == (float(row[1]) >= 0.1)
        (of_clear if row[3].startswith("**") else of_others).append(float(row[3].strip("*")))
    (said,) = re.findall(
        r"is (\S+) to (\S+) points better with FISH .* on, and (\S+) to (\S+) below", " ".join(readme.split())
    )
    assert said == tuple(f"{end(some):.1f}" for some in (of_clear, of_others) for end in (min, max))


def test_of_many_that_are_not_told_apart_the_lowest_and_the_highest_are_named(tmp_path: Path) -> None:
    others = {"magnitude": (0.74, 0.69, 0.73), "gradient": (0.68, 0.73, 0.69), "snip": (0.71, 0.69, 0.72)}
    scores = {"random": (0.70, 0.72, 0.71), "fish": (0.70, 0.71, 0.73), **others}
    lines = [run for rule in scores for run in chosen(SST2, Cell(rule), {5e-4: 0.6, 2e-3: 0.7, 8e-3: 0.65})]
    lines += [run for rule, found in scores.items() for run in reported(SST2, Cell(rule), 2e-3, found)]
    text = written("rules", write_records(tmp_path, lines))
    above, below, neither, _ = rows(text, "## The answer\n")[2][3:]
    assert (above, below) == ("none", "none")
    assert re.fullmatch(r"4, from gradient -1\.0 \[.*\] to magnitude \+1\.0 \[.*\]", neither)


def test_a_lead_is_told_for_each_budget_apart(tmp_path: Path) -> None:
    """Of one budget FISH is ahead, of the other behind; they are not mixed."""
    study = STUDIES["sst2-keeps"]
    lines = []
    for keep, ours, theirs in ((0.0002, 0.9, 0.6), (0.02, 0.5, 0.8)):
        lines += chosen(study, Cell("fish", keep), {2e-3: ours}) + chosen(study, Cell("random", keep), {2e-3: theirs})
    (section,) = [s for s in sections(rules.EXPERIMENT, write_records(tmp_path, lines)) if s.study.name == "sst2-keeps"]
    leads = leads_by_rate(section.results)
    assert {keep: of[2e-3] for keep, of in leads.items()} == pytest.approx({0.0002: 30, 0.02: -30})
