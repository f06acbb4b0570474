"""Which feature of another dictionary is which of ours: pairs by the cosine of decoder rows."""

MAX_ONE_TO_ONE = 16_384
