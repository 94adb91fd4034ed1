"""An emulated arm64 board without Python as a device: a program of the artifact's own answers a job there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploykit.artifact.golden import Golden
from deploykit.contract.errors import ArtifactError
from deploykit.judge.profiling import Effort
from deploykit.plugin.artifact import Artifact
from deploykit_fleet.devices import Device, Entry

UNIT = 0.05001  # of the quantised result, and float32's own error


def test_a_program_answers_a_job(
    compiled: Any, artifact_of: Any, fake_board: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pi = compiled("raspberry-pi-5")
    found = artifact_of(pi)
    board = Device("pi", Entry("pi@board", "raspberry-pi-5"))
    with pytest.raises(ArtifactError, match="it was not made here"):
        board.run(Artifact(found.path, found.manifest), pi.feeds)
    assert fake_board.commands == []
    artifact = Artifact(found.path, found.manifest, vouched="made by this test")
    for sent in (True, False):
        before = board.board.transfer.sent_bytes
        outputs = board.run(artifact, [pi.feeds, pi.feeds])
        assert all(np.abs(own["y"] - pi.expected).max() <= UNIT for own in outputs)
        assert (board.board.transfer.sent_bytes > before) is sent
    monkeypatch.setattr(Artifact, "golden", lambda own: Golden((pi.feeds,), ({"y": pi.expected},)))
    profile = board.profile(artifact, effort=Effort(seconds=0.05))
    assert profile.runs >= 20 and profile.conditions is not None and profile.host.family == "arm64"
    assert not any("python" in command for command in fake_board.commands)
