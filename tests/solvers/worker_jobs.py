"""What tests let worker processes do."""

import importlib
import os
import signal
import sys
import time


def double(x):
    return 2 * x


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def count(n):
    print("this is no result")
    yield from range(n)
    return "end"


def fail():
    raise ValueError("no")


def die_if(dead):
    if dead:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def own_number_then_sleep():
    yield os.getpid()
    time.sleep(60)


def loaded(module, other):
    importlib.import_module(module)
    return other in sys.modules
