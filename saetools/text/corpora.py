"""Which corpus a config means: the embedded one, a local path, or a data set of the hub."""

from saetools.config import CorpusConfig
from saetools.safeio import expanded
from saetools.text.base import Corpus
from saetools.text.stdlib import StdlibCorpus


def make_corpus(config: CorpusConfig) -> Corpus:
    """`stdlib`, else a local file or directory where one has that name, else a hub data set.

    Raises DataError where there is nothing of that name, or no network to look for it.
    """
    if config.name == "stdlib":
        return StdlibCorpus()
    from saetools.text.hub import hub_corpus, local_corpus

    path = expanded(config.name)
    if path.exists():
        return local_corpus(path, config.text_field, config.streaming)
    return hub_corpus(config)
