"""The settings of a run: its scalars and its components. Neither torch nor Hydra is needed."""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Unpack, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from fishexp.errors import FishexpError, how_to_install, nearest
from fishexp.masks.budget import check_keep

# fully resolved, plain Python
Config: TypeAlias = dict[str, Any]

# group -> (folder of its modules, names of functions: a component is the first that its module has)
GROUPS = {
    "data": ("data", ("load",)),
    "model": ("models", ("build",)),
    "method": ("methods", ("scores", "mask", "adapt")),
    "regime": ("regimes", ("train",)),
}
# keys of a component's yaml that are about the component, not for its function
ABOUT = ("name", "module", "ignores_keep", "needs_regime")
# name in a component's module of a TypedDict: settings in its yaml that others use, before or after its function
BESIDE = "RUN_SETTINGS"
# name in a regime's module of a constant: whether processes that torchrun starts train one model together
DATA_PARALLEL = "DATA_PARALLEL"
# name in a regime's module of a constant: whether it can take the best epoch, and stop before the last
CHOOSES_EPOCH = "CHOOSES_EPOCH"
# keys of a regime that say how an epoch is chosen
EPOCH_CHOICE = ("patience", "best", "metric", "validation_fraction")
# CPU threads for each core, at most: far more than any use, and fewer than a machine cannot start
MAX_THREADS = 64
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Settings(BaseModel):
    """Hold the scalars beside the groups, checked; conf/config.yaml says what each means."""

    model_config = _STRICT

    keep: float | None
    seed: Annotated[int, Ge(0), Lt(2**62)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["fp32", "bf16"]
    decay: Literal["kept", "all"]
    compat: Literal["none", "fish"]
    threads: Annotated[int, Ge(1)] | None
    wandb: Literal["disabled", "offline", "online"]
    tensorboard: bool
    cuda_graphs: bool
    outputs: str
    records: str
    resume: Literal["strict"] | bool
    minutes: Annotated[float, Gt(0)] | None
    snapshot_minutes: Annotated[float, Ge(0)]
    snapshot_keep: Annotated[int, Ge(1)]
    debug: bool
    plan: bool


def check_settings(config: Mapping[str, Any]) -> Settings:
    """Check the scalars of a configuration.

    Raises:
        FishexpError: If a scalar is unknown, missing, of the wrong type or out of range.
    """
    settings = _checked(Settings, {key: value for key, value in config.items() if key not in GROUPS}, "")
    if empty := [key for key in ("outputs", "records") if not getattr(settings, key).strip()]:
        raise FishexpError(f"{empty[0]}= is empty, as with a variable that is not set; give a path, or leave it away")
    for group in GROUPS:
        _check_name(group, config[group]["name"])
    if settings.keep is not None:
        check_keep(settings.keep)
    elif not config["method"].get("ignores_keep"):
        raise FishexpError(f"method={config['method']['name']} needs keep, the fraction of all weights that may move")
    method, regime = config["method"], config["regime"]["name"]
    if (needs := method.get("needs_regime", regime)) != regime:
        raise FishexpError(f"method={method['name']} needs regime={needs}, got regime={regime}")
    cores = os.cpu_count() or 1
    if settings.threads is not None and settings.threads > MAX_THREADS * cores:
        raise FishexpError(
            f"threads={settings.threads}: this machine has {cores} cores; give at most {MAX_THREADS * cores}"
        )
    return settings


def _check_name(group: str, name: Any) -> None:
    """Refuse a name of a component that names no folder of runs."""
    if not isinstance(name, str):
        raise FishexpError(f"{group}.name={name} should be a text; quote it: '{group}.name=\"{name}\"'")
    if not name.strip() or name.startswith((".", "/")):
        raise FishexpError(f"{group}.name={name} is a part of the run's folder, and does not begin with . or /")


class Component(NamedTuple):
    """Hold what a group of the configuration stands for.

    Attributes:
        name: What the configuration named: ``fish``, or a module of the user's such as ``mine.fish``.
        offers: Name of the function in the module; one of the names in ``GROUPS``.
        function: The function, with its options bound.
    """

    name: str
    offers: str
    function: Callable[..., Any]


def component(group: str, options: Mapping[str, Any]) -> Component:
    """Find the function that ``options["name"]`` stands for, and bind the other options to it.

    ``name: fish`` stands for ``fishexp.methods.fish``. A name with a dot, or of no module of ours, is imported as it
    stands. Options that the module declares as ``RUN_SETTINGS`` are checked and not bound.

    Args:
        group: A key of ``GROUPS``.
        options: The component's yaml after overrides. ``module`` names the module if it is not ``name``.

    Raises:
        FishexpError: If there is no such module, or its function does not take these options.
    """
    name = options.get("module", options["name"])
    module, offers = component_module(group, options)
    function = getattr(module, offers)
    own, beside = options_of(function), _fields(getattr(module, BESIDE, None))
    given = {key: value for key, value in options.items() if key not in ABOUT}
    _checked(create_model(f"{group} options", __config__=_STRICT, **own, **beside), given, f"{group}.")
    if group == "regime":
        _check_epoch_choice(module, options)
    return Component(name, offers, partial(function, **{key: given[key] for key in given if key in own}))


def _check_epoch_choice(module: ModuleType, regime: Mapping[str, Any]) -> None:
    """Refuse to choose an epoch where there is none to choose, and what is said of a choice that is not made."""
    if not chooses_epoch(regime):
        if set(EPOCH_CHOICE) <= regime.keys() and regime["metric"] is not None:
            raise FishexpError(
                f"regime.metric={regime['metric']} says by what an epoch is better; add regime.best=true or "
                "regime.patience=2"
            )
        return
    wanted = "regime.best=true" if regime["best"] else f"regime.patience={regime['patience']}"
    if not getattr(module, CHOOSES_EPOCH, False):
        raise FishexpError(f"{wanted}: regime={regime['name']} trains all its epochs and takes the last; leave it out")
    if regime["epochs"] == 0:
        raise FishexpError(f"{wanted}: regime.epochs=0 trains no epoch to choose; leave it out")


def component_module(group: str, options: Mapping[str, Any]) -> tuple[ModuleType, str]:
    """Import the module of a component, and tell which of the functions in ``GROUPS`` it has.

    Raises:
        FishexpError: If there is no such module, or it has none of them.
    """
    name = options.get("module", options["name"])
    module = _module(group, name)
    _, functions = GROUPS[group]
    offers = next((function for function in functions if hasattr(module, function)), None)
    if offers is None:
        raise FishexpError(f"{group}={name}: the module {module.__name__} has no function {' or '.join(functions)}")
    return module, offers


def is_data_parallel(regime: Mapping[str, Any]) -> bool:
    """Tell whether processes that torchrun starts train one model together in this regime, of a resolved config."""
    return getattr(component_module("regime", regime)[0], DATA_PARALLEL, False)


def chooses_epoch(regime: Mapping[str, Any]) -> bool:
    """Tell whether a run with these options of its regime takes its best epoch, or stops where none is better."""
    return set(EPOCH_CHOICE) <= regime.keys() and (bool(regime["best"]) or regime["patience"] is not None)


def is_ours(group: str, name: str) -> bool:
    """Tell whether a component's module is one of this package."""
    return name.isidentifier() and (Path(__file__).parents[1] / GROUPS[group][0] / f"{name}.py").is_file()


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return name -> (type, default) of a function's keyword-only arguments, also of ``**options: Unpack[...]``."""
    hints = get_type_hints(function, include_extras=True)
    options: dict[str, Any] = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            options[key] = hints.get(key, Any), ... if parameter.default is parameter.empty else parameter.default
        if parameter.kind is parameter.VAR_KEYWORD and get_origin(hints.get(key)) is Unpack:
            options |= _fields(*get_args(hints[key]))
    return options


def _fields(typed_dict: type | None) -> dict[str, Any]:
    """Return name -> (type, default) of the keys of a TypedDict, none of which has a default."""
    hints = {} if typed_dict is None else get_type_hints(typed_dict, include_extras=True)
    return {name: (hint, ...) for name, hint in hints.items()}


def _module(group: str, name: str) -> Any:
    """Import the module of a component, from this package or from elsewhere."""
    folder, _ = GROUPS[group]
    inside = f"fishexp.{folder}.{name}"
    for candidate in (name,) if "." in name else (inside, name):
        try:
            return importlib.import_module(candidate)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{candidate}.".startswith(f"{error.name}."):
                hint = how_to_install(error) or f"{candidate} needs {error.name}, which is not installed"
                raise FishexpError(f"{group}={name}: {hint}") from None
        except (SyntaxError, ImportError) as error:
            raise FishexpError(f"{group}={name}: {candidate} cannot be imported: {error}") from None
    raise FishexpError(
        f"{group}={name}: neither {inside} nor a module {name} can be imported; is its folder on PYTHONPATH?"
    )


def _checked(model: type[BaseModel], values: Mapping[str, Any], prefix: str) -> Any:
    """Check values against a model of pydantic's, and put the first thing that is wrong in a line."""
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            message = f"unknown key {prefix}{key}{nearest(key, list(model.model_fields))}"
        elif first["type"] == "missing":
            message = f"{prefix}{key} has no value; "
            message += (
                f"the function takes it, and its yaml lacks it: add {key}: ... to it" if prefix else f"give {key}=..."
            )
        else:
            message = f"{prefix}{key}={first['input']} {first['msg'].removeprefix('Input ')}"
            if first["input"] is None:
                message = f"{prefix}{key} has no default here; give {prefix}{key}=..."
            elif key == "device":
                message += "; gpu=0 is cuda on that GPU"
            elif first["type"] == "string_type":
                text = str(first["input"]).replace("'", "")
                message += f"; if it is one, quote it: '{prefix}{key}=\"{text}\"'"
        raise FishexpError(message) from None
