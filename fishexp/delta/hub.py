"""Deltas on the Hugging Face hub: pushed with a model card and what lies beside them, and loaded by their id."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fishexp.delta.delta import Delta
from fishexp.delta.model_folder import DELTA, own_files
from fishexp.errors import DeltaError, first_line
from fishexp.system.hub import fail_fast_offline

CARD = "README.md"  # where the hub looks for a card

_CARD = """\
---
library_name: fishexp
tags:
- fishexp
- sparse-delta
{base_model}---

# {name}

What training changed in {of}, as a delta of fishexp: new values for {changes:,} of {total:,} weights
({share:.3g} %), in {tensors} of {all_tensors} tensors, {size:,} bytes.

```python
import fishexp

delta = fishexp.delta.load_from_hub("{repo}")
undo = delta.apply_(base)  # base becomes the tuned model, bit for bit
undo.revert_()  # and back
```

It is refused on any other base than the one it was made of, and gives the tuned model to the bit:

| | SHA-256 of all tensors |
| --- | --- |
| base | `{before}` |
| result | `{after}` |
"""


def push_to_hub(file: str | Path, repo: str, *, base_model: str | None = None, private: bool = False) -> str:
    """Push a delta to a repository of models, which is made if there is none, in one commit.

    Args:
        file: The delta. The configuration and the tokenizer that lie beside it go along.
        repo: Its id, ``user/name``.
        base_model: Id of the model that it is for, so that the hub shows it there.
        private: Make a new repository private.

    Returns:
        Address of the commit.

    Raises:
        DeltaError: If ``file`` is no delta, or the hub cannot be reached, or refuses it.
        OSError: If a file cannot be read.
    """
    file = Path(file)
    delta = Delta.load(file)
    files: dict[str, bytes | Path] = {path.name: path for path in own_files(file.parent)}
    files |= {DELTA: file, CARD: card(delta, repo, file.stat().st_size, base_model).encode()}
    with _hub(repo, "so it is not pushed"):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(
            repo, [CommitOperationAdd(name, data) for name, data in files.items()], commit_message=f"{delta}"
        )
    return str(commit.commit_url)


def card(delta: Delta, repo: str, size: int, base_model: str | None) -> str:
    """Return the text of a model card: what the delta is, for what, and how to apply it."""
    total = sum(tensor.entries for tensor in delta.result.values())
    return _CARD.format(
        base_model=f"base_model: {base_model}\n" if base_model else "",
        name=repo.rpartition("/")[2],
        of=f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "its base",
        repo=repo,
        changes=delta.changes,
        total=total,
        share=100 * delta.changes / max(total, 1),
        tensors=len(delta.moved),
        all_tensors=len(delta.result),
        size=size,
        before=delta.before,
        after=delta.after,
    )


def load_from_hub(repo: str, *, revision: str | None = None) -> Delta:
    """Fetch the delta of a repository, or take it from the cache, and read it without trusting it.

    Args:
        repo: Its id, ``user/name``.
        revision: A branch, a tag or the hash of a commit; None for the newest.

    Raises:
        DeltaError: If it cannot be had, or is no delta.
    """
    with _hub(repo, "and the cache does not have it"):
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(repo, DELTA, revision=revision)
    return Delta.load(path)


@contextmanager
def _hub(repo: str, consequence: str) -> Iterator[None]:
    """Say in a line what the hub refuses, or that there is no network, with its consequence."""
    from huggingface_hub import constants, errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    fail_fast_offline()
    try:
        yield
    except errors.RepositoryNotFoundError:
        raise DeltaError(f"the hub has no model {repo}, or it is another's and private; {login}") from None
    except errors.RevisionNotFoundError:
        raise DeltaError(f"{repo} on the hub has no such revision") from None
    except errors.RemoteEntryNotFoundError:
        raise DeltaError(f"{repo} on the hub has no {DELTA}, so it is no delta") from None
    except errors.LocalTokenNotFoundError:
        raise DeltaError(f"the hub wants to know who pushes {repo}; {login}") from None
    except errors.HFValidationError as error:
        raise DeltaError(f"{repo!r} is no id of a model on the hub, user/name: {first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise DeltaError(f"the hub refuses {repo} (HTTP {status})" + f"; {login}" * (status in (401, 403))) from None
    except (
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of whichever client this version takes
    ):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "there is no answer"
        raise DeltaError(f"{repo}: the hub ({constants.ENDPOINT}) is out of reach ({why}), {consequence}") from None
