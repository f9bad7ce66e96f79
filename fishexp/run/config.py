"""Configurations, composed by Hydra of conf/ and a command line, and turned into checked plain dictionaries."""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fishexp.errors import FishexpError, first_line, nearest
from fishexp.run.settings import ABOUT, GROUPS, Config, Settings, check_settings, run_name

_PACKAGE = Path(__file__).parents[1]
# in the wheel conf/ lies inside the package, in the repository beside it
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")


def resolved(cfg: DictConfig) -> Config:
    """Resolve every interpolation in a composed configuration, and leave out Hydra's own part and the recipes.

    Group by group, as the resolvers look into the whole: a copy without the recipes would not resolve.
    """
    config: Config = {
        str(key): OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
        for key in cfg
        if key not in ("hydra", "recipes")
    }
    if config["method"].get("ignores_keep"):
        config["keep"] = None  # so that the same run has the same name whatever keep says
    return config


def _recipe(key: str, _root_: DictConfig) -> Any:
    """Look up the default of ``key`` for this data set, model, method and task in conf/recipes.yaml."""
    recipes = _root_.recipes
    recipe = recipes.get(_root_.data.name, recipes.other)
    if key not in recipe:
        raise FishexpError(f"conf/recipes.yaml has no {key} for data={_root_.data.name}")
    value = recipe[key]
    names = [_root_.model.name, _root_.method.name, _root_.data.get("task"), "other"]
    while isinstance(value, Mapping):
        value = next((value[name] for name in names if name in value), None)
    return value


def register_resolvers() -> None:
    """Make ``${recipe:KEY}`` and ``${run_name:}`` known to OmegaConf; it may be called again."""
    OmegaConf.register_new_resolver("recipe", _recipe, replace=True)
    OmegaConf.register_new_resolver("run_name", lambda _root_: run_name(resolved(_root_)), replace=True)


def check_command_line(args: Namespace) -> list[Config]:
    """Compose every run that the command line asks for, so that no mistake in it waits until after training.

    Args:
        args: Arguments as Hydra parsed them: ``overrides``, ``multirun``, ``config_dir``.

    Returns:
        The runs' configurations, in the order in which a plain sweep starts them.

    Raises:
        FishexpError: If a run cannot be composed, has unknown keys, or scalars out of range.
    """
    folder = args.config_dir and Path(args.config_dir).absolute()
    if folder and not folder.is_dir():
        raise FishexpError(f"--config-dir {args.config_dir} is not a folder; it holds method/NAME.yaml and the like")
    search = [f"hydra.searchpath=['file://{folder}']"] if folder else []
    with initialize_config_dir(CONF, version_base="1.3"):
        return [_compose([*search, *overrides]) for overrides in _sweep(args.overrides, args.multirun)]


def _sweep(overrides: Sequence[str], multirun: bool) -> list[Sequence[str]]:
    """Return the overrides of each run: those of the command line, or the product of the values that a sweep names."""
    if not multirun:
        return [overrides]
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise _readable(error, overrides) from None
    return [run for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for run in batch]


def _compose(overrides: Sequence[str]) -> Config:
    """Compose a run, and check its keys and scalars."""
    try:
        cfg = compose("config", list(overrides), return_hydra_config=True)
        _check_keys(cfg)
        config = resolved(cfg)
    except FishexpError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise _readable(error, overrides) from None
    check_settings(config)
    return config


def _check_keys(cfg: DictConfig) -> None:
    """Refuse keys that ``+key=value`` added: a component has the keys of its yaml and no others."""
    top = [*Settings.model_fields, *GROUPS]
    for key in cfg:
        if key not in (*top, "recipes", "hydra"):
            raise FishexpError(f"unknown key {key}{nearest(str(key), top)}")
    folders = [Path(source.path) for source in cfg.hydra.runtime.config_sources if source.schema == "file"]
    for group, choice in cfg.hydra.runtime.choices.items():
        if group in GROUPS:
            file = next(file for folder in folders if (file := folder / group / f"{choice}.yaml").is_file())
            known = list(options_in(file))
            for key in cfg[group]:
                if key not in known:
                    raise FishexpError(f"unknown key {group}.{key}{_key_hint(group, str(key), choice, known)}")


def options_in(file: Path) -> dict[str, Any]:
    """Read the keys and values of a component's yaml, unresolved, and those that it takes from others in its folder."""
    own: Any = OmegaConf.to_container(OmegaConf.load(file))
    others = [name for name in own.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    return {key: value for name in others for key, value in options_in(file.parent / f"{name}.yaml").items()} | own


def _key_hint(group: str, key: str, choice: str, known: Sequence[str]) -> str:
    """Write the end of a message about an unknown key of a component: the key that resembles it, and all keys."""
    keys = [f"{group}.{name}" for name in known if name not in ABOUT]
    return nearest(f"{group}.{key}", keys) if keys else f"; {group}={choice} has no keys"


def _readable(error: Exception, overrides: Sequence[str]) -> FishexpError:
    """Turn an error of Hydra's into a line: what was given, what is wrong, what there is."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").partition("/")
        return FishexpError(f"{group}={choice}: no such {group}{nearest(choice, list(error.options))}")
    if match := re.search(r"Could not override '(?:\w+@\w+\.)?([\w.@]+)'", f"{error}\n{error.__cause__}"):
        return FishexpError(f"unknown key {match[1]}{_nearest_key(match[1], overrides)}")
    if empty := [override for override in overrides if override.startswith("=")]:
        return FishexpError(f"{empty[0]} is not key=value: the key is missing")
    if isinstance(error, OverrideParseException):
        return FishexpError(f"{error.override} is not key=value: {first_line(error)}")
    if isinstance(error, YAMLError):
        return FishexpError(" ".join(str(error).split()))
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) and error.__cause__ else error
    key = next((line.split()[-1] for line in str(cause).splitlines() if line.strip().startswith("full_key:")), None)
    return FishexpError(f"{key}: {first_line(cause)}" if key else first_line(cause))


def _nearest_key(key: str, overrides: Sequence[str]) -> str:
    """Write the end of a message about an unknown key, from the components that the command line chose."""
    group, _, rest = key.partition(".")
    if not rest or group not in GROUPS:
        return nearest(key, [*Settings.model_fields, *GROUPS])
    choices = [override for override in overrides if override.partition("=")[0] in (*GROUPS, "hydra.searchpath")]
    chosen = compose("config", choices)[group]
    return _key_hint(group, rest, chosen.name, [str(name) for name in chosen])
