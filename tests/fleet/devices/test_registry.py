"""The list of boards: a file that people edit, and whose mistakes are named by their line."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.contract.errors import DeviceError, UsageError
from deploykit_fleet.devices.registry import Entry, Found, Registry, default_path

FOUND = Found("aarch64", "Linux", 4, ("asimd",), 'a "system"', "6.6", "Pi\x7f\u2028 é", 1 << 30, "3.11", "0.1")


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEPLOYKIT_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_path() == tmp_path / "deploykit/devices.toml"
    monkeypatch.setenv("DEPLOYKIT_DEVICES", str(tmp_path / "own.toml"))
    assert default_path() == tmp_path / "own.toml" and Registry().entries() == {}


def test_what_is_written_is_read_and_other_lines_are_kept(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "d.toml")
    registry.put("pi", Entry("pi@one", "raspberry-pi-5", "/opt/python", FOUND))
    registry.put("lab.2", Entry("adb:ABC"))
    registry.path.write_text(registry.path.read_text() + "# the one under the desk\n")
    registry.put("pi", Entry("pi@two"))
    assert registry.entries() == {"lab.2": Entry("adb:ABC"), "pi": Entry("pi@two")}
    assert "# the one under the desk" in registry.path.read_text()
    registry.put("pi", Entry("pi@one", found=FOUND))
    assert registry.get("pi").found == FOUND
    registry.remove("pi")
    assert list(registry.entries()) == ["lab.2"]


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(codec="utf-8"), max_size=30), st.lists(st.text(st.characters(codec="utf-8"), max_size=9)))
def test_any_text_of_a_board(text: str, more: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder) / "d.toml")
        entry = Entry("pi", found=Found(model=text, runtimes=dict.fromkeys(more, text), isa=tuple(more)))
        registry.put("a", entry)
        registry.put("b", entry)
        registry.put("a", entry)
        assert registry.entries() == {"a": entry, "b": entry}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[devices.pi]\naddress = 3\n", r"d\.toml, line 1, device 'pi': Expected `str`, got `int`"),
        ('# x\n\n[devices.pi]\naddress = "a"\npyton = "b"\n', r"line 3, device 'pi': unknown key 'pyton'"),
        ("[devices.pi]\n", r"line 1, device 'pi': .*address"),
        ("[devices.pi\n", r"is not TOML: .*line 1"),
        ("[boards.pi]\n", r"'boards' is not known here"),
        ("devices = 3\n", r"'devices' is not known here"),
        ("[devices]\npi = 3\n", r"device 'pi': Expected `object`"),
        (b"[devices.\xff]\n", r"line 1: not UTF-8"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written_over_them(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = tmp_path / "d.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for action in (Registry(path).entries, lambda: Registry(path).put("new", Entry("x"))):
        with pytest.raises(UsageError, match=said):
            action()
    assert path.read_bytes() == (text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", "../x", "a/b", "x" * 64, "a]", 'a"'])
def test_what_is_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        Registry(tmp_path / "d.toml").put(name, Entry("x"))


def test_two_that_write_at_once(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "d.toml")
    threads = [threading.Thread(target=registry.put, args=(f"n{i}", Entry("x"))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.entries()) == 8


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot write"):
        Registry(tmp_path / "file" / "d.toml").put("a", Entry("x"))


@pytest.mark.parametrize(
    "text",
    [
        'devices.a.address = "h"\n',
        '[devices]\na = { address = "h" }\nb = { address = "i" }\n',
        "[devices.a]\naddress = '''\n[devices.b]\n'''\n[devices.b]\naddress = 'h'\n",
    ],
)
def test_a_form_that_is_not_edited_is_left_as_it_was(tmp_path, text):
    path = tmp_path / "devices.toml"
    path.write_text(text)
    registry = Registry(path)
    before = registry.entries()
    for change in (lambda: registry.put("a", Entry("new")), lambda: registry.remove("a")):
        with pytest.raises(UsageError, match="left as it was") as caught:
            change()
        assert "[devices.a]" in caught.value.hint
        assert path.read_text() == text and registry.entries() == before


def test_comments_of_other_devices_stay(tmp_path):
    path = tmp_path / "devices.toml"
    rest = '# the board on the desk\n[devices.b]\naddress = "h"\n\n# end\n'
    path.write_text(f'# mine\n[devices.a]\n# of a\naddress = "h"\n\n[devices.a.found]\narch = "x"\n\n{rest}')
    registry = Registry(path)
    registry.put("a", Entry("new"))
    assert path.read_text() == f'# mine\n\n{rest}\n[devices.a]\naddress = "new"\n'
    registry.remove("a")
    assert path.read_text() == f"# mine\n\n{rest}"
