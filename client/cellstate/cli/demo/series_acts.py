"""Acts on the forecaster: the next value, a sequence from one value, the next sequence from a sequence, one output per input."""

import time
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from cellstate import Client, Input, Output, values
from cellstate.cli.chart import Line
from cellstate.cli.demo.data import YearlySeries
from cellstate.cli.demo.stage import ActError, Stage

MODEL = "sunspots"
_HORIZON = 22
_SHOWN = 44
_FOLLOWED = 60
_CHUNK = 5
_TRUTH, _FORECAST = "white", "bright_cyan"

Values = npt.NDArray[np.floating]


def predict_next(client: Client, stage: Stage, series: YearlySeries) -> None:
    """Many-to-one: a history predicts the next value."""
    history, truth = series.values[:-_HORIZON], float(series.values[-_HORIZON])
    year = int(series.years[-_HORIZON])
    stage.heading("many-to-one", f"a sequence predicts the next value: sunspots of {year}")
    begun = time.perf_counter()
    predicted = float(client.many_to_one(MODEL, values(history)).values[-1, 0])
    seconds = time.perf_counter() - begun
    shown = history[-_SHOWN:]
    lines = [
        Line("history", [*shown, truth], _TRUTH, "."),
        Line(f"predicted for {year}", [float(shown[-1]), predicted], _FORECAST, "o", start=len(shown) - 1),
    ]
    stage.chart(lines, (str(year - len(shown)), str(year)), height=8)
    stage.say(f"  predicted {predicted:.1f}, observed {truth:.1f}; the year before had {history[-1]:.1f}")
    stage.figures(f"{len(history)} steps consumed in {seconds * 1e3:.1f} ms")
    _check(np.array([predicted]), 1)


def dream_from_one_value(client: Client, stage: Stage, series: YearlySeries) -> None:
    """One-to-many: one value predicts a sequence."""
    value = float(series.values[-_HORIZON - 1])
    stage.heading("one-to-many", f"one value predicts a sequence: {2 * _HORIZON} years from {value:.1f}")
    predicted = _generated(client.one_to_many(MODEL, values([value]), max_steps=2 * _HORIZON))
    lines = [Line("observed", [value, *series.values[-_HORIZON:]], _TRUTH, "."), Line("predicted from the first value", [value, *predicted], _FORECAST, "o")]
    first = int(series.years[-_HORIZON - 1])
    stage.chart(lines, (str(first), str(first + 2 * _HORIZON)), height=8)
    stage.figures(f"{len(predicted)} steps generated, each fed by the one before")
    _check(predicted, 2 * _HORIZON)


def predict_sequence(client: Client, stage: Stage, series: YearlySeries) -> None:
    """Many-to-many: a sequence predicts the next sequence, on one stream."""
    history, truth = series.values[:-_HORIZON], series.values[-_HORIZON:]
    first = int(series.years[-_HORIZON])
    stage.heading("many-to-many", f"a sequence predicts the next sequence: {_HORIZON} years from {first}")
    begun = time.perf_counter()
    with client.stream(MODEL, emit="none") as stream:
        stream.send(values(history))
        stream.generate(max_steps=_HORIZON)
        stream.half_close()
        predicted = _generated(stream)
    seconds = time.perf_counter() - begun
    shown = history[-_SHOWN:]
    lines = [
        Line("observed", [*shown, *truth], _TRUTH, "."),
        Line("predicted", [float(shown[-1]), *predicted], _FORECAST, "o", start=len(shown) - 1),
    ]
    stage.chart(lines, (str(first - len(shown)), str(int(series.years[-1]))))
    stage.say(
        f"  off by {_rmse(predicted, truth):.1f} (root mean square); repeating the last cycle is off by {_rmse(series.values[-_HORIZON - 11 : -11], truth):.1f}"
    )
    stage.figures(f"{len(history)} steps consumed and {_HORIZON} generated in {seconds * 1e3:.1f} ms")
    _check(predicted, _HORIZON)


def follow(client: Client, stage: Stage, series: YearlySeries) -> None:
    """Many-to-many: one output per input, as they arrive."""
    stage.heading("many-to-many", f"one output per input, as they arrive: {_FOLLOWED} years, each one ahead")
    outputs = _generated(client.many_to_many(MODEL, _in_chunks(series.values[:-1])))
    predicted, truth = outputs[-_FOLLOWED:], series.values[-_FOLLOWED:]
    years = series.years[-_FOLLOWED:]
    stage.chart(
        [Line("observed", truth.tolist(), _TRUTH, "."), Line("predicted a year ahead", predicted.tolist(), _FORECAST, "o")], (str(years[0]), str(years[-1]))
    )
    persistence = _rmse(series.values[-_FOLLOWED - 1 : -1], truth)
    stage.say(f"  off by {_rmse(predicted, truth):.1f} (root mean square); saying last year's value again is off by {persistence:.1f}")
    stage.figures(f"{len(outputs)} values in chunks of {_CHUNK}, as many out")
    _check(outputs, len(series.values) - 1)


def _in_chunks(series: Values) -> Iterator[Input]:
    for start in range(0, len(series), _CHUNK):
        yield values(series[start : start + _CHUNK])


def _generated(outputs: Iterable[Output]) -> Values:
    found = [output.values[:, 0] for output in outputs if output.data is not None]
    return np.concatenate(found) if found else np.zeros(0)


def _rmse(predicted: Values, truth: Values) -> float:
    return float(np.sqrt(np.mean((np.asarray(predicted) - np.asarray(truth)) ** 2)))


def _check(predicted: Values, count: int) -> None:
    if len(predicted) != count or not np.isfinite(predicted).all():
        raise ActError(f"asked for {count} finite values and got {predicted!r}")
