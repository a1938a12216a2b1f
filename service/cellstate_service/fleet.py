"""The loaded models and an engine for each: started, brought up to date with their folder while the server runs, and stopped."""

import asyncio
import os

import structlog

from cellstate_service.clock import Clock
from cellstate_service.engine.core import StepLimits
from cellstate_service.engine.engine import Engine, EngineConfig
from cellstate_service.engine.processors import Processors
from cellstate_service.models.errors import ModelError
from cellstate_service.models.loading import LoadedModel
from cellstate_service.models.manifest import MANIFEST_FILE
from cellstate_service.models.registry import ModelRegistry
from cellstate_service.observability.metrics import Metrics
from cellstate_service.session_parts import Sessions
from cellstate_service.sessions.engines import Engines
from cellstate_service.settings import Settings

_log = structlog.get_logger(__name__)


class Fleet:
    """Models and their engines.

    A model whose folder has changed gets a new engine for new sessions and calls. Sessions stay on the version that they began with, until they end or
    `retire_s` has passed since it was replaced.

    Attributes:
        registry: The newest version of each model.
        engines: All engines.
    """

    def __init__(self, settings: Settings, metrics: Metrics, clock: Clock) -> None:
        self.registry = ModelRegistry()
        self.engines = Engines()
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._processors = Processors(settings.engine.threads or _default_threads(), clock)
        self._reloading = asyncio.Lock()

    async def start(self) -> None:
        """Load the models and start an engine for each.

        Raises:
            ModelError: A folder cannot be used.
            ValueError: There is no model.
        """
        self.registry = await self._load()
        if not self.registry.names():
            folder = self._settings.models
            raise ValueError(f"{folder}: no folder in it has a {MANIFEST_FILE}; name the folder that holds model folders by --models")
        self._metrics.models_loaded.set(len(self.registry.names()))
        engines = [self._engine(model) for model in self.registry.list()]
        for engine in engines:
            await engine.warmed()
            self.engines.add(engine, self._clock.monotonic())

    async def reload(self) -> list[str]:
        """Read the models' folder again and return the names of those that are new or have changed. What cannot be loaded is logged, and nothing changes."""
        async with self._reloading:
            try:
                found = await self._load()
            except ModelError as error:
                _log.error("the models could not be loaded again: those that serve go on", error=str(error))
                return []
            changed = [model for model in found.list() if model.name not in self.engines or self.engines[model.name].model.digest != model.digest]
            for model in changed:
                engine = self._engine(model)
                await engine.warmed()
                self.engines.add(engine, self._clock.monotonic())
                self.registry.replace(model)
            self._metrics.models_loaded.set(len(self.registry.names()))
            names = [model.name for model in changed]
            _log.info("the models' folder was read again", changed=names)
            return names

    async def retire(self, sessions: Sessions) -> None:
        """Stop the engines of replaced versions that nobody is on any more, or whose time has passed."""
        for engine, since_s in self.engines.retired().items():
            if self._clock.monotonic() - since_s >= self._settings.engine.retire_s:
                await sessions.leave_engine(engine)
            if not sessions.uses(engine):
                self.engines.remove(engine)
                await engine.stop()
                _log.info("a replaced version of a model is stopped", model=engine.model.name, digest=engine.model.digest[:12])

    async def stop(self) -> None:
        """End all engines."""
        for engine in self.engines.every():
            await engine.stop()

    @property
    def dead(self) -> list[str]:
        """Names of models whose engine's thread has died."""
        return [name for name, engine in self.engines.items() if not engine.alive]

    def largest_snapshot_bytes(self) -> int:
        """Return a bound of the size of any session's snapshot without what its caller may ask again."""
        largest = max((model.state_bytes + 4 * model.network.output_size for model in self.registry.list()), default=0)
        return 2 * largest + (1 << 20)

    async def _load(self) -> ModelRegistry:
        registry, given = ModelRegistry(), self._settings
        await asyncio.to_thread(registry.load_folder, given.models, given.engine.torch_threads, given.engine.dtype)
        return registry

    def _engine(self, model: LoadedModel) -> Engine:
        engine = Engine(model, self._config(), self._processors, self._metrics, self._clock)
        engine.start(asyncio.get_running_loop())
        return engine

    def _config(self) -> EngineConfig:
        given = self._settings.engine
        slots = self._settings.sessions.max_sessions + given.max_calls
        steps = StepLimits(given.max_batch_rows, given.max_ahead_s)
        return EngineConfig(steps, slots, given.torch_threads, given.max_batch_rows if given.warm_rows is None else given.warm_rows)


def _default_threads() -> int:
    """Return half of the processors that this process may use, but both of two: with more, the event loop and the callers beside it need some."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors if processors <= 2 else processors // 2
