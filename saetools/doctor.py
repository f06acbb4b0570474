"""What a bug report needs: versions, devices, memory, disk, and whether the parts that are optional are there."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from saetools import __version__

PACKAGES = (
    *("torch", "numba", "triton", "transformer-lens", "transformers", "datasets", "safetensors", "numpy", "pydantic"),
    *("jsonargparse", "plotly", "dash", "wandb"),
)


def facts() -> list[tuple[str, str]]:
    """(what, found) of everything worth knowing, as text."""
    import psutil
    import torch

    from saetools.training.environment import available_cores

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(Path.cwd())
    found = [
        ("saetools", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((name, _version(name)) for name in PACKAGES),
        ("cores", str(available_cores())),
        ("torch threads", str(torch.get_num_threads())),
        ("memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"),
        ("disk here", f"{disk.free / 1e9:.1f} of {disk.total / 1e9:.1f} GB free"),
        ("hub", "offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") == "1" else "online allowed"),
    ]
    found += [("cuda", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())] or [("cuda", "none")]
    found.append(("mps", "yes" if torch.backends.mps.is_available() else "none"))
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
