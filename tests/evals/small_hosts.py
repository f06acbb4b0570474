"""A host whose predictions can be worked out by hand, on the real packing, rows and TopK."""

from contextlib import contextmanager

import numpy as np
import torch

from saetools import rng
from saetools.activations.base import ActivationBatch
from saetools.activations.calibration import measure
from saetools.activations.live import LiveSource
from saetools.dictionaries.code import SparseCode
from saetools.dictionaries.topk import TopK
from saetools.evals.base import Subject
from saetools.records import PointSpec
from saetools.text.base import Document, ListedCorpus
from saetools.text.packing import TokenPlan

VOCABULARY, D_MODEL, CONTEXT = 20, 6, 12


class Letters:
    """Token 0 pads, 1 is BOS, the others are letters."""

    bos_id, pad_id = 1, 0

    def encode(self, texts):
        return [[2 + (ord(c) - ord("a")) % (VOCABULARY - 2) for c in text] for text in texts]

    def fingerprint(self):
        return "letters"


class LinearHost:
    """x = embedding + half of the embedding before it, at `resid`; logits = x U^T after a causal sum of x."""

    name, prepend_bos, device = "linear", True, "cpu"

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.tokenize = Letters()
        self.embedding = torch.randn(VOCABULARY, D_MODEL, generator=generator) + 0.5
        self.U = torch.randn(VOCABULARY, D_MODEL, generator=generator)
        self.active = {}
        self.n_passes = 0

    def points(self):
        return ["resid"]

    def canonical(self, point):
        return {"resid": "resid", "residual": "resid"}[point]

    def spec(self, point, context_tokens=None):
        return PointSpec(
            host=self.name,
            point=self.canonical(point),
            d_model=D_MODEL,
            context_tokens=context_tokens,
            prepend_bos=True,
        )

    def in_stream(self, point):
        return True

    def _resid(self, ids_BT):
        x = self.embedding[ids_BT]
        before = torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        return x + 0.5 * before

    def activations(self, ids_BT, points):
        return {self.canonical(point): self._resid(ids_BT) for point in points}

    def logits(self, ids_BT, edits=None):
        self.n_passes += 1
        x = self._resid(ids_BT)
        for edit in [*self.active.values(), *(edits or {}).values()]:
            x = edit(x)
        return (x + 0.1 * x.cumsum(1)) @ self.U.T

    def activations_and_gradients(self, ids_BT, points, keep_BT):
        with torch.enable_grad():
            x = self._resid(ids_BT).requires_grad_()
            log_q = torch.log_softmax((x + 0.1 * x.cumsum(1)) @ self.U.T, -1)
            losses = -log_q[:, :-1].gather(2, ids_BT[:, 1:, None])[..., 0]
            g = torch.autograd.grad((losses * keep_BT[:, 1:]).sum(), x)[0]
            return {point: (x.detach(), g) for point in points}

    @contextmanager
    def editing(self, edits):
        before, self.active = self.active, {**self.active, **edits}
        try:
            yield
        finally:
            self.active = before

    def generate(self, prompt, n_tokens, temperature=0.0, seed=0):
        ids = [self.tokenize.bos_id, *self.tokenize.encode([prompt])[0]]
        start = len(ids)
        for _ in range(n_tokens):
            ids.append(int(self.logits(torch.tensor([ids]))[0, -1].argmax()))
        return "".join(self.token_texts(ids[start:]))

    def unembedding(self):
        return self.U, None

    def token_texts(self, ids):
        return ["" if i < 2 else chr(ord("a") + i - 2) for i in ids]


class Texts:
    """Documents of random letters, in one or another order."""

    description = "random letters"

    def __init__(self, n=12, seed=0, order=None):
        generator = rng.generator(seed, "letters")
        lengths = generator.integers(1, 40, n)
        texts = ["".join(chr(97 + int(c)) for c in generator.integers(0, VOCABULARY - 2, k)) for k in lengths]
        documents = [Document(f"doc{i}", text) for i, text in enumerate(texts)]
        self.items = [documents[i] for i in (order if order is not None else range(n))]

    def documents(self, split):
        return iter(self.items)

    def fingerprint(self):
        return ",".join(d.id for d in self.items)


class BlockRows:
    """A held-out RowSource of a given matrix, cut into batches; a document is `per_document` rows."""

    def __init__(self, x_ND, batch=64, per_document=16, order=None):
        rows = torch.arange(len(x_ND))
        where = torch.stack([rows // per_document, rows % per_document], 1)
        index = rows if order is None else order
        self.x_ND, self.where, self.batch = x_ND[index], where[index], batch
        self.spec = PointSpec(host="rows", point="rows", d_model=x_ND.shape[1])
        self.calibration = measure(x_ND)

    def batches(self, start=0):
        for number, first in enumerate(range(0, len(self.x_ND), self.batch)):
            rows = slice(first, first + self.batch)
            if number >= start:
                yield number, ActivationBatch(self.x_ND[rows], self.where[rows])

    def document_id(self, number):
        return f"block{number}"

    outlier_norm = None

    def fingerprint(self, calibrated=True):
        return f"{float(self.x_ND.double().sum())}-{self.batch}"


def scaled_copy(d_model: int, factor: float, shift=0.0) -> TopK:
    """recon = factor * x + shift, exactly but for rounding: atoms +-e_i, all of them allowed to fire."""
    made = TopK(TopK.configure(n_features=2 * d_model, k=2 * d_model), d_model)
    signed = torch.cat([torch.eye(d_model), -torch.eye(d_model)])
    with torch.no_grad():
        made.W_enc_FD.copy_(signed)
        made.W_dec_FD.copy_(factor * signed)
        made.b_dec_D.copy_(torch.as_tensor(shift).expand(d_model))
        made.b_enc_F.copy_(signed @ made.b_dec_D)  # undoes the subtraction of b_dec before encoding
    return made


class Given:
    """A dictionary whose code of row n is a given one: column 0 of the row is n."""

    device, trained_by, signed = torch.device("cpu"), "nothing", False

    def __init__(self, code_NF, atoms_FD=None, d_model=2):
        self.code_NF = code_NF
        self.config = TopK.configure(n_features=code_NF.shape[1], k=1)
        self.W_dec_FD = torch.zeros(code_NF.shape[1], d_model) if atoms_FD is None else atoms_FD
        self.b_dec_D = torch.zeros(self.W_dec_FD.shape[1])

    def encode(self, x_ND, fields=None):
        return SparseCode.from_dense(self.code_NF[x_ND[:, 0].long()])

    def decode(self, code):
        return code.to_dense() @ self.W_dec_FD

    def directions(self):
        return self.W_dec_FD

    def in_use_F(self):
        return torch.ones(len(self.W_dec_FD), dtype=torch.bool)

    def encoder_directions(self):
        return None


def row_subject(dictionary, x_ND, **source) -> Subject:
    heldout = BlockRows(x_ND, **source)
    return Subject(dictionary, heldout.spec, heldout)


def host_subject(
    dictionary=None, host=None, host_batch=4, order=None, n=12, context=CONTEXT, listed=False, corpus=None, **source
) -> Subject:
    host = host or LinearHost()
    corpus = corpus or Texts(n, order=order)
    corpus = Listed([document.text for document in corpus.items]) if listed else corpus
    plan = TokenPlan(corpus, host.tokenize, "heldout", context, host_batch, 0, True)
    live = LiveSource(host, plan, "resid", "float32", **source)
    x_ND = torch.cat([rows.x_ND for _, rows in live.batches()])
    heldout = live.with_calibration(measure(x_ND))
    if dictionary is None:
        dictionary = TopK(TopK.configure(n_features=24, k=3), D_MODEL)
    return Subject(dictionary, heldout.spec, heldout, host, plan)


def by_name(records):
    return {record.name: record for record in records}


class Characters:
    """One token per character; 0 pads, 1 is BOS."""

    bos_id, pad_id = 1, 0

    def encode(self, texts):
        return [[ord(c) for c in text] for text in texts]

    def fingerprint(self):
        return "characters"


class CharacterHost(LinearHost):
    """Only its tokenizer and names matter: rows come from elsewhere."""

    def __init__(self):
        super().__init__()
        self.tokenize = Characters()

    def token_texts(self, ids):
        return [chr(i) for i in ids]


class Listed(ListedCorpus):
    """Given texts as a corpus whose documents can be read again, and in any order."""

    description = "given texts"

    def __init__(self, texts):
        self.items = [Document(f"doc{i}", text) for i, text in enumerate(texts)]

    def document_ids(self, split):
        return [d.id for d in self.items]

    def document(self, document_id):
        return self.items[int(document_id[3:])]

    def fingerprint(self):
        return ",".join(d.text for d in self.items)


class PlacedRows:
    """Rows made from (document number, position): a source for a plan without running its host."""

    def __init__(self, plan, make):
        self.plan, self.make = plan, make
        self.spec = PointSpec(host="linear", point="resid", d_model=make(0, np.array([0])).shape[1])
        self.calibration = measure(torch.cat([rows.x_ND for _, rows in self.batches()]))

    def batches(self, start=0):
        for batch in self.plan.batches(start):
            window, column = np.nonzero(batch.keep_BT)
            document, position = batch.document_B[window], batch.position_BT[window, column]
            x_ND = torch.empty(len(document), self.spec.d_model)
            for d in np.unique(document):
                x_ND[document == d] = self.make(int(d), position[document == d])
            yield batch.number, ActivationBatch(x_ND, torch.from_numpy(np.column_stack([document, position])))

    def document_id(self, number):
        return self.plan.document_id(number)

    outlier_norm = None

    def fingerprint(self, calibrated=True):
        return self.plan.fingerprint()


def text_subject(texts, make, dictionary, context=64, host=None, host_batch=8) -> Subject:
    """Texts read character by character; `make(document, positions)` gives the rows."""
    host = host or CharacterHost()
    plan = TokenPlan(Listed(texts), host.tokenize, "heldout", context, host_batch, 0, True)
    heldout = PlacedRows(plan, make)
    return Subject(dictionary, heldout.spec, heldout, host, plan)
