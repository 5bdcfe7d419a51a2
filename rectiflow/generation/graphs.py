"""Graphs that a thread compiles while pictures are drawn without them.

Beside the walk of a prompt, between `Pipeline` and the drawing. Compiling takes from seconds to
minutes, and every size of picture has graphs of its own: a server draws meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from rectiflow.base.errors import UserError
from rectiflow.generation.editing import EncodedEdit
from rectiflow.generation.model import Model
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import Inputs, draw_in_chunks
from rectiflow.models.frame import Backbone


class GraphsInTheMaking:
    """Says for each call whether its graphs are there, and has those made that are not.

    `compiled` is the model that they are of, `plain` the backbone that its own was made from. The
    process ends only after the graphs in the making.
    """

    def __init__(self, compiled: Model, plain: Backbone) -> None:
        self.compiled = compiled
        self._plain = plain
        self._drawn: dict[Hashable, Future[None]] = {}
        self._deciding = threading.Lock()
        # One after another: the compiler takes a lock, and drawing needs the rest of the machine.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")

    def model_for(
        self, model: Model, inputs: Inputs, settings: SamplingSettings, edit: EncodedEdit | None
    ) -> Model:
        """`model` if it has graphs for such a call, or else the same with plain blocks.

        It is `compiled`, perhaps with a weaker model beside it.

        Raises:
            Exception: whatever the compiler raised when it made them.
        """
        texts = (inputs.conditioning, inputs.negative)
        shapes = (
            inputs.noise.shape[1:],
            *((part.context.shape[1:], part.last_count) for part in texts),
            settings.guidance,
            settings.guidance_scale == 1.0,
            edit is not None,
        )
        with self._deciding:
            found = self._drawn.get(shapes)
            if found is None or _was_undrawable(found):
                found = None
                # Drawing one picture meets the graphs that a call of this kind needs. One that goes
                # on to others, as under an interval that these steps have missed, waits for them.
                self._drawn[shapes] = self._thread.submit(
                    draw_in_chunks, model, inputs[:1], settings, lambda _latents: None, edit=edit
                )
        if found is None or not found.done():
            return replace(model, backbone=self._plain)
        found.result()
        return model

    def finish(self) -> None:
        """Wait until nothing is drawn for graphs any more; no call may come after."""
        self._thread.shutdown()


def _was_undrawable(drawing: Future[None]) -> bool:
    """Whether it failed by what its call asked for, which says nothing about other calls."""
    return drawing.done() and isinstance(drawing.exception(), UserError)
