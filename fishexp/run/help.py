"""The page that ``--help`` prints, made from conf/ itself."""

from pathlib import Path

from fishexp.run.settings import GROUPS

# the page before and after what is read from conf/
_HEAD = """\
fishexp trains networks by moving a small, fixed set of their weights.

  python -m fishexp                                        1,797 digits on a small ResNet, in seconds
  python -m fishexp method=fish data=cifar10 keep=0.005    ResNet-34 on CIFAR-10
  python -m fishexp data=glue data.task=sst2 model=minilm  a pre-trained BERT on GLUE
  python -m fishexp -m method=fish,random seed=0,1,2       a sweep: one run for each combination
"""
_TAIL = """\
--cfg job prints a configuration without running it, --config-dir DIR adds options of your own,
--hydra-help lists Hydra's own flags.
"""


def help_page(folders: list[Path]) -> str:
    """Write the page: commands, groups with their options and keys, settings with their meaning.

    Args:
        folders: The folder conf/, and the folder that ``--config-dir`` names, if any.
    """
    lines = [_HEAD]
    for group in GROUPS:
        files = {file.stem: file for folder in folders for file in sorted((folder / group).glob("*.yaml"))}
        lines.append(f"{group}= {' | '.join(files)}")
        keys = dict.fromkeys(key for file in files.values() for key in _keys(file))
        lines += [f"    {group}.{key}" for key in keys]
    lines += ["", "settings:"]
    text = (folders[0] / "config.yaml").read_text()
    return "\n".join([*lines, *(f"  {line}" for line in _between(text, "keep:", "hydra:")), "", _TAIL])


def _between(text: str, first: str, last: str) -> list[str]:
    """Return the lines of ``text`` from the line that begins with ``first`` to the line before ``last``."""
    return text[text.index(f"\n{first}") + 1 : text.index(f"\n{last}")].rstrip().splitlines()


def _keys(file: Path) -> list[str]:
    """Return the keys of a component's yaml that are options, each as its line with its comment."""
    lines = [line for line in file.read_text().splitlines() if line[:1].isalpha()]
    return [line for line in lines if not line.startswith(("name:", "module:", "defaults:", "ignores_keep:"))]
