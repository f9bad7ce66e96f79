"""What all rows of a table have in common, in a sentence above it; only what differs gets a column."""

import textwrap
from collections.abc import Sequence

from fishexp.report.group import EXAMPLES, Group, seeds_text, span
from fishexp.report.pool import IMPLIED, SHOWN, differing

# characters of a line
_WIDTH = 120
# settings in the order of the sentence; others follow
_ORDER = (
    "data.name",
    "model.name",
    "data.train_limit",
    "data.valid_limit",
    "data.holdout",
    "keep",
    "regime.name",
    "regime.epochs",
    "regime.batch_size",
    "regime.lr",
)
# settings whose last word would not do
_WORDS = {
    "data.train_limit": "training examples",
    "data.valid_limit": "reported examples",
    "data.name": "data set",
    "model.name": "model",
    "regime.name": "regime",
    "data.root": "files",
}
# settings that change no number, and those told elsewhere
_SILENT = (
    "streams",
    "device",
    "threads",
    "data.task",
    EXAMPLES,
    "regime.evaluation_batch_size",
    "model.activation_checkpointing",
)


def is_shared(groups: Sequence[Group], key: str) -> bool:
    """Tell whether all groups have the same value of a setting."""
    return len({group.setting(key) for group in groups}) == 1


def shared_text(groups: Sequence[Group], *more: str) -> str:
    """Write what all groups share: ``All rows: data set digits; model resnet8; epochs 10; fish (samples 1,024).``

    Settings that only some components have stand behind the component's name.

    Args:
        more: What else to tell of all rows.
    """
    varied = differing(groups)
    keys = dict.fromkeys([*_ORDER, *(key for group in groups for key in group.settings)])
    keys = [key for key in keys if key not in (*varied, *IMPLIED, *_SILENT)]
    common = [key for key in keys if not key.startswith("method.") and is_shared(groups, key)]
    common = [key for key in common if key != "data.name" or len({group.data for group in groups}) == 1]
    owned = [key for key in keys if key not in common and key not in SHOWN]
    texts = [_item(groups[0], key) for key in common]
    for component in ("data", "model", "regime", "method"):
        for name in dict.fromkeys(group.setting(f"{component}.name") for group in groups):
            owner = next(group for group in groups if group.setting(f"{component}.name") == name)
            items = [_item(owner, key) for key in owned if key.startswith(f"{component}.") and key in owner.settings]
            texts += [f"{name} ({', '.join(filter(None, items))})"] if any(items) else []
    line = f"All rows: {'; '.join(filter(None, [*texts, *_facts(groups), *more]))}."
    return textwrap.fill(line, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _facts(groups: Sequence[Group]) -> list[str]:
    """Write what else all groups have the same: the weights that moved, the largest class of the examples, seeds."""
    facts = []
    if groups[0].kept and all(group.kept == groups[0].kept for group in groups):
        facts.append(f"{span(groups[0].kept)} weights moved")
    majorities = {group.headline.majority for group in groups}
    if len(majorities) == 1 and None not in majorities:
        facts.append(f"largest class {groups[0].headline.majority:.1f} %")
    if len({len(group.runs) for group in groups}) == 1:
        facts.append(seeds_text(groups))
    return facts


def _item(group: Group, key: str) -> str:
    """Write a setting, ``epochs 10``; empty for one that is off."""
    value = group.settings.get(key)
    word = _WORDS.get(key) or key.rpartition(".")[2].replace("_", " ")
    if key == "data.name":
        return f"{word} {group.data}"
    if key in ("data.holdout", "data.valid_limit") and group.held_out:
        return f"held-out examples {group.held_out:,}" if key == "data.holdout" else ""
    if key in ("data.train_limit", "data.valid_limit") and key in group.settings:
        return f"{word} all" if value is None else f"{word} at most {value:,}"
    if value in (None, "none", False) or (key == "data.holdout" and not value):
        return ""
    if value is True:
        return word
    return f"{word} {value:,}" if isinstance(value, int) else f"{word} {group.setting(key)}"
