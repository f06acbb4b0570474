"""Dictionaries on the Hugging Face hub: fetched file by file from `hf://...`, and saved there with a model card.

Only files that a layout can consist of are fetched, of one directory; nothing is unpickled here (see `pt.py`). What was
fetched once is found again without a network, in huggingface_hub's cache.
"""

import glob
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from saetools import atomic
from saetools.errors import FormatError, RunError
from saetools.formats.base import USUAL
from saetools.formats.card import model_card
from saetools.formats.load import HUB, layout_at, load_path
from saetools.formats.native import load_unfolded, save_dictionary
from saetools.formats.pt import PT_SUFFIXES, WEIGHT_SUFFIXES, not_allowed
from saetools.formats.run import DICTIONARY, read_newest
from saetools.records import EvalRecord
from saetools.safeio import expanded, read_json

GRAMMAR = f"{HUB}organisation/repository[/directory][@revision]"
SUFFIXES = (".safetensors", ".json", ".npz", ".yaml")
INNER = (DICTIONARY, "checkpoints")
"""Directories whose files belong to the directory above them."""
CARD, EVALUATION = "README.md", "eval.json"
SECONDS = 10
MOST_NAMED = 20

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """What an `hf://` source names."""

    repository: str
    inside: str  # directory or file in the repository; empty: its root
    revision: str | None


def place_of(source: str) -> Place:
    """The parts of an `hf://` source; FormatError where it is none.

    >>> place_of("hf://me/saes/layer2@main")
    Place(repository='me/saes', inside='layer2', revision='main')
    """
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)((?:/[^/@\0\\]+)*)/?(?:@([\w./-]+))?", source)
    if found is None or ".." in source.split("/") or ".." in (found[3] or "") or "." in found[2].split("/"):
        raise FormatError(f"{source!r} is no place on the hub. Write {GRAMMAR}.")
    return Place(found[1], found[2].strip("/"), found[3])


def fetched(source: str, allow_pt: bool) -> Path:
    """The local path of a source on the hub, downloaded where it is not in the cache or has changed there.

    Raises FormatError where there is no such place, or no dictionary in it, naming what is there.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = place_of(source)
    try:
        info = HfApi().model_info(place.repository, revision=place.revision, timeout=SECONDS)
        names = [file.rfilename for file in info.siblings or []]
        patterns = [glob.escape(name) for name in chosen(names, place, allow_pt)]
        return (
            Path(snapshot_download(place.repository, revision=place.revision, allow_patterns=patterns)) / place.inside
        )
    except FormatError:
        raise
    except GatedRepoError as error:
        raise FormatError(f"{place.repository} is gated: accept its terms on the hub and log in.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FormatError(f"the hub has no {place.repository} at {place.revision or 'its main revision'}.") from error
    except Exception as error:  # the class of transport errors differs between versions of huggingface_hub
        root = _cached(place)
        if root is None:
            raise FormatError(
                f"{source} could not be fetched ({type(error).__name__}), and there is no downloaded copy of it."
            ) from error
        log.warning("the hub cannot be reached (%s): %s is read from the cache", type(error).__name__, source)
        return root / place.inside


def _cached(place: Place) -> Path | None:
    """The newest downloaded revision of a place that has it; None where nothing was downloaded."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    revisions = [
        revision
        for repository in repositories
        if repository.repo_type == "model" and repository.repo_id == place.repository
        for revision in repository.revisions
        if place.revision is None or place.revision in (revision.commit_hash, *revision.refs)
        if (revision.snapshot_path / place.inside).exists()
    ]
    newest = max(revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified), default=None)
    return newest.snapshot_path if newest else None


def chosen(names: Sequence[str], place: Place, allow_pt: bool) -> list[str]:
    """The files of a repository that the dictionary at a place can consist of; FormatError where there is none.

    The files directly in its directory (and in `dictionary/` and `checkpoints/` there); of a place that is a file, that
    and the configs beside it, above it where it is one of those two.
    """
    at = f"{HUB}{place.repository}{'/' if place.inside else ''}{place.inside}"
    at_revision = f"{at}@{place.revision}" if place.revision else at
    suffixes = SUFFIXES + (PT_SUFFIXES if allow_pt else ())
    if place.inside in names:
        if place.inside.endswith(PT_SUFFIXES) and not allow_pt:
            raise not_allowed(at_revision, "is a pickle (.pt)")
        folder = PurePosixPath(place.inside).parent
        folders = {folder, folder.parent} if folder.name in INNER else {folder}
        beside = [n for n in names if PurePosixPath(n).parent in folders and n.endswith((".json", ".yaml"))]
        return [place.inside, *beside]
    prefix = f"{place.inside}/" if place.inside else ""
    inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    own = [name for name in inner if "/" not in name or name.split("/")[0] in INNER]
    found = [prefix + name for name in own if name.endswith(suffixes)]
    weights = [name for name in own if name.endswith(WEIGHT_SUFFIXES) and "/" not in name]
    pickles = [name for name in weights if name.endswith(PT_SUFFIXES)]
    if pickles == weights != [] and own == inner and not allow_pt:
        raise not_allowed(at_revision, f"has its weights in a pickle ({pickles[0]})")
    if found and len(weights) <= 2:  # weights, and the optimizer or sparsity beside them
        return found
    below = sorted({name.split("/")[0] + "/" for name in inner if "/" in name} | set(weights))
    if not below and not found:
        raise FormatError(f"{at} does not exist, or holds no dictionary.")
    more = f" and {len(below) - MOST_NAMED} more" if len(below) > MOST_NAMED else ""
    raise FormatError(f"{at} holds several. Name one of: {', '.join(below[:MOST_NAMED])}{more}")


def push(source: Path | str, destination: str, private: bool = True, message: str | None = None) -> str:
    """Save the dictionary at `source` (a run, a dictionary directory, or another library's) to the hub; its address.

    `destination`: `hf://organisation/repository[/directory]`; the repository is made where it does not exist, private
    unless said otherwise. With it goes README.md, a card of what it is and how good, from the run's records
    (`eval.json`). Raises FormatError, MismatchError, and RunError where the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    place, path = place_of(destination), expanded(source)
    with tempfile.TemporaryDirectory(prefix="saetools-push-") as made:
        directory = Path(made) / "dictionary"
        write_with_card(path, directory, f"{HUB}{place.repository}{'/' if place.inside else ''}{place.inside}")
        api = HfApi(library_name="saetools")
        try:
            api.create_repo(place.repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=place.repository,
                folder_path=directory,
                path_in_repo=place.inside or None,
                revision=place.revision,
                commit_message=message or f"Add a dictionary ({path.name})",
            )
        except Exception as error:  # of transport or of the hub: classes differ between versions
            said = " ".join(str(error).split())[:200]
            raise RunError(
                f"{destination} could not be saved: {said}. Check the name, `hf auth login` and the network."
            ) from error
    return str(commit.commit_url)


def write_with_card(source: Path, directory: Path, address: str) -> None:
    """Write a dictionary of ours, bit for bit as it was trained, with its card, to a new directory."""
    _write_ours(source, directory, {})
    dictionary = load_path(directory, USUAL)
    atomic.write_text(directory / CARD, model_card(dictionary, _records(source), address))


def kept(source: str, under: Path) -> Path:
    """A copy of a dictionary on the hub as ours, laid out as a run, for work that leaves results beside it.

    It stands in `under`/organisation/repository[/directory]@commit, and is made where it is not there yet: another
    commit is another copy. Raises FormatError as `load` does, RunError where it cannot be written.
    """
    place, path = place_of(source), fetched(source, allow_pt=False)
    commit = (path.parents[place.inside.count("/")] if place.inside else path).name  # of the snapshot in the cache
    run = under / f"{place.repository}{'/' if place.inside else ''}{place.inside}@{commit[:12]}"
    if not (run / DICTIONARY).exists():
        _write_ours(path, run / DICTIONARY, {"source": source, "commit": commit})
    return run


def _write_ours(source: Path, directory: Path, said: Mapping[str, str]) -> None:
    """Write the dictionary at a path in our format; one of ours bit for bit as it was trained."""
    layout, source = layout_at(source)
    if layout.name in ("run", "saetools"):
        stored = read_newest(source, load_unfolded) if layout.name == "run" else load_unfolded(source)
        record = stored.record
        provenance = {**_portable(record.provenance), **said}
        save_dictionary(stored.dictionary, directory, record.spec, record.calibration, provenance, record.scale)
    else:
        read = load_path(source, USUAL)
        save_dictionary(read, directory, read.spec, read.calibration, {**read.provenance, **said}, scale=1.0)


def _portable(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the place of the run on this machine, which is nobody's business and no place on another's."""
    config = provenance.get("config")
    if not isinstance(config, dict) or not isinstance(run := config.get("run"), dict) or "dir" not in run:
        return provenance
    return {**provenance, "config": {**config, "run": {**run, "dir": f"runs/{Path(str(run['dir'])).name}"}}}


def _records(path: Path) -> list[EvalRecord]:
    """The evaluation of a run, or of the run that a dictionary lies in; none where it was not evaluated."""
    file = next((at / EVALUATION for at in (path, path.parent) if (at / EVALUATION).is_file()), None)
    if file is None:
        return []
    try:
        return [EvalRecord.model_validate(entry) for entry in read_json(file)]
    except (ValueError, TypeError) as error:
        raise FormatError(f"{file} does not hold evaluation records: {' '.join(str(error).split())[:200]}") from error
