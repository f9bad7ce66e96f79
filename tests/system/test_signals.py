"""A signal waits for the end of a step, but not for ever."""

import signal
import time
from collections.abc import Iterator

import pytest

from fishexp.system import signals


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {kind: signal.getsignal(kind) for kind in signals.KINDS}
    signals.install()
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.mark.parametrize("kind", signals.KINDS)
def test_outside_a_run_it_is_raised_at_once(kind: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(kind)


@pytest.mark.parametrize("kind", signals.KINDS)
def test_in_a_run_it_waits_for_the_end_of_the_step(kind: signal.Signals) -> None:
    done: list[str] = []

    def run() -> None:
        with signals.between_steps():
            signal.raise_signal(kind)
            done.append("the step")
            signals.check()
            done.append("the next")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == ["the step"]
    signals.check()  # and is forgotten


def test_asked_twice_means_now() -> None:
    done: list[str] = []

    def run() -> None:
        with signals.between_steps():
            signal.raise_signal(signal.SIGINT)
            done.append("the step")
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == ["the step"]


def test_a_step_that_does_not_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE", 0.2)
    start = time.monotonic()

    def run() -> None:
        with signals.between_steps():
            signal.raise_signal(signal.SIGINT)
            time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert time.monotonic() - start < 10


def test_a_signal_that_comes_as_the_run_ends_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), signals.between_steps():
        signal.raise_signal(signal.SIGINT)


def test_a_last_snapshot_may_take_longer_than_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE", 0.2)
    done: list[str] = []

    def run() -> None:
        with signals.between_steps():
            assert not signals.last_snapshot_wanted()
            signal.raise_signal(signal.SIGTERM)
            assert signals.last_snapshot_wanted()
            time.sleep(0.6)
            done.append("the snapshot")
            signals.check()
            done.append("the next step")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == ["the snapshot"]


def test_it_stops_before_the_time_is_over() -> None:
    start = time.monotonic()

    def run() -> None:
        signals.stop_after(1)
        with signals.between_steps():
            while time.monotonic() < start + 5:
                signals.check()
                time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert 0.85 < time.monotonic() - start < 1


def test_a_job_of_submitit_is_requeued_after_its_run_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps, where a snapshot is taken; SIGTERM is left as submitit has it."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    done: list[str] = []

    def requeue(kind: int, frame: object) -> None:
        done.append("requeued")
        raise SystemExit(-1)

    def ignore(kind: int, frame: object) -> None:
        done.append("ignored")

    def run() -> None:
        with signals.passed_on(), signals.between_steps():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR2)
            done.append("the step")
            signals.check()
            done.append("the next")

    signal.signal(signal.SIGUSR2, requeue)
    signal.signal(signal.SIGTERM, ignore)
    with pytest.raises(SystemExit):
        run()
    assert done == ["ignored", "the step", "requeued"]
    assert signal.getsignal(signal.SIGUSR2) is requeue


def test_ctrl_c_does_not_requeue_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    signal.signal(signal.SIGUSR2, lambda *_: pytest.fail("requeued"))
    with pytest.raises(KeyboardInterrupt), signals.passed_on():
        signal.raise_signal(signal.SIGINT)
