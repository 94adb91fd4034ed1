"""Steps: what a listener is told, what is logged, and what a terminal, a notebook and a pipe are shown."""

import io
import logging
import re
import sys
import threading
from types import SimpleNamespace

import pytest

from deploykit.contract.progress import Event
from deploykit.pipeline.progress import Lines, Steps, in_notebook


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_listener_is_told_each_step():
    told = []
    steps = Steps(enabled=told.append)
    with steps.step("capture"):
        pass
    with steps.step("calibrate", spinner=False):
        assert callable(steps.counted)
        steps.counted(3, 8)
        steps.counted(4, None)
    assert [(event.step, event.state, event.done, event.total) for event in told] == [
        ("capture", "begins", None, None),
        ("capture", "ends", None, None),
        ("calibrate", "begins", None, None),
        ("calibrate", "advances", 3, 8),
        ("calibrate", "advances", 4, None),
        ("calibrate", "ends", None, None),
    ]
    assert list(steps.seconds) == ["capture", "calibrate"]
    assert str(told[3]).startswith("calibrate 3/8 ...") and str(told[4]).startswith("calibrate 4 ...")


def test_a_step_that_fails_says_so_and_is_not_counted():
    told = []
    steps = Steps(enabled=told.append)
    with pytest.raises(KeyError), steps.step("convert"):
        raise KeyError
    assert told[-1].state == "fails" and "convert failed after" in str(told[-1]) and not steps.seconds


def test_steps_are_logged_everywhere(caplog, capsys):
    with caplog.at_level(logging.DEBUG, "deploykit"), Steps(enabled=False).step("validate"):
        pass
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO"]
    assert {record.name for record in caplog.records} == {"deploykit"}
    captured = capsys.readouterr()
    assert not captured.out and not captured.err


def test_a_terminal_gets_a_line_a_step(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    steps = Steps()
    with steps.step("capture"):
        assert steps.counted is True  # counts draw their own bar
    assert re.search(r"capture \d+\.\d s", terminal.getvalue())


def test_a_pipe_gets_nothing(capsys):
    with Steps().step("capture"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_notebook_gets_lines_in_its_cell(monkeypatch, capsys):
    kernel = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    assert in_notebook()
    with Steps().step("capture"):
        pass
    assert re.fullmatch(r"capture \d+\.\d s\n", capsys.readouterr().out)


@pytest.mark.parametrize("module", [None, SimpleNamespace(), SimpleNamespace(get_ipython=lambda: None)])
def test_what_is_no_notebook(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "IPython", module)
    assert not in_notebook()


def test_lines_say_that_a_step_still_runs():
    stream, said = io.StringIO(), threading.Event()

    class Stream:
        def write(self, text: str) -> int:
            if "..." in text:
                said.set()
            return stream.write(text)

        def flush(self) -> None: ...

    with Steps(enabled=Lines("demo: ", stream=Stream(), every_s=0.001)).step("profile"):
        assert said.wait(30)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("demo: profile ...") and re.match(r"demo: profile \d", lines[-1])


def test_lines_tell_what_is_counted():
    stream, said = io.StringIO(), threading.Event()

    class Stream:
        def write(self, text: str) -> int:
            if " 3/8 " in text:
                said.set()
            return stream.write(text)

        def flush(self) -> None: ...

    steps = Steps(enabled=Lines(stream=Stream(), every_s=0.001))
    with steps.step("calibrate", spinner=False):
        steps.counted(3, 8)
        assert said.wait(30)


def test_lines_to_a_stream_that_is_closed_are_dropped():
    stream = io.StringIO()
    stream.close()
    Lines(stream=stream)(Event("capture", "ends"))
