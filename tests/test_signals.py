"""During a run, signals set a flag; while something is saved, they wait."""

# ruff: noqa: PT012  the statements of a block are what these tests are about

import os
import signal
import threading

import pytest

from workbench.signals import StopFlag, Terminated, receiving, shielded

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.fixture(autouse=True)
def handlers_are_restored():
    """Also where the tests run with SIGHUP ignored, as under nohup."""
    defaults = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    before = [signal.signal(signum, default) for signum, default in zip(SIGNALS, defaults)]
    yield
    assert [signal.getsignal(signum) for signum in SIGNALS] == defaults
    for signum, handler in zip(SIGNALS, before):
        signal.signal(signum, handler)


@pytest.fixture
def at(monkeypatch):
    """Sets the time of the next press, in seconds."""
    now = [0.0]
    monkeypatch.setattr("workbench.signals.time.monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_a_signal_sets_the_flag_and_is_raised_at_the_next_check_or_after_the_block():
    for signum, error in zip(SIGNALS, (KeyboardInterrupt, Terminated, Terminated)):
        flag = StopFlag()
        with pytest.raises(error) as caught, receiving(flag):
            signal.raise_signal(signum)
            assert flag.stopped and flag.signum == signum
        assert signum == signal.SIGINT or getattr(caught.value, "signum", None) == signum
    with pytest.raises(Terminated, match="ended by SIGTERM"), receiving(StopFlag()) as _:
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_second_press_ends_a_block_at_once_unless_it_has_something_to_lose():
    reached = []
    with pytest.raises(KeyboardInterrupt), receiving(StopFlag()):
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)
    assert reached == [1]
    flag = StopFlag()
    flag.has_something_to_lose = True
    with pytest.raises(KeyboardInterrupt), receiving(flag):
        for _ in range(20):
            signal.raise_signal(signal.SIGINT)
        reached.append(3)
    assert reached == [1, 3]


def test_five_presses_after_the_message_give_up(at, capsys):
    presses = []
    with pytest.raises(KeyboardInterrupt), shielded():
        for n in range(1, 10):
            at(n)
            presses.append(n)
            signal.raise_signal(signal.SIGINT)
    assert presses == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().err == "\nsaving what was recorded; press Ctrl-C five times to give up\n"


def test_a_key_that_is_held_down_is_one_press(at):
    done = []
    with pytest.raises(KeyboardInterrupt), shielded():
        for n in range(300):
            at(n * 0.033)
            signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done


def test_nested_blocks_are_all_stopped_and_the_outer_one_raises():
    outer, inner, done = StopFlag(), StopFlag(), []
    with pytest.raises(KeyboardInterrupt), receiving(outer):
        with shielded() as shield:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("saved")
        done.append("left to the outer block")
        assert shield.stopped and outer.stopped
        with receiving(inner):
            done.append("not stopped: it began later")
    assert len(done) == 3


def test_a_handler_of_somebody_else_stays(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    try:
        flag = StopFlag()
        with receiving(flag):
            signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM] and not flag.stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_is_stopped_by_its_flag_only():
    raised = []

    def work():
        flag = StopFlag()
        try:
            with receiving(flag), shielded():
                flag.stop()
        except KeyboardInterrupt as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert len(raised) == 1
