"""What the Hugging Face hub says about a name: found at which commit, or a clear error within seconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saetools.errors import DataError

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class HubCommit:
    """The commit that a name and revision mean, and whether the hub itself said so or the local cache."""

    commit: str
    online: bool


def find_commit(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> HubCommit:
    """Ask the hub, or the local cache where the hub cannot be reached or HF_HUB_OFFLINE is set.

    Raises DataError when `name` is no hub name, the hub does not have it, or it is neither reachable nor cached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import validate_repo_id

    what = "model" if kind == "model" else "data set"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(
            f"{name!r} is not on this machine: there is no such file or directory, and a name at the hub would be NAME "
            "or ORGANISATION/NAME."
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise DataError(f"{name!r} is neither a path on this machine nor a name that the hub allows.") from error
    if constants.HF_HUB_OFFLINE:
        return HubCommit(_cached_commit(name, kind, revision, "HF_HUB_OFFLINE is set"), online=False)
    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS)
    except GatedRepoError as error:
        raise DataError(
            f"The {what} {name!r} is gated: accept its terms on the hub and log in with a token."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise DataError(f"The hub has no {what} {name!r}{at}, nor is it a path on this machine.") from error
    except Exception as error:  # the class of transport errors differs between versions of huggingface_hub
        return HubCommit(_cached_commit(name, kind, revision, f"no answer ({error})"), online=False)
    if info.sha is None:
        raise DataError(f"The hub names no commit for the {what} {name!r}.")
    return HubCommit(info.sha, online=True)


def _cached_commit(name: str, kind: Literal["model", "dataset"], revision: str | None, reason: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    what = "model" if kind == "model" else "data set"
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)).name
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"{name!r} is no path on this machine, so it was looked for at the Hugging Face hub, which cannot be "
            f"reached: {reason}; there is no downloaded copy of such a {what} either. Connect to the network, "
            f"or name a local directory{' or pycode' if kind == 'model' else ', a local file or stdlib'}."
        ) from error
