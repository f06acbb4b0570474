"""Python sources whose token classes are planted in known coordinates of the rows."""

import functools
import textwrap

import numpy as np
import torch
from small_hosts import CharacterHost, scaled_copy, text_subject

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


@functools.cache
def document_noise(document):
    return np.random.default_rng(document).normal(size=(1000, N_CLASSES))


def noise(document, positions):
    return document_noise(document)[positions]


def planted_rows(document, positions):
    """Coordinate c is 2 where class c holds and 0 elsewhere, with noise."""
    return torch.from_numpy(2.0 * truth(document)[positions] + 0.1 * noise(document, positions)).float()


def sparse_copy():
    """recon = x up to the threshold below which noise does not fire."""
    dictionary = scaled_copy(N_CLASSES, 1.0)
    with torch.no_grad():
        dictionary.b_enc_F.sub_(0.6)
    return dictionary


def announcing_rows(document, positions):
    """Coordinate c is 2 where class c holds of the next character."""
    return planted_rows(document, np.minimum(positions + 1, len(truth(document)) - 1))


class Reader(CharacterHost):
    """Rows of its own are noise by character; coordinate c raises the characters that are often of class c."""

    def __init__(self):
        super().__init__()
        met, of_class = np.ones(128), np.zeros((128, N_CLASSES))
        for document, text in enumerate(sources()):
            np.add.at(met, [ord(c) for c in text], 1)
            np.add.at(of_class, [ord(c) for c in text], truth(document))
        self.U = torch.from_numpy(2 * of_class / met[:, None]).float()
        self.embedding = torch.randn(128, N_CLASSES, generator=torch.Generator().manual_seed(0))


def planted_subject(make=planted_rows, dictionary=None, host=None, host_batch=8):
    return text_subject(sources(), make, dictionary or sparse_copy(), host=host, host_batch=host_batch)
