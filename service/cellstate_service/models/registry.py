"""The models that are loaded, by name."""

from pathlib import Path

import torch

from cellstate_service.errors import NotFound, Reason
from cellstate_service.models.errors import ModelError
from cellstate_service.models.loading import LoadedModel, load_model
from cellstate_service.models.manifest import MANIFEST_FILE, Dtype


class ModelRegistry:
    """Loaded models by name. Filled at start by one thread; reading it is safe from any."""

    def __init__(self) -> None:
        self._models: dict[str, LoadedModel] = {}
        self._folders: dict[str, Path] = {}

    def load_folder(self, models_dir: Path, torch_threads: int = 1, dtype: Dtype | None = None) -> None:
        """Load every sub-folder of `models_dir` that has a manifest, in the order of their names.

        The calling thread computes with `torch_threads` threads from then on, as the engines will: the self-check at load is to see what they do.

        `dtype` is what matrix products are computed in, where that is not what the manifests say.

        Raises:
            ModelError: It is no folder, a model fails its checks, or two have one name. Those before it stay loaded.
        """
        torch.set_num_threads(torch_threads)
        try:
            folders = sorted(path for path in models_dir.iterdir() if (path / MANIFEST_FILE).exists())
        except OSError as error:
            raise ModelError(models_dir, "", f"cannot be read as a folder ({error.strerror})") from None
        for folder in folders:
            self.add(load_model(folder, dtype), folder)

    def add(self, model: LoadedModel, folder: Path) -> None:
        """Add a model that was loaded from `folder`.

        Raises:
            ModelError: There is another one of its name.
        """
        if model.name in self._models:
            raise ModelError(folder / MANIFEST_FILE, "name", f"{model.name!r} is the model in {self._folders[model.name]} already")
        self._folders[model.name] = folder
        self._models[model.name] = model

    def replace(self, model: LoadedModel) -> None:
        """Put a model in the place of an earlier version of it."""
        self._models[model.name] = model

    def get(self, name: str, field: str = "model") -> LoadedModel:
        """Return the model of a name; `field` is where the caller's request has it.

        Raises:
            NotFound: MODEL_NOT_FOUND, telling which models there are.
        """
        model = self._models.get(name)
        if model is None:
            loaded = ", ".join(self.names()) or "none"
            raise NotFound(f"no model {name[:64]!r} is loaded; loaded: {loaded}", Reason.MODEL_NOT_FOUND, field=field)
        return model

    def names(self) -> tuple[str, ...]:
        """Return the names of all models, sorted."""
        return tuple(sorted(self._models))

    def list(self) -> tuple[LoadedModel, ...]:
        """Return all models, sorted by name."""
        return tuple(self._models[name] for name in self.names())
