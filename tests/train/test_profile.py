"""Traces of some steps."""

import jax
import pytest

from jpeglm.core.errors import InputError
from jpeglm.train.profile import Profile


def test_a_trace_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: /run/profile/vm.xplane.pb; No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    profile = Profile(tmp_path, 0, 1)
    profile.before(3)
    with pytest.raises(InputError, match=f"^cannot write {tmp_path}/profile: No space left on device$"):
        profile.before(4)
