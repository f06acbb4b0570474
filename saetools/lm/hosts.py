"""Which host a config means: the embedded one, a local directory, or a model of the hub."""

from importlib import resources
from pathlib import Path

from saetools.config import HostConfig
from saetools.errors import DataError
from saetools.lm.base import Host
from saetools.safeio import expanded

EMBEDDED = "pycode"


def make_host(config: HostConfig, device: str) -> Host:
    """`pycode` is the packaged model, an existing directory is read from disk, other names are looked up at the hub.

    Each call loads a fresh model, since a bridge rewires the one it is given. Raises DataError where there is no
    such model or no network to look for it, FormatError where the directory holds no model that can be read.
    """
    from saetools.lm.bridge import BridgeHost  # transformer-lens takes 3 s to import

    if config.name == EMBEDDED:
        return BridgeHost(config, embedded_directory(), device)
    path = expanded(config.name)
    return BridgeHost(config, path if path.is_dir() else None, device)


def embedded_directory() -> Path:
    """Where the packaged model lies; DataError when this installation has none."""
    directory = Path(str(resources.files("saetools") / "assets" / EMBEDDED))
    if not (directory / "config.json").is_file():
        raise DataError(
            f"The embedded host {EMBEDDED!r} is not in this installation (no config.json in {directory}). Install the "
            "package with its assets, make them with scripts/train_demo_host.py, or set host.name to a directory."
        )
    return directory
