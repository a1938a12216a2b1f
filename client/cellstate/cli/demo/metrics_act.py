"""The few Prometheus figures that moved."""

from rich.table import Table

from cellstate.cli.demo.figures import Moves
from cellstate.cli.demo.stage import ActError, Stage

_NAME_WIDTH, _COUNT_WIDTH = 38, 7
_SHOWN_METHODS = ("OneToOne", "ManyToOne", "OneToMany", "ManyToMany")


def show_moves(stage: Stage, moves: Moves, address: str) -> None:
    """Print what the calls of the demo did to the server's metrics."""
    stage.heading("metrics", f"what moved at http://{address}/metrics")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=_NAME_WIDTH)
    table.add_column(justify="right", no_wrap=True, min_width=_COUNT_WIDTH, style="bold")
    table.add_column(no_wrap=True, overflow="ellipsis")
    for method, count in moves.by("cellstate_calls_total", "method").items():
        if method in _SHOWN_METHODS:
            mean = moves.mean("cellstate_call_seconds", method=method)
            table.add_row("cellstate_calls_total", f"{count:,.0f}", f"{method}{_milliseconds(mean)}")
    for model, count in moves.by("cellstate_steps_total", "model").items():
        rows = moves.mean("cellstate_batch_rows", model=model)
        step = moves.mean("cellstate_step_seconds", model=model)
        batch = f", {rows:.1f} rows" if rows is not None else ""
        table.add_row("cellstate_steps_total", f"{count:,.0f}", f"{model}{batch}{_milliseconds(step)}")
    for model, count in moves.by("cellstate_generated_tokens_total", "model").items():
        table.add_row("cellstate_generated_tokens_total", f"{count:,.0f}", model)
    for name in ("time_to_first_output", "time_between_outputs"):
        mean = moves.mean(f"cellstate_{name}_seconds", method="OneToMany")
        if mean is not None:
            table.add_row(f"cellstate_{name}_seconds", f"{mean * 1e3:.2f} ms", "OneToMany, mean")
    stage.show(table)
    if not moves.total("cellstate_steps_total"):
        raise ActError("no step was counted")


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f", {seconds * 1e3:.2f} ms"
