"""Write docs/settings.md from the settings classes. A test holds the page against them.

.venv/bin/python scripts/settings_page.py
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from cellstate_service.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
HEAD = """# Settings

Flags win over environment variables, those over the file (`--config FILE`, YAML, groups as mappings), that over the defaults.
`cellstate serve --set KEY=VALUE` sets any of them; the common ones have flags of their own (`cellstate serve --help`). An unknown key or an unreadable value is
an error that names it. This page is written by `scripts/settings_page.py`.

| key | environment | default | meaning |
|---|---|---|---|
"""


def rows(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a table row for each setting, groups unfolded."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from rows(inner, (*path, name))
            continue
        key = (*path, name)
        default = "" if field.default is None else f"`{field.default}`"
        yield f"| `{'.'.join(key)}` | `CELLSTATE_{'__'.join(key).upper()}` | {default} | {field.description} |"


def page() -> str:
    """Return the page."""
    return HEAD + "\n".join(rows(Settings)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name} written")
