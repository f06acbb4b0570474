"""Python sources whose token classes are planted in known coordinates of the rows."""

import functools
import textwrap

import numpy as np
import torch
from small_hosts import scaled_copy, text_subject

from saetools.evals.labelled import python_labeller
from saetools.evals.python_labels import CLASSES

N_CLASSES = len(CLASSES)


@functools.cache
def sources():
    template = textwrap.dedent(
        '''\
        import os
        # comment {i}
        class Thing{i}:
            """Doc {i}."""
            def method{i}(self, first: int) -> str:
                if self.size > {i}:
                    return call("text", {i})
        '''
    )
    return tuple(template.format(i=i) for i in range(40))


@functools.cache
def truth(document):
    text = sources()[document]
    return python_labeller(text, list(text))


def noise(document, positions):
    return np.random.default_rng(document).normal(size=(10_000, N_CLASSES))[positions]


def planted_rows(document, positions):
    """Coordinate c is 2 where class c holds and 0 elsewhere, with noise."""
    return torch.from_numpy(2.0 * truth(document)[positions] + 0.1 * noise(document, positions)).float()


def sparse_copy():
    """recon = x up to the threshold below which noise does not fire."""
    dictionary = scaled_copy(N_CLASSES, 1.0)
    with torch.no_grad():
        dictionary.b_enc_F.sub_(0.6)
    return dictionary


def planted_subject(make=planted_rows, dictionary=None):
    return text_subject(sources(), make, dictionary or sparse_copy())
