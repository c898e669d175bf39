import multiprocessing
import os
import signal
import time

import pytest

from pclseg.errors import Stopped
from pclseg.train.stop import StopFlag


@pytest.fixture
def stop():
    before = {number: signal.getsignal(number) for number in (15, 2)}
    flag = StopFlag()
    flag.install()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs before the next line of Python


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_sets_the_flag_where_work_polls(stop, number):
    stop.check()
    send(number)
    assert stop.requested
    with pytest.raises(Stopped):
        stop.check()


def test_a_second_ctrl_c_ends_the_process_at_once(stop):
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_a_signal_raises_inside_interruptible_work(stop):
    start = time.monotonic()
    with pytest.raises(Stopped), stop.interruptible():
        send()
        time.sleep(60)
    assert time.monotonic() - start < 30


def test_no_handler_of_errors_swallows_a_stop(stop):
    with pytest.raises(Stopped), stop.interruptible():
        try:
            send()
        except Exception as error:
            raise AssertionError from error


def test_a_second_signal_does_not_interrupt_the_clean_up(stop):
    cleaned = False
    with pytest.raises(Stopped), stop.interruptible():
        try:
            send()
        finally:
            send()
            cleaned = True
    assert cleaned


def test_a_signal_that_a_library_takes_for_an_error_still_stops(stop):
    with pytest.raises(Stopped), stop.interruptible():
        try:
            send()
        except BaseException as error:
            raise ValueError("an exception was raised in a callback") from error


def test_an_error_of_the_work_stays_what_it_is(stop):
    with pytest.raises(ValueError, match="its own"), stop.interruptible():
        raise ValueError("its own")


def test_interruptible_work_does_not_begin_once_asked(stop):
    send()
    with pytest.raises(Stopped), stop.interruptible():
        raise AssertionError


def test_work_after_an_interruptible_block_polls_again(stop):
    with stop.interruptible(), stop.interruptible():
        pass
    send()
    assert stop.requested


def test_worker_processes_end_with_interruptible_work(stop):
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    with pytest.raises(Stopped), stop.interruptible():
        worker.start()
        send()
    worker.join(30)
    assert worker.exitcode == -signal.SIGKILL
