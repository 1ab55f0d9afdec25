"""What a Model keeps of generations that were interrupted or failed."""

from collections.abc import Callable

from workbench.model.interrupts import Interrupt
from workbench.traces import Trace


class PartialTraces:
    """`partial` of the last `generate`, and `partials` of the last `generate_many`."""

    _partial: Trace | None
    _kept: tuple[Callable[[], Trace | None], Interrupt] | None
    _partials: dict[int, Trace] | Callable[[], dict[int, Trace]]
    _running: list[Interrupt]

    def forget_partials(self) -> None:
        """`partial` and `partials` are empty."""
        self._partial, self._kept, self._partials = None, None, {}

    @property
    def partial(self) -> Trace | None:
        """The trace of the last generation, if it was interrupted or failed. During a generation it is None."""
        if self._kept is not None:
            save, flag = self._kept
            if flag in self._running:
                return None
            self.partial = save()
        return self._partial

    @partial.setter
    def partial(self, trace: Trace | None) -> None:
        self._partial, self._kept = trace, None

    def keep(self, save: Callable[[], Trace | None], flag: Interrupt) -> None:
        """`partial` is what `save` returns, if the generation of `flag` ends without setting `partial`.

        So the tokens are there even if saving them was interrupted.
        """
        self._partial, self._kept = None, (save, flag)

    @property
    def partials(self) -> dict[int, Trace]:
        """The traces of the prompts that the last `generate_many` began and did not finish, by number of the prompt."""
        if callable(self._partials):
            self._partials = self._partials()
        return self._partials

    @partials.setter
    def partials(self, traces: dict[int, Trace]) -> None:
        self._partials = traces

    def keep_many(self, save: Callable[[], dict[int, Trace]]) -> None:
        """`partials` is what `save` returns, when it is first read."""
        self._partials = save
