"""The layout of a feature store on disk: shared by the side that writes and the side that reads. No torch here.

<store>/manifest.json          size and hash of each file (saetools.atomic)
<store>/features.sqlite        one row per feature, full-text index, places of the examples
<store>/examples-00000.bin     zlib-compressed JSON, one piece per feature, each hashed
<store>.annotations.sqlite     labels, notes and lists: written by people, so outside of the committed store
"""

DATABASE = "features.sqlite"
ANNOTATIONS_SUFFIX = ".annotations.sqlite"
SHARDS = "examples-*.bin"
SHARD_BYTES = 128 << 20  # a reader keeps all of them open: 80 at a million features of 10 kB

SORTABLE = (
    "feature",
    "density",
    "count",
    "mean",
    "mean_square",
    "skewness",
    "kurtosis",
    "max_value",
    "n_contexts",
)
"""Columns of numbers by which a table can be sorted and filtered, each with an index."""

SUMMARY = (*SORTABLE, "peak_token", "top_logit")
"""Columns of a table row that the store itself holds; `label` comes from the annotations."""

CREATE = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE features (
    feature INTEGER PRIMARY KEY,
    density REAL NOT NULL, count INTEGER NOT NULL, mean REAL, mean_square REAL NOT NULL,
    skewness REAL, kurtosis REAL, max_value REAL, n_contexts INTEGER NOT NULL,
    peak_token TEXT, top_logit TEXT, x REAL, y REAL
);
CREATE TABLE records (feature INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE examples (
    feature INTEGER PRIMARY KEY, shard TEXT NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
    xxh3_128 TEXT NOT NULL
);
CREATE VIRTUAL TABLE words USING fts5(logits, contexts, content='', tokenize="unicode61 tokenchars '_'");
"""

CREATE_INDEXES = "".join(f"CREATE INDEX by_{name} ON features ({name}, feature);\n" for name in SORTABLE[1:])

CREATE_ANNOTATIONS = """
CREATE TABLE IF NOT EXISTS notes.labels (
    feature INTEGER PRIMARY KEY, label TEXT NOT NULL DEFAULT '', note TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS notes.lists (name TEXT NOT NULL, feature INTEGER NOT NULL, PRIMARY KEY (name, feature));
"""


def storable(value: object) -> object:
    """A value as SQLite can hold it: its UTF-8 has no lone surrogates, which stand as ? then."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
