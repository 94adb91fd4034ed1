"""The registry: names to plugins and devices, what is missing or broken, and what is meant by a misspelt name."""

import pytest

import deploykit
from deploykit.contract.errors import DeploykitError, UnknownTargetError
from deploykit.contract.precision import Precision
from deploykit.plugin import registry
from deploykit.plugin.registry import broken_toolchains, resolve, targets, toolchain, toolchains


def info(name):
    return next(found for found in targets() if found.name == name)


def test_a_device_takes_its_default_toolchain(toy):
    found = resolve("toy-board")
    assert (found.typed, found.target.name, found.device) == ("toy-board", "toy", toy.BOARD)


def test_a_toolchain_takes_its_generic_device(toy):
    assert resolve("toy").device == toy.OLD_BOARD
    assert resolve("absent").device.name == "absent-board", "the first, where none is generic"


def test_device_and_toolchain(toy):
    assert resolve("toy-old:toy").device == toy.OLD_BOARD
    with pytest.raises(UnknownTargetError, match="does not serve 'absent-board'; it serves toy-board, toy-old"):
        resolve("absent-board:toy")
    with pytest.raises(UnknownTargetError, match="no toolchain 'nothing'"):
        resolve("toy-board:nothing")


@pytest.mark.parametrize("typed", ["", ":", "toy-board:", ":toy", "toy-board:toy:toy", "TOY-BOARD", " toy-board"])
def test_what_is_no_name(toy, typed):
    with pytest.raises(UnknownTargetError):
        resolve(typed)


@pytest.mark.parametrize(
    ("typed", "meant"), [("toy-bord", "toy-board"), ("tyo", "toy"), ("absent-bord", "absent-board")]
)
def test_a_misspelt_name_is_answered_with_near_ones(toy, typed, meant):
    with pytest.raises(UnknownTargetError, match=f"unknown target '{typed}'") as caught:
        resolve(typed)
    assert "did you mean" in caught.value.hint and meant in caught.value.hint


def test_a_name_like_no_other_points_to_the_list(toy):
    with pytest.raises(UnknownTargetError) as caught:
        resolve("xqzw12345")
    assert "deploykit targets" in caught.value.hint


def test_targets_tell_what_is_installed_and_how_to_get_the_rest(toy):
    here = info("toy-board")
    assert here.can_export and here.can_run
    assert here.export_command == "pip install toy-plugin"
    assert here.precisions == (Precision.INT8, Precision.FP32)
    assert info("toy-old").precisions == (Precision.FP32,)
    missing = info("absent-board")
    assert not missing.can_export and not missing.can_run
    assert missing.export_command == 'pip install "toy-plugin[absent]"'
    assert missing.run_command == 'pip install "toy-plugin[absent-runtime]"'


def test_targets_are_sorted_and_unique(toy):
    names = [found.name for found in targets()]
    assert len(names) == len(set(names))
    order = [(not found.can_export, found.toolchain) for found in targets()]
    assert order == sorted(order), "what can be exported here comes first"


def test_a_listed_name_can_be_resolved(toy):
    for found in targets():
        resolved = resolve(found.name)
        assert (resolved.target.name, resolved.device.name) == (found.toolchain, found.device)


def test_a_device_that_two_toolchains_serve(toy, install, monkeypatch):
    """The one that claims it is the default; the other is reached by its full name."""
    monkeypatch.setattr(
        toy, "SecondTarget", type("SecondTarget", (toy.ToyTarget,), {"name": "a-second"}), raising=False
    )
    original = toy.ToyTarget.capabilities

    def capabilities(self):
        own = original(self)
        boards = {name: toy.replace(board, default=self.name == "toy") for name, board in own.devices.items()}
        return toy.replace(own, devices=boards)

    monkeypatch.setattr(toy.ToyTarget, "capabilities", capabilities)
    install("second-plugin", {"a-second": "toy_toolchain:SecondTarget"})
    assert resolve("toy-board").target.name == "toy"
    assert resolve("toy-board:a-second").target.name == "a-second"
    assert {found.name for found in targets()} >= {"toy-board", "toy-board:a-second"}


def test_views_are_read_only(toy):
    with pytest.raises(TypeError):
        toolchains()["toy"] = None


# -- plugins that do not work -----------------------------------------------------------------------------------


def test_broken_plugins_are_reported_and_do_not_take_others_down(toy, install):
    install(
        "bad-plugin",
        {
            "gone": "no_such_module_of_toy:Target",
            "lacking": "toy_toolchain:NoSuchTarget",
            "odd": "toy_toolchain:NOT_A_TARGET",
            "unready": "toy_toolchain:UnreadyTarget",
            "misnamed": "toy_toolchain:ToyTarget",
        },
    )
    assert "toy" in toolchains()
    broken = broken_toolchains()
    assert {"gone", "lacking", "odd", "unready", "misnamed"} <= broken.keys()
    for name in ("gone", "lacking", "odd", "unready", "misnamed"):
        assert name not in toolchains()
        assert f"toolchain '{name}' of bad-plugin" in broken[name].message and broken[name].hint
    assert "RuntimeError: its [bracketed] licence has expired" in broken["unready"].message


def test_asking_for_a_broken_plugin_tells_why(toy, install):
    install("bad-plugin", {"unready": "toy_toolchain:UnreadyTarget"})
    for typed in ("unready", "toy-board:unready"):
        with pytest.raises(DeploykitError, match="licence has expired"):
            resolve(typed)


def test_one_name_from_two_distributions_names_both(toy, install):
    install("rival-plugin", {"toy": "toy_toolchain:AbsentTarget"})
    with pytest.raises(DeploykitError, match="registered twice") as caught:
        toolchains()
    assert "toy-plugin" in caught.value.message and "rival-plugin" in caught.value.message


def test_the_same_registration_seen_twice_is_fine(toy, install):
    install("toy-plugin", {"toy": "toy_toolchain:ToyTarget"})
    assert toolchain("toy").name == "toy"


def test_no_plugins_at_all(monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    registry._plugins.cache_clear()
    try:
        assert targets() == ()
        with pytest.raises(UnknownTargetError):
            resolve("x86-cpu")
        with pytest.raises(UnknownTargetError):
            toolchain("onnxruntime")
    finally:
        registry._plugins.cache_clear()


def test_two_defaults_of_one_device_are_refused_and_both_stay_usable(toy, install):
    install("rival-plugin", {"rival": "toy_toolchain:RivalTarget"})
    with pytest.raises(DeploykitError, match="rival and toy each call themselves the default toolchain of 'toy-board'"):
        resolve("toy-board")
    assert resolve("toy-board:rival").target.name == "rival"
    names = {found.name for found in targets()}
    assert {"toy-board:toy", "toy-board:rival"} <= names and "toy-board" not in names


def test_what_can_be_exported_here_stands_first_and_the_others_say_what_is_missing() -> None:
    infos = deploykit.targets()
    assert [info.can_export for info in infos] == sorted((info.can_export for info in infos), reverse=True)
    assert all(info.unavailable or "install" in info.export_command for info in infos if not info.can_export)
    assert not any(info.unavailable for info in infos if info.can_export)
