"""Networks that classify sentences, or predict a number for them: any of transformers with a classifier."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fishexp.errors import FishexpError, first_line
from fishexp.models import Model, Outline
from fishexp.models.labels import classes_of
from fishexp.system.hub import fail_fast_offline

log = logging.getLogger(__name__)


def load_classifier(
    path: str, classes: int, channels: int, *, pretrained: bool, activation_checkpointing: bool
) -> Model:
    """Load a network in float32 with a classifier of ``classes`` outputs, freshly initialised unless ``path`` has one.

    Its head is all that is outside the body, such as a pooler that no body comes with: it begins at random.

    Args:
        path: Folder or hub id.
        classes: Number of labels; 1 is a regression.
        channels: Must be 0: text.
        pretrained: If false, random weights in the shape that the config.json at ``path`` gives.
        activation_checkpointing: Recompute activations in the backward pass.

    Raises:
        FishexpError: If the data set is no text, nothing can be loaded from ``path``, its classifier has another number
            of labels or is for another type of problem, or it is not known which weights are its classifier.
    """
    _check_text(channels)
    network, tokenizer, head, complete, names = _load(path, classes, pretrained)
    if activation_checkpointing:
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        try:
            enable({"use_reentrant": False})  # the first is the newer name: with it the second warns
        except ValueError as error:
            raise FishexpError(f"model.activation_checkpointing=true: {first_line(error)}") from None

    def save(folder: Path, *, weights: bool = True) -> None:
        with _quiet():
            (network if weights else network.config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    def name_classes(names: Sequence[str]) -> None:
        network.config.id2label = dict(enumerate(names))
        network.config.label2id = {name: i for i, name in enumerate(names)}

    place = str(Path(path).resolve()) if Path(path).exists() else path
    return Model(network, head, save, place if complete else None, tokenizer, names, name_classes)


def outline_classifier(path: str, classes: int | None, channels: int, *, pretrained: bool) -> Outline:
    """Build a classifier without weights, from the config.json at ``path``, which the hub is asked for if need be.

    Args:
        classes: Number of labels; None if nobody knows: as many as the classifier at ``path`` has, or two.

    Raises:
        FishexpError: As :func:`load_classifier` does, but for what only weights or the tokenizer tell.
    """
    from transformers import AutoModelForSequenceClassification

    _check_text(channels)
    _check_source(path)
    try:
        with _quiet():
            config, _ = _config(path, classes, pretrained)
            with torch.device("meta"):
                network = AutoModelForSequenceClassification.from_config(
                    config, dtype=torch.float32, trust_remote_code=False
                )
    except FishexpError:
        raise
    except Exception as error:  # transformers raises many kinds
        raise FishexpError(f"model.path={path} cannot be loaded: {first_line(error)}") from None
    return Outline(network, _head(path, network, config.num_labels))


def _check_text(channels: int) -> None:
    if channels:
        raise FishexpError("this model reads text, but the data set is images; choose a ResNet, such as model=resnet18")


def _check_source(source: str) -> None:
    """Refuse a path that is no folder, and do not wait for a hub that cannot be reached."""
    if not Path(source).is_dir():
        if source.startswith((".", "/", "~")) or source.count("/") > 1:  # a hub id is name or owner/name
            raise FishexpError(f"model.path={source} is not a folder")
        fail_fast_offline()


def _config(source: str, classes: int | None, pretrained: bool) -> tuple[Any, Any]:
    """Load the configuration of a network, and give it as many labels as there are classes.

    Returns:
        It, and the names that it had for its own labels, by int, whatever the annotation of transformers says.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
    own = config.num_labels if pretrained and _has_head(config) else 2
    count: int = own if classes is None else classes
    problem = "regression" if count == 1 else "single_label_classification"
    if pretrained:
        _check_head(source, config, count, problem)
    id2label = config.id2label
    config.num_labels, config.problem_type = count, problem
    return config, id2label


def _load(
    source: str, classes: int, pretrained: bool
) -> tuple[Any, Any, tuple[str, ...], bool, tuple[str, ...] | None]:
    """Load network and tokenizer.

    Returns:
        Both, the names of the head's parameters, whether all weights outside it are those of ``source``, and the names
        of the classes in the order of a classifier that came from there.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _check_source(source)
    try:
        with _quiet():
            config, id2label = _config(source, classes, pretrained)
            label2id = config.get_config_dict(source)[0].get("label2id")  # AutoConfig drops it without id2label
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
    head = _head(source, network, classes)
    for name, found, wanted in sorted(info.get("mismatched_keys", ())):
        shapes = f"{tuple(found)}, by its config.json and the data set it is {tuple(wanted)}"
        raise FishexpError(f"model.path={source}: {name} has shape {shapes}")
    _fit_tokenizer_(source, tokenizer, network)
    missing = set(info.get("missing_keys", ()))
    loaded = pretrained and not set(head) <= missing
    lacking = sorted(missing if loaded else missing - set(head))
    if lacking:
        log.warning("model.path=%s lacks %d tensors, %s first: they start at random", source, len(lacking), lacking[0])
    names = classes_of(id2label, label2id, source) if loaded and classes > 1 else None
    return network, tokenizer, head, pretrained and not lacking, names


def _head(source: str, network: Any, classes: int) -> tuple[str, ...]:
    """Return the names of the parameters outside the body, the classifier's last; refuse a network that has no such."""
    body = {id(parameter) for parameter in network.base_model.parameters()}
    names = tuple(name for name, parameter in network.named_parameters() if id(parameter) not in body)
    last = network.get_submodule(names[-1].rpartition(".")[0]) if names else None
    if not isinstance(last, nn.Linear) or last.out_features != classes:
        raise FishexpError(
            f"model.path={source} is a {type(network).__name__}, of which it is not known what its classifier is; "
            "give one whose last layer outside its body is a Linear"
        )
    return names


def _fit_tokenizer_(source: str, tokenizer: Any, network: Any) -> None:
    """Have a tokenizer give what the network takes: inputs, padding on the right, and as many tokens as it reads."""
    config, embeddings = network.config, network.get_input_embeddings()
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # without files transformers makes one that knows no word
        raise FishexpError(f"model.path={source} holds no tokenizer; its tokenizer.json or vocab.txt is missing")
    if tokenizer.pad_token_id is None:
        padding = config.pad_token_id if config.pad_token_id is not None else tokenizer.eos_token_id
        if padding is None:
            raise FishexpError(
                f"model.path={source}: its tokenizer has no pad_token; name one in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    if config.pad_token_id is None:  # by which those without a class token find the last one
        config.pad_token_id = tokenizer.pad_token_id
    if (largest := max(tokenizer.get_vocab().values())) >= embeddings.num_embeddings:
        raise FishexpError(
            f"model.path={source}: its tokenizer gives numbers up to {largest}, its embeddings are "
            f"{embeddings.num_embeddings}; is it the tokenizer of another model?"
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    takes = set(inspect.signature(network.forward).parameters)
    if getattr(config, "type_vocab_size", 0) < 2:
        takes.discard("token_type_ids")
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in takes]
    tokenizer.model_max_length = min(tokenizer.model_max_length, _longest(network))


def _longest(network: Any) -> int | float:
    """Return how many tokens the positions of a network reach; infinity where nothing limits them."""
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.num_embeddings - module.padding_idx - 1  # as in RoBERTa: the first position follows it
    return getattr(network.config, "max_position_embeddings", None) or float("inf")


def _has_head(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def _check_head(source: str, config: Any, classes: int, problem: str) -> None:
    """Refuse a classifier, if the model has one, of another number of labels or for another type of problem."""
    if not _has_head(config):
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
