"""Random numbers as a pure function of (seed, purpose, counter): nothing depends on what was drawn before."""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, counter: int = 0) -> np.random.Generator:
    """A counter-based (Philox) generator keyed by sha256(seed, purpose, counter).

    Two calls with equal arguments give equal streams, on every machine and in every process; different purposes
    or counters give independent ones.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{counter}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def torch_seed(seed: int, purpose: str, counter: int = 0) -> int:
    """A 63-bit seed for `torch.Generator.manual_seed`, keyed like `generator`."""
    digest = hashlib.sha256(f"torch/{seed}/{purpose}/{counter}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
