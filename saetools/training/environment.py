"""Where a run computes: device, threads and versions. Runs agree bit for bit only where all of these do."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import saetools
from saetools.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device of `run.device`, on which the host runs: auto is cuda, else cpu. ConfigError where it is not there.

    auto leaves Apple's GPUs out: torch gives wrong results on them in some versions (transformer-lens warns of it too).
    """
    present = {"cuda": torch.cuda.is_available(), "cpu": True, "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    if not present[name]:
        raise ConfigError(f"run.device is {name}, but torch {torch.__version__} finds no such device here. Use auto.")
    return torch.device(name)


def dictionary_device(host: torch.device) -> torch.device:
    """Where a dictionary lies whose host is on `host`: beside it, but on the CPU where that is an Apple GPU.

    Those have no float64, in which sums, thresholds and figures are kept. The memory is the same.
    """
    return torch.device("cpu") if host.type == "mps" else host


def set_threads(n: int | None) -> int:
    """Let torch, and so the compiled kernels, use n CPU threads (None: all cores of this process); their number."""
    n = n or available_cores()
    torch.set_num_threads(n)
    return n


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def environment(provider: str, device: torch.device) -> dict[str, str | int]:
    """What a checkpoint is bit-exact under, for comparison on resume. `provider` is the step's (fused or plain)."""
    return {
        "provider": provider,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        **({"cpu": cpu_name()} if device.type == "cpu" else {}),
        **versions(),
    }


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the CPU and the vector instructions that torch uses: two makers' sums differ with the same ones."""
    model = platform.processor() or platform.machine()
    if info.exists():
        lines = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line]
        fields = {key.strip(): value.strip() for key, value in lines}
        if "model name" in fields:
            model = f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "saetools": saetools.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **({"numba": importlib.metadata.version("numba")} if importlib.util.find_spec("numba") else {}),
    }


def git_commit() -> str | None:
    """Commit of the saetools checkout, with `+changes` where files differ; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
