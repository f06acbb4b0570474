"""Can a feature be explained? Scores that need no outside model.

For a sample of features that fire in enough contexts (windows), from a uniform sample of those contexts:

    token_purity      1 - H / log2(n): H is the entropy, in bits, of the peak tokens of the feature's top contexts
                      (greatest peaks of |value|, one for each 4 + 1 + 3 tokens around a peak), n their number; 1:
                      always the same token. bigram_purity: of (token before, token);
                      class_purity: of the set of labelled classes at the peak (Python text only)
    ..._purity_chance the same for n tokens drawn uniformly from the corpus
    <judge>_detection AUC of a judge telling contexts in which the feature fires from ones in which it does not, after
                      explaining the feature from other contexts; 0.5 is chance
    <judge>_fuzzing   AUC of telling the firing tokens of a context marked from as many others marked

Contexts are drawn by hash of the window's document and position. Means over features, intervals over features. Figures
of labelled classes are of labelled text alone: null where no text is Python.
Judges: `ngram` and `class` (judges.py); pass others to `Interpretability(scorers=[...])`. Detection and fuzzing: Paulo
et al. 2024 (arXiv 2410.13928), there judged by a language model and as accuracy; an AUC of 0/1 verdicts is their
balanced accuracy.

Cost: one encode per row and a few hundred texts per feature to judge. Cannot tell: meanings beyond single tokens and
labelled classes; what the judges miss counts against the feature. True marks of fuzzing hold the middle of the
context, for which it was drawn, and false ones never do: a judge must not go by the place of marks.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from pydantic import Field

from saetools.errors import ConfigError
from saetools.evals.base import EvalRecord, Evaluation, NotApplicableError, Subject, Tick, no_tick, with_host
from saetools.evals.judges import ClassScorer, NgramScorer, Scorer, Shown, Task
from saetools.evals.labelled import python_labeller
from saetools.evals.python_labels import CLASSES
from saetools.features.collect import Collected, CollectSettings, collect
from saetools.features.contexts import WindowTexts
from saetools.features.firings import NotFiniteError
from saetools.features.records import Example
from saetools.rng import generator

TASKS: tuple[Task, ...] = ("detection", "fuzzing")
KINDS = ("token", "bigram", "class")


class Interpretability(Evaluation, name="interpretability"):
    """Purity of top contexts; detection and fuzzing by judges that come with the package or are given."""

    needs_host = True
    cost = "one encode per row; a few hundred texts per feature"

    class Config(Evaluation.Config):
        """Sizes."""

        n_tokens: int = Field(100_000, gt=0, description="held-out tokens read, rounded up to whole windows")
        n_features: int = Field(100, gt=0, description="features scored, drawn from those with enough contexts")
        n_top: int = Field(20, gt=1, description="top contexts whose peaks are compared")
        n_explain: int = Field(10, gt=0, description="contexts that an explanation is made from")
        n_judge: int = Field(10, gt=0, description="further contexts that are judged, and as many silent ones")
        before: int = Field(15, ge=0, description="tokens shown before a peak")
        after: int = Field(8, ge=0, description="tokens shown after a peak")

    config: Config

    def __init__(self, scorers: Sequence[Scorer] | None = None, **settings: object) -> None:
        super().__init__(**settings)
        self.scorers: list[Scorer] = [NgramScorer(), ClassScorer()] if scorers is None else list(scorers)
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"the scorers are called {', '.join(names)}, and figures are told apart by these names: no two may be "
                "the same. Give each its own, as in TextScorer(ask, name=...)."
            )

    @property
    def n_tokens(self) -> int:
        return self.config.n_tokens

    def settings(self) -> dict[str, object]:
        return {**super().settings(), "scorers": [scorer.settings() for scorer in self.scorers]}

    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        bench = _Bench(subject, self.config, tick)
        found: dict[str, list[float]] = {name: [] for name in self._figures()}
        for feature in bench.chosen:
            numbers = generator(subject.seed, "interpretability", feature)
            shown = bench.shown(feature, numbers)
            for kind, value in purities(shown.peaks).items():
                found[f"{kind}_purity"].append(value)
            chance = [bench.corpus_peaks[i] for i in numbers.permutation(len(bench.corpus_peaks))[: len(shown.peaks)]]
            for kind, value in purities(chance).items():
                found[f"{kind}_purity_chance"].append(value)
            for scorer in self.scorers:
                order = generator(subject.seed, "interpretability order", feature)
                for task, value in _judged(scorer, shown, order).items():
                    found[f"{scorer.name}_{task}"].append(value)
        return [self._mean(name, values, subject.seed) for name, values in found.items()]

    def _figures(self) -> list[str]:
        purities = [f"{kind}_purity{suffix}" for kind in KINDS for suffix in ("", "_chance")]
        return [*purities, *(f"{scorer.name}_{task}" for scorer in self.scorers for task in TASKS)]

    def _mean(self, name: str, values: list[float], seed: int) -> EvalRecord:
        return self.mean_record(
            name,
            values,
            "purity" if name.removesuffix("_chance").endswith("_purity") else "AUC",
            "features",
            seed,
            note=None if values else "no feature has contexts to tell apart, with labels where it is of classes",
        )


@dataclass(frozen=True)
class Peak:
    """The token for which an example was chosen."""

    before: str
    token: str
    classes: frozenset[str] | None  # None where the text is not labelled


@dataclass(frozen=True)
class _Shown:
    """What a feature is scored on."""

    peaks: list[Peak]
    explain: list[Shown]
    positive: dict[Task, list[Shown]]
    negative: dict[Task, list[Shown]]


class _Bench:
    """The contexts of every feature, cut, labelled and drawn."""

    def __init__(self, subject: Subject, config: Interpretability.Config, tick: Tick = no_tick) -> None:
        self.config, self.parts = config, with_host(subject)
        n_random = config.n_explain + config.n_judge
        settings = CollectSettings(
            n_tokens=config.n_tokens,
            n_top=config.n_top,
            n_random=n_random,
            n_uniform=max(10 * config.n_judge, 10 * config.n_top),
            before=config.before,
            after=config.after,
            coactivation_tokens=0,
            seed=subject.seed,
        )
        try:
            self.gathered: Collected = collect(subject.dictionary, subject.heldout, self.parts.tokens, settings, tick)
        except NotFiniteError as error:
            raise NotApplicableError(str(error)) from error
        self.contexts = self.gathered.contexts
        self.texts: WindowTexts = self.gathered.window_texts(self.parts.host.token_texts)
        self._labels: dict[str, np.ndarray | None] = {}
        self._numbers = {name: number for number, name in self.gathered.document_ids.items()}
        enough = np.isfinite(self.contexts.banks["random"].priority_FS).sum(1) >= n_random
        self.chosen = generator(subject.seed, "interpretability").permutation(np.flatnonzero(enough))
        self.chosen = self.chosen[: config.n_features].tolist()
        if not self.chosen:
            raise NotApplicableError(f"no feature fires in {n_random} held-out windows; raise n_tokens")

    @cached_property
    def corpus_peaks(self) -> list[Peak]:
        """The tokens at random places of the corpus."""
        return [self._peak(example) for example in self._examples(self.chosen[0]) if example.band == "uniform"]

    def _examples(self, feature: int) -> list[Example]:
        """A feature's contexts in the order of their places, which is none of the batches they came in."""
        found = self.contexts.examples(feature, self.texts)
        return sorted(found, key=lambda example: (example.document, example.position, example.peak))

    def shown(self, feature: int, numbers: np.random.Generator) -> _Shown:
        examples = self._examples(feature)
        top = [example for example in examples if example.band == "top"]
        firing = [example for example in examples if example.band.startswith("q")]
        silent = [example for example in examples if example.band == "uniform" and not any(example.values)]
        order = numbers.permutation(len(firing))
        explain = [self._shown(firing[i]) for i in order[: self.config.n_explain]]
        true = [self._shown(firing[i]) for i in order[self.config.n_explain :]]
        quiet = [self._shown(silent[i]) for i in numbers.permutation(len(silent))[: len(true)]]
        wrong = [mark for mark in (_marked_elsewhere(item, numbers) for item in true) if mark is not None]
        return _Shown(
            [self._peak(example) for example in top],
            explain,
            {"detection": [_unmarked(item) for item in true], "fuzzing": true},
            {"detection": quiet, "fuzzing": wrong},
        )

    def _shown(self, example: Example) -> Shown:
        labels = self._labels_of(example)
        classes = [] if labels is None else [_names(row) for row in labels]
        return Shown(example.tokens, tuple(value != 0 for value in example.values), tuple(classes))

    def _peak(self, example: Example) -> Peak:
        labels, at = self._labels_of(example), example.peak
        before = example.tokens[at - 1] if at else ""
        return Peak(before, example.tokens[at], None if labels is None else _names(labels[at]))

    def _labels_of(self, example: Example) -> np.ndarray | None:
        """bool [tokens, C] of the example's tokens; None where its document cannot be labelled."""
        if example.document not in self._labels:
            self._labels[example.document] = self._document_labels(self._numbers[example.document])
        labels = self._labels[example.document]
        return None if labels is None else labels[example.position : example.position + len(example.tokens)]

    def _document_labels(self, number: int) -> np.ndarray | None:
        document = self.parts.tokens.document(number)
        if document is None:
            return None
        texts = self.parts.host.token_texts(self.parts.tokens.tokenize.encode([document.text])[0])
        return python_labeller(document.text, texts) if "".join(texts) == document.text else None


def purities(peaks: list[Peak]) -> dict[str, float]:
    """token, bigram and (where the text is labelled) class purity of at least two peaks."""
    if len(peaks) < 2:
        return {}
    found = {
        "token": purity([peak.token for peak in peaks]),
        "bigram": purity([(peak.before, peak.token) for peak in peaks]),
    }
    labelled = [peak.classes for peak in peaks if peak.classes is not None]
    return found | ({"class": purity(labelled)} if len(labelled) > 1 else {})


def purity(items: Sequence[Hashable]) -> float:
    """1 - H / log2(n) of n >= 2 items: 1 where all are equal, 0 where all differ."""
    share = np.array(list(Counter(items).values())) / len(items)
    return float(1 + (share * np.log2(share)).sum() / np.log2(len(items)))


def auc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """P(positive > negative) + P(equal) / 2 over all pairs; nan without pairs."""
    difference = np.asarray(positive)[:, None] - np.asarray(negative)[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0))) if difference.size else float("nan")


def _judged(scorer: Scorer, shown: _Shown, numbers: np.random.Generator) -> dict[Task, float]:
    """The AUC of each task that has items on both sides of which the scorer can tell.

    It is asked of all items at once, in an order that does not tell the sides apart.
    """
    explanation = scorer.explain(shown.explain)
    found = {}
    for task in TASKS:
        positive, negative = shown.positive[task], shown.negative[task]
        items = [*positive, *negative]
        order, scores = numbers.permutation(len(items)), np.zeros(len(items))
        scores[order] = scorer.judge(explanation, [items[i] for i in order], task)
        yes, no = (side[~np.isnan(side)] for side in np.split(scores, [len(positive)]))
        if len(yes) and len(no):
            found[task] = auc(yes, no)
    return found


def _unmarked(item: Shown) -> Shown:
    return replace(item, marked=(False,) * len(item.tokens))


def _marked_elsewhere(item: Shown, numbers: np.random.Generator) -> Shown | None:
    """As many tokens marked, none of which fires; None where there are not so many."""
    silent, n = [i for i, fires in enumerate(item.marked) if not fires], sum(item.marked)
    if len(silent) < n:
        return None
    chosen = set(numbers.permutation(silent)[:n].tolist())
    return replace(item, marked=tuple(i in chosen for i in range(len(item.tokens))))


def _names(row_C: np.ndarray) -> frozenset[str]:
    return frozenset(CLASSES[i] for i in np.flatnonzero(row_C))
