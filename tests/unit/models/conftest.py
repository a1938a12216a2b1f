"""What the tests of models share: one thread, so that bits are comparable, and loaded models from folders made up on the spot."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cellstate_service.models.loading import LoadedModel, load_model
from tests.models_on_disk import write_recurrent


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def load_recurrent(tmp_path: Path) -> Callable[..., LoadedModel]:
    def load(**options: Any) -> LoadedModel:
        return load_model(write_recurrent(tmp_path / "model", **options))

    return load


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Write a model folder whose manifest has some dotted keys set (`None`: taken out)."""

    def edit(keys: dict[str, Any], **options: Any) -> Path:
        folder = write_recurrent(tmp_path / "model", **options)
        path = folder / "model.yaml"
        values = yaml.safe_load(path.read_text())
        for dotted, value in keys.items():
            *parents, key = dotted.split(".")
            section = values
            for parent in parents:
                section = section[parent]
            if value is None:
                section.pop(key, None)
            else:
                section[key] = value
        path.write_text(yaml.safe_dump(values, allow_unicode=True))
        return folder

    return edit
