"""The learning rate and the numbers that a config leaves to rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saetools.config import TrainingConfig
from saetools.training.schedule import checkpoint_steps, extended, make_plan


def test_rules() -> None:
    plan = make_plan(TrainingConfig(n_tokens=1_000_000, batch_rows=2048), n_features=4 * 2**14)
    assert plan.n_steps == 489
    assert plan.peak_lr == pytest.approx(1e-4)
    assert plan.warmup_steps == 24
    assert plan.dead_after_tokens == 50_000
    large = make_plan(TrainingConfig(n_tokens=10**9, batch_rows=4096), n_features=2**14)
    assert (large.warmup_steps, large.dead_after_tokens) == (1000, 10_000_000)
    assert large.peak_lr == pytest.approx(2e-4)
    assert make_plan(TrainingConfig(warmup_steps=0), 8).warmup_steps == 0
    assert checkpoint_steps(TrainingConfig(n_tokens=1000, batch_rows=10)) == 10
    assert checkpoint_steps(TrainingConfig(batch_rows=10, checkpoint_every_tokens=67)) == 7


def test_corners_of_the_learning_rate() -> None:
    plan = make_plan(TrainingConfig(n_tokens=100, batch_rows=1, lr=1.0, warmup_steps=10), 8)
    assert plan.lr(0) == pytest.approx(0.1)
    assert plan.lr(9) == plan.lr(10) == plan.lr(80) == 1.0
    assert plan.lr(90) == pytest.approx(0.5)
    assert plan.lr(99) == pytest.approx(0.05)


@given(
    n_tokens=st.integers(1, 10**6),
    batch_rows=st.integers(1, 5000),
    warmup=st.none() | st.integers(0, 2000),
    decay=st.floats(0, 1),
    schedule=st.sampled_from(["linear_decay", "constant"]),
)
def test_the_rate_rises_stays_and_falls(
    n_tokens: int, batch_rows: int, warmup: int | None, decay: float, schedule: str
) -> None:
    config = TrainingConfig(
        n_tokens=n_tokens,
        batch_rows=batch_rows,
        warmup_steps=warmup,
        decay_fraction=decay,
        schedule=schedule,  # type: ignore[arg-type]
        lr=1.0,
    )
    plan = make_plan(config, 8)
    assert (plan.n_steps - 1) * batch_rows < n_tokens <= plan.n_steps * batch_rows
    rates = [plan.lr(step) for step in range(0, plan.n_steps, max(1, plan.n_steps // 50))]
    assert all(0 < rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if schedule == "constant":
        assert rates == sorted(rates)
    assert checkpoint_steps(config) >= 1


def test_a_longer_run_keeps_its_numbers() -> None:
    plan = make_plan(TrainingConfig(n_tokens=1000, batch_rows=10, schedule="constant"), 8)
    longer = extended(plan, 5000)
    assert (longer.n_steps, longer.n_tokens) == (500, 5000)
    assert [longer.lr(step) for step in range(100)] == [plan.lr(step) for step in range(100)]
    assert longer.dead_after_tokens == plan.dead_after_tokens
