"""Configurations, composed by Hydra of conf/ and a command line, and turned into checked plain dictionaries."""

import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fishexp.errors import FishexpError, first_line, nearest
from fishexp.run.identity import run_name
from fishexp.run.overrides import EXPERIMENT, TOP, Chosen, Components, Runs, runs_of
from fishexp.run.settings import ABOUT, GROUPS, Config, Settings, check_settings
from fishexp.run.yamls import CONF, check_choice, check_primary, homes_of, options_in

# end of the message about a file of experiment=NAME whose settings Hydra would put below the key experiment
_NO_PACKAGE = ".yaml: settings of a run begin with the line # @package _global_"
# overrides that Hydra composes -> what they make, which is remembered and must not be changed
Composed: TypeAlias = Callable[[tuple[str, ...]], DictConfig]
# gives a key a value, and chooses no yaml
_VALUE = re.compile(rf"\+{{0,2}}(({'|'.join(Settings.model_fields)})|({'|'.join((*GROUPS, 'recipes'))})\.[^/@=]*)=")


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
    if config["minutes"] is not None and not config["resume"]:
        config["resume"] = True  # or what the time sufficed for would be done again
    return config


def _recipe(key: str, method: str | None = None, *, _root_: DictConfig) -> Any:
    """Look up the default of ``key`` for this data set, model, method (or another) and task in conf/recipes.yaml."""
    recipes = _root_.recipes
    names = (_root_.data.name, _root_.data.get("module"), "other")
    recipe = next(recipes[name] for name in names if name in recipes)
    if isinstance(recipe, str):  # as for another data set
        recipe = recipes[recipe]
    if key not in recipe:
        raise FishexpError(f"conf/recipes.yaml has no {key} for data={_root_.data.name}")
    value = recipe[key]
    names = [_root_.model.name, method or _root_.method.name, _root_.data.get("task"), "other"]
    while isinstance(value, Mapping):
        value = next((value[name] for name in names if name in value), None)
    return value


def register_resolvers() -> None:
    """Make ``${recipe:KEY}``, ``${recipe:KEY,METHOD}`` and ``${run_name:}`` known to OmegaConf; may be called again."""
    OmegaConf.register_new_resolver("recipe", _recipe, replace=True)
    OmegaConf.register_new_resolver("run_name", lambda _root_: run_name(resolved(_root_)), replace=True)


class Command(NamedTuple):
    """Hold what a command line asks for, composed and checked.

    Attributes:
        hydra: Hydra, with the folders of yamls.
        name: Name of the primary configuration, which is conf/config.yaml unless ``--config-name`` says another.
        runs: Overrides of each run.
        configs: Configuration of each run.
    """

    hydra: Hydra
    name: str
    runs: Runs
    configs: list[Config]


def read_command(args: Namespace) -> Command:
    """Compose every run that the command line asks for, so that no mistake in it waits until after training.

    Args:
        args: Arguments as Hydra parsed them: ``overrides``, ``multirun``, ``config_dir``, ``config_name``.

    Raises:
        FishexpError: If a run cannot be composed, has unknown keys, or scalars out of range.
    """
    hydra, name = _hydra(args.config_dir), (args.config_name or "config").removesuffix(".yaml")
    check_primary(name, args.config_dir)

    composed = partial(_composed_of_conf, name) if args.config_dir is None else cache(partial(_composed, hydra, name))
    components = cache(partial(_components, composed, args.config_dir))
    homes = partial(homes_of, config_dir=args.config_dir)
    runs = runs_of(args.overrides, args.multirun, hydra.config_loader, components, homes)
    return Command(hydra, name, runs, [_config(composed, [*runs.hydra, *run]) for run in runs.overrides])


@cache
def _composed_of_conf(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """Compose a run of conf/ alone, which does not change while a process runs."""
    return _composed(_hydra(None), name, overrides)


def _components(composed: Composed, config_dir: str | None, overrides: tuple[str, ...]) -> Components:
    """Compose the components that overrides choose, to tell their options."""
    for group, _, choice in (override.partition("=") for override in overrides):
        if group in GROUPS:
            check_choice(group, choice, config_dir)
    cfg = composed(overrides)
    return {group: Chosen(cfg.hydra.runtime.choices[group], list(_keys(cfg, group))) for group in GROUPS}


def _hydra(config_dir: str | None) -> Hydra:
    """Open Hydra on conf/ and on a folder of the user's."""
    search_path = create_config_search_path(CONF)
    if config_dir is not None:
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise FishexpError(f"--config-dir {config_dir} is not a folder; it holds method/NAME.yaml and the like")
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    version.setbase("1.3")
    return Hydra("fishexp", ConfigLoaderImpl(search_path))


def launch(command: Command, job: Callable[[DictConfig], object], multirun: bool) -> None:
    """Have Hydra carry out the runs: by its launcher if there may be several, else here."""
    try:
        _launch(command, job, multirun)
    except (HydraException, OmegaConfBaseException) as error:
        raise _readable(error) from None


def _launch(command: Command, job: Callable[[DictConfig], object], multirun: bool) -> None:
    hydra, name, runs, _ = command
    first = [*runs.hydra, *runs.overrides[0]]
    if not multirun:
        hydra.run(name, job, first)
        return
    shared = hydra.compose_config(name, [*first, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, with_log_configuration=True)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(shared))
    launcher = Plugins.instance().instantiate_launcher(context, job, shared)
    for returned in launcher.launch(runs.overrides, 0):
        _ = returned.return_value  # raises what ended the run, if that was not caught


def shown(command: Command, part: str, package: str | None) -> str:
    """Write what ``--cfg`` shows: the configuration of each run, resolved, or the settings of Hydra itself.

    Args:
        part: ``job``, ``hydra`` or ``all``, which is both.
        package: Key of the part that is wanted, such as ``regime``; None for all of it.

    Raises:
        FishexpError: If there is no such key.
    """
    texts = []
    for overrides, config in zip(command.runs.overrides, command.configs, strict=True):
        content: dict[str, Any] = {} if part == "hydra" else config
        if part != "job":
            cfg = _composed(command.hydra, command.name, [*command.runs.hydra, *overrides])
            content = content | {"hydra": OmegaConf.to_container(cfg.hydra)}
        found = OmegaConf.select(OmegaConf.create(content), package) if package else OmegaConf.create(content)
        if found is None:
            raise FishexpError(f"--package {package}: no such key{nearest(str(package), list(content))}")
        texts.append(OmegaConf.to_yaml(found).rstrip() if OmegaConf.is_config(found) else str(found))
    return "\n---\n".join(texts)


def show_info(command: Command, what: str) -> None:
    """Print what ``--info`` asks for, of the first run."""
    command.hydra.show_info(what, command.name, [*command.runs.hydra, *command.runs.overrides[0]])


def show_hydra(args: Namespace) -> None:
    """Print Hydra's own help, or what a shell needs to complete commands."""
    hydra = _hydra(args.config_dir)
    if args.hydra_help:
        hydra.hydra_help(None, get_args_parser(), args)
        return
    try:
        hydra.shell_completion("config", args.overrides)
    except ValueError:
        raise FishexpError("--shell-completion takes install=SHELL or uninstall=SHELL: bash, fish or zsh") from None


def _composed(hydra: Hydra, name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a run, with Hydra's own part."""
    try:
        cfg = hydra.compose_config(name, list(overrides), RunMode.RUN, from_shell=False)
    except FishexpError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise _readable(error) from None
    for group in GROUPS:
        if group not in cfg.hydra.runtime.choices or not OmegaConf.is_dict(cfg.get(group)):
            raise FishexpError(f"--config-name {name} chooses no {group}; its first line is defaults: [config, _self_]")
    if cfg.hydra.mode is not None or cfg.hydra.sweeper.get("params"):
        raise FishexpError(f"--config-name {name}: hydra.mode and hydra.sweeper are not read; name values after -m")
    return cfg


def _config(composed: Composed, overrides: Sequence[str]) -> Config:
    """Compose a run, resolve it, and check its keys and scalars.

    Hydra takes a tenth of a second to compose the yamls that a run chooses, and runs of a sweep share a few choices;
    then it gives keys the values that they were told, as is done here for each run.
    """
    values = [text for text in overrides if _VALUE.match(text)]
    cfg = deepcopy(composed(tuple(text for text in overrides if not _VALUE.match(text))))
    try:
        ConfigLoaderImpl._apply_overrides_to_config([_parsed(text) for text in values], cfg)
        _check_keys(cfg)
        config = resolved(cfg)
    except FishexpError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _readable(error) from None
    check_settings(config)
    return config


@cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _check_keys(cfg: DictConfig) -> None:
    """Refuse keys that ``+key=value`` added: a component has the keys of its yaml and no others."""
    for key in cfg:
        if key == EXPERIMENT:
            name = cfg.hydra.runtime.choices[EXPERIMENT]
            raise FishexpError(f"experiment/{name}{_NO_PACKAGE}")
        if key not in (*TOP, "recipes", "hydra"):
            raise FishexpError(f"unknown key {key}{nearest(str(key), list(TOP))}")
    for group in GROUPS:
        known = [key for key in _keys(cfg, group) if key not in ABOUT]
        for key in cfg[group]:
            if key not in (*known, *ABOUT):
                none = f"; {group}={cfg.hydra.runtime.choices[group]} has no keys"
                full = nearest(f"{group}.{key}", [f"{group}.{name}" for name in known])
                raise FishexpError(f"unknown key {group}.{key}{full if known else none}")


def _keys(cfg: DictConfig, group: str) -> list[str]:
    """Return the keys in the yaml of the component that was chosen."""
    folders = [Path(source.path) for source in cfg.hydra.runtime.config_sources if source.schema == "file"]
    files = [folder / group / f"{cfg.hydra.runtime.choices[group]}.yaml" for folder in folders]
    return next((list(options_in(file)) for file in files if file.is_file()), [])


def _readable(error: Exception) -> FishexpError:
    """Turn an error of Hydra's into a line: what was given, what is wrong, what there is."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        missing = error.missing_cfg_file or ""
        group, _, choice = missing.rpartition("/") if missing.startswith("hydra/") else missing.partition("/")
        others = "; any other: model=torchvision model.arch=..., model=auto model.path=..." if group == "model" else ""
        return FishexpError(f"{group}={choice}: no such {group}{nearest(choice, list(error.options))}{others}")
    if match := re.match(r"In '(experiment/[^']+)': Could not override '\w+@experiment\.", str(error)):
        return FishexpError(f"{match[1]}{_NO_PACKAGE}")
    if match := re.search(r"Could not override '(?:\w+@\w+\.)?([\w.@]+)'", f"{error}\n{error.__cause__}"):
        if match[1] == EXPERIMENT:
            return FishexpError("experiment=NAME takes DIR/experiment/NAME.yaml: name the folder by --config-dir DIR")
        hydra = match[1].startswith("hydra")
        parent = match[1].rpartition(".")[0]
        hint = "; --cfg hydra shows all" if hydra else f"; did you mean {parent}?" if parent else "; --help shows all"
        return FishexpError(f"unknown key {match[1]}{hint}")
    if match := re.search(r"An item is already at '([\w.@]+)'", str(error)):
        return FishexpError(f"{match[1]} is there already; leave the + away")
    if match := re.search(r"Multiple values for (\w+)\.", str(error)):
        return FishexpError(f"{match[1]} has a value already; leave the + away")
    if isinstance(error, YAMLError):
        return FishexpError(" ".join(str(error).split()))
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) and error.__cause__ else error
    key = next((line.split()[-1] for line in str(cause).splitlines() if line.strip().startswith("full_key:")), None)
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", first_line(cause))
    return FishexpError(f"{key}: {text}" if key else text)
