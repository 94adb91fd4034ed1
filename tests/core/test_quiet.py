import logging
import sys
import warnings

import pytest

from deploykit.contract.quiet import kept_quiet, quiet


def test_what_a_converter_says_is_kept_and_not_shown(capsys):
    log = []
    with kept_quiet(log):
        print("printed")
        print("to stderr", file=sys.stderr)
        warnings.warn("warned", UserWarning, stacklevel=1)
        logging.getLogger("some.converter").warning("logged %d", 1)
    assert sorted(log) == ["logged 1", "printed", "to stderr", "warned"]
    assert capsys.readouterr() == ("", "")


def test_bars_repetitions_and_temporary_files_are_dropped():
    log = []
    with kept_quiet(log):
        print("\rpasses: 50%", end="", file=sys.stderr)
        print("\rpasses: 100%", file=sys.stderr)
        for _ in range(2):
            warnings.warn("again", UserWarning, stacklevel=1)
        warnings.warn("Implicitly cleaning up", ResourceWarning, stacklevel=1)
    assert log == ["again"]


def test_loggers_that_write_to_the_terminal_themselves_are_caught_and_restored(capsys):
    logger, handler = logging.getLogger("deploykit.tests.loud"), logging.StreamHandler(sys.stdout)
    logger.propagate = False
    logger.addHandler(handler)
    log = []
    try:
        with kept_quiet(log):
            logger.error("into the log")
        assert logger.handlers == [handler]
    finally:
        logger.removeHandler(handler)
    assert log == ["into the log"]
    assert capsys.readouterr().out == ""


def test_an_error_passes_and_what_was_said_before_is_kept():
    log = []

    def convert():
        with kept_quiet(log):
            print("last words")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        convert()
    assert log == ["last words"]


def test_quiet_gives_the_logging_level_back():
    before = logging.root.manager.disable
    with quiet():
        logging.getLogger("any").critical("not shown")
    assert logging.root.manager.disable == before
