"""The engines by model: the one that new sessions and calls get, and those of earlier versions, whose sessions stay on them until they end."""

from collections.abc import Iterator, Mapping

from cellstate_service.engine.engine import Engine


class Engines(Mapping[str, Engine]):
    """Engines by the name of their model, each of the newest version. Loop only."""

    def __init__(self) -> None:
        self._newest: dict[str, Engine] = {}
        self._retired: dict[Engine, float] = {}

    def __getitem__(self, model: str) -> Engine:
        """Return the engine of a model's newest version."""
        return self._newest[model]

    def __iter__(self) -> Iterator[str]:
        """Iterate the models' names."""
        return iter(self._newest)

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self._newest)

    def add(self, engine: Engine, now_s: float) -> None:
        """Have a model's new sessions and calls run here from now on."""
        old = self._newest.get(engine.model.name)
        if old is not None:
            self._retired[old] = now_s
        self._newest[engine.model.name] = engine

    def of(self, model: str, digest: str) -> Engine | None:
        """Return the engine of a version of a model; where that is not loaded, of the newest, which will not fit; None where there is none."""
        return next((engine for engine in self.every() if (engine.model.name, engine.model.digest) == (model, digest)), self._newest.get(model))

    def every(self) -> list[Engine]:
        """Return all engines, those of the newest versions first."""
        return [*self._newest.values(), *self._retired]

    def retired(self) -> dict[Engine, float]:
        """Return the engines of earlier versions, each with the time since which it is one."""
        return dict(self._retired)

    def remove(self, engine: Engine) -> None:
        """Forget an engine of an earlier version."""
        self._retired.pop(engine, None)
