"""The packer: no token lost or repeated, BOS and padding marked, every entry point the same plan."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saetools.errors import ConfigError, DataError
from saetools.text.base import Document, ListedCorpus, Split, TokenBatch, sha256_of, split_of
from saetools.text.packing import TokenPlan

BOS, PAD = 1000, 1001


class CharacterTokenize:
    """One token per character; counts what it was given."""

    pad_id = PAD

    def __init__(self, bos_id: int | None = BOS) -> None:
        self.bos_id = bos_id
        self.n_texts = 0

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.n_texts += len(texts)
        return [[ord(character) for character in text] for text in texts]

    def fingerprint(self) -> str:
        return "characters"


class Listed(ListedCorpus):
    """Texts by number; every id is of the split that is asked for."""

    description = "a list of texts"

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def document_ids(self, split: Split) -> list[str]:
        return [str(number) for number in range(len(self.texts))]

    def document(self, document_id: str) -> Document:
        return Document(document_id, self.texts[int(document_id)])

    def fingerprint(self) -> str:
        return sha256_of(self.texts)


class Streamed:
    """The same as a stream, with its own ids."""

    description = "a stream of texts"

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def documents(self, split: Split) -> Iterator[Document]:
        for number, text in enumerate(self.texts):
            yield Document(f"stream:{number}", text)

    def fingerprint(self) -> str:
        return sha256_of(self.texts)


texts = st.lists(st.text("abcdef", max_size=23), min_size=1, max_size=90).filter(any)
plans = st.fixed_dictionaries(
    {
        "context_tokens": st.integers(2, 9),
        "host_batch": st.integers(1, 5),
        "seed": st.integers(0, 3),
        "prepend_bos": st.booleans(),
        "max_documents": st.none() | st.integers(1, 40),
    }
)
corpora = st.sampled_from([Listed, Streamed])


def plan_of(corpus, split: Split = "heldout", tokenize: CharacterTokenize | None = None, **settings) -> TokenPlan:
    return TokenPlan(corpus, tokenize or CharacterTokenize(), split, **settings)


def assert_equal(first: TokenBatch, second: TokenBatch, same_number: bool = True) -> None:
    assert not same_number or first.number == second.number
    for name in ("ids_BT", "keep_BT", "document_B", "position_BT"):
        a, b = getattr(first, name), getattr(second, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@settings(max_examples=150, deadline=None)
@given(texts, plans, corpora, st.sampled_from(["train", "heldout"]))
def test_no_token_is_lost_or_repeated(texts, parameters, make, split):
    used = texts[: parameters["max_documents"]]
    if not any(used):
        return
    plan = plan_of(make(texts), split, **parameters)
    first = next(plan.batches())
    n_batches = _n_batches(plan)
    batches = list(islice(plan.batches(), n_batches))
    seen: dict[tuple[int, int], int] = {}
    for batch in batches:
        for row, column in np.argwhere(batch.keep_BT):
            place = int(batch.document_B[row]), int(batch.position_BT[row, column])
            assert place not in seen, "a token is in one window only"
            seen[place] = int(batch.ids_BT[row, column])
    expected = {(d, p): ord(c) for d, text in enumerate(used) for p, c in enumerate(text)}
    assert seen == expected
    assert_equal(first, batches[0])


def _n_batches(plan: TokenPlan) -> int:
    """Read on until the plan knows the length of an epoch."""
    for _ in plan.batches():
        if plan.n_batches is not None:
            break
    assert plan.n_batches is not None
    return plan.n_batches


@settings(max_examples=100, deadline=None)
@given(texts, plans, corpora)
def test_windows_begin_with_bos_and_end_with_padding(texts, parameters, make):
    if not any(texts[: parameters["max_documents"]]):
        return
    plan = plan_of(make(texts), **parameters)
    offset = int(parameters["prepend_bos"])
    batches = list(plan.batches())
    assert [batch.number for batch in batches] == list(range(len(batches)))
    for batch in batches:
        assert batch.ids_BT.shape == (parameters["host_batch"], parameters["context_tokens"])
        for row in range(parameters["host_batch"]):
            if batch.document_B[row] < 0:
                assert batch is batches[-1], "only the last batch has empty rows"
                assert (batch.ids_BT[row] == PAD).all() and not batch.keep_BT[row].any()
                continue
            n = int(batch.keep_BT[row].sum())
            assert n >= 1
            assert (batch.ids_BT[row, :offset] == BOS).all() and not batch.keep_BT[row, :offset].any()
            assert batch.keep_BT[row, offset : offset + n].all(), "kept tokens are consecutive"
            assert (batch.ids_BT[row, offset + n :] == PAD).all()
            assert (np.diff(batch.position_BT[row, offset : offset + n]) == 1).all()
            assert (batch.position_BT[row][~batch.keep_BT[row]] == -1).all()


@settings(max_examples=100, deadline=None)
@given(texts, plans, corpora, st.data())
def test_a_plan_can_be_entered_anywhere(texts, parameters, make, data):
    if not any(texts[: parameters["max_documents"]]):
        return
    straight = list(plan_of(make(texts), **parameters).batches())
    start = data.draw(st.integers(0, len(straight) + 1))
    fresh = plan_of(make(texts), **parameters)
    warm = plan_of(make(texts), **parameters)
    list(islice(warm.batches(), data.draw(st.integers(0, len(straight)))))
    for plan in (fresh, warm, warm):
        entered = list(plan.batches(start))
        assert len(entered) == len(straight[start:])
        for a, b in zip(entered, straight[start:], strict=True):
            assert_equal(a, b)


@settings(max_examples=60, deadline=None)
@given(texts, plans, corpora, st.integers(0, 30))
def test_training_repeats_the_same_epoch(texts, parameters, make, start):
    if not any(texts[: parameters["max_documents"]]):
        return
    plan = plan_of(make(texts), "train", **parameters)
    n_batches = _n_batches(plan)
    epoch = list(islice(plan.batches(), n_batches))
    fresh = plan_of(make(texts), "train", **parameters)
    for number, batch in enumerate(islice(fresh.batches(start), n_batches + 2), start):
        assert batch.number == number
        assert_equal(batch, epoch[number % n_batches], same_number=False)
    assert fresh.n_batches == n_batches


def test_that_text_comes_again_is_said_once(caplog):
    caplog.set_level("INFO", "saetools")
    parameters = {"context_tokens": 4, "host_batch": 2, "seed": 0, "prepend_bos": False}
    list(plan_of(Listed(["abcd"] * 4), **parameters).batches())
    list(islice(plan_of(Listed(["abcd"] * 4), "train", **parameters).batches(), 2))
    assert not caplog.records
    list(islice(plan_of(Listed(["abcd"] * 4), "train", **parameters).batches(), 9))
    assert caplog.messages == ["all 4 windows of text were read once; they are read again"]


def test_restart_tokenizes_nothing_before_the_batch():
    tokenize = CharacterTokenize()
    plan = plan_of(Listed(["abcd"] * 320), tokenize=tokenize, context_tokens=4, host_batch=4, seed=0, prepend_bos=True)
    n_batches = len(list(plan.batches()))
    assert tokenize.n_texts == 320
    tokenize.n_texts = 0
    assert len(list(plan.batches(n_batches - 1))) == 1
    assert tokenize.n_texts == 2, "the last four windows are of two documents"


def test_the_train_split_of_a_list_is_permuted_by_the_seed_alone():
    corpus, parameters = Listed([chr(97 + n) for n in range(26)]), {"context_tokens": 2, "host_batch": 26}

    def order(split: Split, seed: int, corpus=corpus) -> list[int]:
        plan = plan_of(corpus, split, seed=seed, prepend_bos=True, **parameters)
        return next(plan.batches()).document_B.tolist()

    assert order("train", 1) != list(range(26)) and sorted(order("train", 1)) == list(range(26))
    assert order("train", 1) == order("train", 1) != order("train", 2)
    assert order("heldout", 1) == order("heldout", 2) != list(range(26)), "all runs are judged on the same documents"
    assert order("train", 1, Streamed(corpus.texts)) == list(range(26))


def test_a_tokenizer_without_bos_gives_windows_without_bos():
    plan = plan_of(
        Listed(["abc"]), tokenize=CharacterTokenize(None), context_tokens=3, host_batch=1, seed=0, prepend_bos=True
    )
    (batch,) = plan.batches()
    assert not plan.prepend_bos and batch.keep_BT.all()


@pytest.mark.parametrize("make", [Listed, Streamed])
def test_documents_are_found_by_number(make):
    corpus = make(["ab", "", "cd"])
    plan = plan_of(corpus, context_tokens=3, host_batch=2, seed=0, prepend_bos=False)
    assert plan.document_id(2) == ("2" if make is Listed else "stream:2"), "before anything was read"
    document = plan.document(2)
    assert (document.text if document else None) == ("cd" if make is Listed else None)
    if make is Streamed:
        with pytest.raises(DataError, match="has 3 documents"):
            plan.document_id(3)


@pytest.mark.parametrize("make", [Listed, Streamed])
@pytest.mark.parametrize("texts", [[], ["", ""]])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_an_empty_corpus_says_what_was_looked_for(make, texts, split):
    plan = plan_of(make(texts), split, context_tokens=3, host_batch=2, seed=0, prepend_bos=False, max_documents=7)
    with pytest.raises(DataError, match=r"No text in the .* split .* of texts, its first 7 documents"):
        next(plan.batches())


def test_a_document_that_changes_during_a_run_is_named():
    corpus = Listed(["abcd", "abcd", "abcd"])
    plan = plan_of(corpus, context_tokens=2, host_batch=1, seed=0, prepend_bos=False)
    assert len(list(plan.batches())) == 6
    corpus.texts[1] = "ab"
    with pytest.raises(DataError, match="Document '1' changed"):
        list(plan.batches())


def test_a_window_without_room_is_refused():
    with pytest.raises(ConfigError, match=r"corpus\.context_tokens"):
        plan_of(Listed(["a"]), context_tokens=1, host_batch=1, seed=0, prepend_bos=True)


def test_the_fingerprint_knows_what_decides_the_batches():
    base = {"context_tokens": 4, "host_batch": 2, "seed": 0, "prepend_bos": True, "max_documents": None}

    def fingerprint(split: Split = "train", texts=("ab", "cd"), **changes) -> str:
        return plan_of(Listed(list(texts)), split, **{**base, **changes}).fingerprint()

    changed = {
        fingerprint(),
        fingerprint("heldout"),
        fingerprint(texts=("ab", "ce")),
        fingerprint(context_tokens=5),
        fingerprint(host_batch=3),
        fingerprint(seed=1),
        fingerprint(prepend_bos=False),
        fingerprint(max_documents=1),
    }
    assert len(changed) == 8
    assert fingerprint() == fingerprint()
    assert fingerprint("heldout") == fingerprint("heldout", seed=1), "the held-out order has no seed"


def test_about_fifteen_percent_are_held_out():
    share = sum(split_of(str(number)) == "heldout" for number in range(20_000)) / 20_000
    assert 0.14 < share < 0.16
