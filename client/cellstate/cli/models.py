"""`cellstate models`."""

from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from cellstate import ModelInfo, ValueKind, ValueSignature
from cellstate.cli.connection import DEFAULT_ADDRESS, Address, TlsCa, TokenFile, connect
from cellstate.cli.console import out, print_json, size


def models(
    *,
    name: Annotated[str | None, typer.Argument(help="Show only this model, in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """List the models that the server has loaded, or show one."""
    with connect(address, token_file, tls_ca) as client:
        found = client.models() if name is None else [client.model(name)]
    if as_json:
        print_json([_as_dict(model) for model in found] if name is None else _as_dict(found[0]))
    elif name is None:
        out.print(models_table(found))
    else:
        out.print(_details(found[0]))


def models_table(found: list[ModelInfo]) -> Table:
    """Return one row per model."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("model", "cell", "takes", "gives"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "state"):
        table.add_column(heading, no_wrap=True, justify="right")
    for model in found:
        cell = f"{model.cell.value} {model.num_layers}x{model.hidden_size}"
        table.add_row(model.name, cell, describe(model.input), describe(model.output), f"{model.parameters:,}", size(model.state_bytes))
    return table


def describe(signature: ValueSignature) -> str:
    """Say what a step takes or gives: `65 tokens`, `64 values`."""
    if signature.kind is ValueKind.TOKENS:
        return f"{signature.size} tokens"
    return f"{signature.size} value{'' if signature.size == 1 else 's'}"


def _details(model: ModelInfo) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "model": model.name,
        "": model.description,
        "cell": f"{model.cell.value}, {model.num_layers} layers of {model.hidden_size}",
        "takes": describe(model.input) + (" (or text)" if model.input.text else ""),
        "gives": describe(model.output) + (f" ({', '.join(model.output.names)})" if model.output.names else ""),
        "parameters": f"{model.parameters:,}",
        "state": f"{size(model.state_bytes)} per session" + "".join(f", {item.name} {list(item.shape)}" for item in model.state),
        "modes": ", ".join(mode.value.replace("_", "-") for mode in model.modes),
        "generates": "yes" if model.generates else "no",
        "same bits in any batch": "yes" if model.batch_invariant else f"no: {model.batch_invariant_reason}",
        "numerics": model.numerics_id,
        "digest": model.digest,
    }
    for heading, value in rows.items():
        table.add_row(heading, value)
    return table


def _as_dict(model: ModelInfo) -> dict[str, Any]:
    fields = asdict(model)
    fields["start"] = model.start.tolist() if isinstance(model.start, np.ndarray) else model.start
    return fields
