"""Who explains a feature from examples, and judges other examples by the explanation.

An explainer-judge is any object with the name and methods of `Scorer`. Shipped: `NgramScorer` (which tokens),
`ClassScorer` (which labelled class) and `TextScorer`, which asks any callable text -> text, a language model say.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from saetools.evals.python_labels import CLASSES

Task = Literal["detection", "fuzzing"]

UNLABELLED = "unlabelled"
"""ClassScorer's explanation where no example is labelled."""


@dataclass(frozen=True)
class Shown:
    """A stretch of text as a scorer sees it."""

    tokens: tuple[str, ...]
    marked: tuple[bool, ...]  # where the feature fires (to explain), is claimed to (fuzzing), nowhere (detection)
    classes: tuple[frozenset[str], ...]  # labelled classes of each token; no entries where the text is not labelled


class Scorer(Protocol):
    """Explains and judges. Both are pure: equal arguments and settings, equal answers."""

    name: str  # of its figures; no two scorers of an evaluation have the same

    def settings(self) -> dict[str, object]:
        """The name and what else decides the answers, as JSON: stored results are kept while it stays the same."""
        ...

    def explain(self, examples: Sequence[Shown]) -> str:
        """What the feature stands for, from examples with the tokens marked at which it fires."""
        ...

    def judge(self, explanation: str, items: Sequence[Shown], task: Task) -> list[float]:
        """For each item, how strongly the explanation says yes: any scale, only the order counts; nan: cannot tell.

        detection: does the feature fire somewhere in the item? fuzzing: are the marked tokens those where it fires?
        Items that should be told apart come mixed, in an order drawn by the evaluation's seed.
        """
        ...


class NgramScorer:
    """A feature is a list of tokens and pairs of tokens with weights: ln of the odds of firing, add-one smoothed."""

    name = "ngram"

    def __init__(self, n_kept: int = 20) -> None:
        self.n_kept = n_kept

    def settings(self) -> dict[str, object]:
        return {"name": self.name, "n_kept": self.n_kept}

    def explain(self, examples: Sequence[Shown]) -> str:
        fires, silent = Counter[str](), Counter[str]()
        for example in examples:
            for i, marked in enumerate(example.marked):
                (fires if marked else silent).update(_grams(example.tokens, i))
        odds = {gram: np.log((count + 1) / (silent[gram] + 1)) for gram, count in fires.items()}
        best = sorted((gram for gram in odds if odds[gram] > 0), key=lambda gram: (-odds[gram], gram))[: self.n_kept]
        return json.dumps({gram: round(float(odds[gram]), 6) for gram in best}, ensure_ascii=False)

    def judge(self, explanation: str, items: Sequence[Shown], task: Task) -> list[float]:
        weights = json.loads(explanation)

        def weight(item: Shown, i: int) -> float:
            return max((weights.get(gram, 0.0) for gram in _grams(item.tokens, i)), default=0.0)

        return [_summary([weight(item, i) for i in range(len(item.tokens))], item.marked, task) for item in items]


class ClassScorer:
    """A feature is the labelled class whose tokens best agree with where it fires (F1 over the examples' tokens).

    Of texts without labels it cannot tell.
    """

    name = "class"

    def settings(self) -> dict[str, object]:
        return {"name": self.name}

    def explain(self, examples: Sequence[Shown]) -> str:
        labelled = [example for example in examples if example.classes]
        marked = np.array([marked for example in labelled for marked in example.marked], bool)
        best, best_f1 = "" if labelled else UNLABELLED, 0.0
        for name in CLASSES:
            inside = np.array([name in classes for example in labelled for classes in example.classes], bool)
            f1 = 2 * (inside & marked).sum() / max(inside.sum() + marked.sum(), 1)
            best, best_f1 = (name, f1) if f1 > best_f1 else (best, best_f1)
        return best

    def judge(self, explanation: str, items: Sequence[Shown], task: Task) -> list[float]:
        found = []
        for item in items:
            if explanation == UNLABELLED or not item.classes:
                found.append(float("nan"))
                continue
            inside = [float(explanation in classes) for classes in item.classes]
            # one token of a class is in most stretches: more of them is likelier to hold one that fires
            found.append(float(np.mean(inside)) if task == "detection" else _summary(inside, item.marked, task))
        return found


class TextScorer:
    """Asks `ask(prompt) -> answer`. `name` stands for who is asked, in figures and stored results: another one, another
    name. The contract of the prompts:

    explain: the examples, one a line, firing tokens in <<double angle brackets>>; the answer's first line is taken as
    the explanation. judge: the explanation and numbered items (fuzzing: the claimed tokens in <<brackets>>); the answer
    must hold one 0 or 1 per item, in order, e.g. `[1, 0, 1]`; other numbers of them raise ValueError.
    """

    PROMPTS = {  # noqa: RUF012 - constants
        "explain": "A feature fires at the tokens in <<brackets>>. Say in one line what it responds to.\n\n{items}\n",
        "detection": "A feature responds to: {explanation}\nFor each numbered text: does it fire anywhere in it? "
        "Answer with a list of 0 or 1, one per text.\n\n{items}\n",
        "fuzzing": "A feature responds to: {explanation}\nFor each numbered text: are the <<bracketed>> tokens those "
        "at which it fires? Answer with a list of 0 or 1, one per text.\n\n{items}\n",
    }

    def __init__(self, ask: Callable[[str], str], name: str) -> None:
        self.ask, self.name = ask, name

    def settings(self) -> dict[str, object]:
        return {"name": self.name}

    def explain(self, examples: Sequence[Shown]) -> str:
        items = "\n".join(bracketed(example) for example in examples)
        return self.ask(self.PROMPTS["explain"].format(items=items)).strip().split("\n")[0]

    def judge(self, explanation: str, items: Sequence[Shown], task: Task) -> list[float]:
        numbered = "\n".join(f"{i}: {bracketed(item)}" for i, item in enumerate(items, 1))
        answer = self.ask(self.PROMPTS[task].format(explanation=explanation, items=numbered))
        verdicts = re.findall(r"\b[01]\b", answer)
        if len(verdicts) != len(items):
            raise ValueError(f"the judge gave {len(verdicts)} verdicts for {len(items)} texts: {answer[:200]!r}")
        return [float(verdict) for verdict in verdicts]


def bracketed(item: Shown) -> str:
    """The text on one line, marked tokens in <<brackets>>."""
    pairs = zip(item.tokens, item.marked, strict=True)
    return "".join(f"<<{token}>>" if marked else token for token, marked in pairs).replace("\n", "\\n")


def _grams(tokens: tuple[str, ...], i: int) -> list[str]:
    """The token at i, and it with the one before (joined by a character that no token has)."""
    return [tokens[i]] if i == 0 else [tokens[i], f"{tokens[i - 1]}\x1f{tokens[i]}"]


def _summary(weights: list[float], marked: tuple[bool, ...], task: Task) -> float:
    """The greatest weight (detection), or the mean of the marked tokens' (fuzzing)."""
    chosen = weights if task == "detection" else [w for w, is_marked in zip(weights, marked, strict=True) if is_marked]
    if not chosen:
        return 0.0
    return max(chosen) if task == "detection" else float(np.mean(chosen))
