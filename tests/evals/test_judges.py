"""Judges on features whose meaning is given."""

import json

import numpy as np
import pytest

from saetools.evals.judges import ClassScorer, NgramScorer, Shown, TextScorer, bracketed


def shown(text, fires, classes=()):
    """Tokens are words; `fires` names those that fire."""
    tokens = tuple(text.split())
    named = [frozenset(c for c, words in dict(classes).items() if token in words) for token in tokens]
    return Shown(tokens, tuple(token in fires for token in tokens), tuple(named))


def quiet(text, classes=()):
    return shown(text, (), classes)


def test_ngrams_find_the_token():
    scorer = NgramScorer()
    explanation = scorer.explain([shown("a cat sat on a mat", {"cat"}), shown("the cat is a cat", {"cat"})])
    assert max(json.loads(explanation).items(), key=lambda kv: kv[1])[0] == "cat"
    yes, no = scorer.judge(explanation, [quiet("my cat"), quiet("my dog on a mat")], "detection")
    assert yes > no
    right, wrong = scorer.judge(explanation, [shown("my cat", {"cat"}), shown("my cat", {"my"})], "fuzzing")
    assert right > wrong


def test_ngrams_find_the_pair():
    """Fires at `in` only after `not`."""
    examples = [shown("x not in y", {"in"}), quiet("for x in y"), quiet("for z in q"), shown("a not in b", {"in"})]
    scorer = NgramScorer()
    explanation = scorer.explain(examples)
    yes, no = scorer.judge(explanation, [quiet("q not in r"), quiet("for k in r")], "detection")
    assert yes > no


def test_classes():
    classes = {"number": ["1", "22"], "keyword": ["if", "for"]}
    scorer = ClassScorer()
    explanation = scorer.explain([shown("if x 1", {"1"}, classes.items()), shown("for 22 y", {"22"}, classes.items())])
    assert explanation == "number"
    many, few, none = (quiet(text, classes.items()) for text in ("1 22 x", "1 x if", "if for x"))
    scores = scorer.judge(explanation, [many, few, none], "detection")
    assert scores == pytest.approx([2 / 3, 1 / 3, 0]), "the share of its tokens"
    assert scorer.judge("number", [shown("if 1", {"1"}, classes.items())], "fuzzing") == [1.0]
    assert scorer.judge("number", [shown("if 1", {"if"}, classes.items())], "fuzzing") == [0.0]


def test_of_texts_without_labels_classes_cannot_tell():
    scorer = ClassScorer()
    labelled = shown("if x 1", {"1"}, {"number": ["1"]}.items())
    unlabelled = Shown(labelled.tokens, labelled.marked, ())
    assert scorer.explain([unlabelled, labelled]) == "number"
    np.testing.assert_equal(scorer.judge("number", [labelled, unlabelled], "fuzzing"), [1.0, np.nan])
    explanation = scorer.explain([unlabelled])
    np.testing.assert_equal(scorer.judge(explanation, [labelled, unlabelled], "detection"), [np.nan, np.nan])


def test_a_silent_feature_is_judged_indifferently():
    for scorer in (NgramScorer(), ClassScorer()):
        explanation = scorer.explain([quiet("a b")])
        assert scorer.judge(explanation, [quiet("a"), shown("b", {"b"})], "fuzzing") == [0.0, 0.0]


def test_text_judge_keeps_its_contract():
    asked = []

    def ask(prompt):
        asked.append(prompt)
        return "cats\nand more" if "Say in one line" in prompt else "Verdicts: [1, 0]"

    scorer = TextScorer(ask, name="cats")
    assert scorer.explain([shown("a cat", {"cat"})]) == "cats"
    assert "a<<cat>>" in asked[0]
    assert scorer.judge("cats", [quiet("cat"), quiet("dog")], "detection") == [1.0, 0.0]
    assert "responds to: cats" in asked[1] and "1: cat\n2: dog" in asked[1]
    with pytest.raises(ValueError, match="2 verdicts for 1 texts"):
        scorer.judge("cats", [quiet("cat")], "fuzzing")
    assert bracketed(Shown(("a\n", "b"), (False, True), ())) == "a\\n<<b>>"
    assert np.isfinite(scorer.judge("cats", [quiet("{x}"), quiet("}")], "detection")).all()
