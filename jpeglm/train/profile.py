"""Profiler traces of some steps."""

import jax
from etils import epath

from jpeglm.core.errors import writing


class Profile:
    """Traces some steps for TensorBoard's profiler or Perfetto, after two warm-up steps."""

    def __init__(self, workdir: epath.Path, first_step: int, steps: int):
        """`first_step`: number of steps done before; `steps`: how many to trace, 0 for none."""
        self._folder, self._begin, self._end = workdir / "profile", first_step + 3, first_step + 3 + steps
        self._is_on = False

    def before(self, step: int) -> None:
        """Called before each step."""
        if step == self._begin < self._end:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        if step == self._end:
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if one is running."""
        if self._is_on:
            with writing(self._folder):
                jax.profiler.stop_trace()
        self._is_on = False
