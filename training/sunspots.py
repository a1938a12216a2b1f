"""Train `models/sunspots`: an LSTM that forecasts the yearly sunspot number.

The series (309 years, 1700-2008, public domain) comes with statsmodels. The last fifth, 1947-2008, is the test and is used once, for the final scores; every
choice was made on two folds inside the years before it, which the script trains and scores first.

    python -m training.sunspots --out models/sunspots --csv examples/data/sunspots.csv
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table as ConsoleTable
from statsmodels.datasets import sunspots
from statsmodels.tsa.ar_model import AutoReg
from torch import Tensor, nn

from training.card import Card, Table, write_card, write_manifest, write_weights
from training.ensemble import EnsembleLSTM

AUTOREG_LAGS = 9
FORECAST_YEARS = 11
FOLDS = ((147, 197), (197, 247))  # (years trained on, end of the years validated on): 1847-1896 and 1897-1946


@dataclass(frozen=True)
class Recipe:
    """How to train: `steps` updates on `rows` windows of `window` years, each scaled by exp(N(0, scale_spread)), with input noise in standard deviations."""

    members: int = 16
    width: int = 8
    steps: int = 600
    rows: int = 16
    window: int = 80
    rate: float = 5e-3
    weight_decay: float = 0.01
    scale_spread: float = 0.3
    input_noise: float = 0.1
    ignored_years: int = 3
    seed: int = 0


class Forecaster(nn.Module):
    """The served network in `torch.nn`: normalize, one LSTM, linear head, de-normalize."""

    def __init__(self, weights: Mapping[str, Tensor], mean: float, scale: float) -> None:
        super().__init__()
        width = weights["head.weight"].shape[1]
        self.rnn, self.head = nn.LSTM(1, width), nn.Linear(width, 1)
        self.load_state_dict(dict(weights))
        self.mean, self.scale = mean, scale

    @torch.no_grad()
    def forward(self, values: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Map values [T] to the prediction of each one's successor [T] and the new state."""
        hidden, state = self.rnn((values[:, None] - self.mean) / self.scale, state)
        return self.head(hidden)[:, 0] * self.scale + self.mean, state

    def forecast(self, history: Tensor, years: int) -> Tensor:
        """Consume the history [T], then generate: feed each prediction back; returns [years]."""
        outputs, state = self(history)
        generated = [outputs[-1:]]
        while len(generated) < years:
            outputs, state = self(generated[-1], state)
            generated.append(outputs)
        return torch.cat(generated)


def read_series() -> tuple[np.ndarray, np.ndarray]:
    """Return years int64 [N] and sunspot numbers float64 [N]."""
    table = sunspots.load_pandas().data
    return table.YEAR.to_numpy().astype(np.int64), table.SUNACTIVITY.to_numpy()


def training_length(total: int) -> int:
    """Return how many values come before the last fifth."""
    return total * 4 // 5


def rmse(predictions: np.ndarray, truth: np.ndarray) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((predictions - truth) ** 2)))


def persistence(series: np.ndarray, first: int) -> np.ndarray:
    """Predict each value from index `first` on as the value before it."""
    return series[first - 1 : -1]


def autoreg(series: np.ndarray, first: int, lags: int = AUTOREG_LAGS) -> np.ndarray:
    """Predict each value from index `first` on from the true `lags` values before it, by an autoregression fitted to series[:first]."""
    fitted = AutoReg(series[:first], lags=lags).fit()
    return np.asarray(fitted.append(series[first:], refit=False).predict(start=first, end=len(series) - 1))


def lstm(model: Forecaster, series: np.ndarray, first: int) -> np.ndarray:
    """Predict each value from index `first` on; the network reads the series from its start and its state is carried throughout."""
    outputs, _ = model(torch.tensor(series, dtype=torch.float32))
    return outputs[first - 1 : -1].numpy()


def closed_loop(model: Forecaster, series: np.ndarray, first: int) -> dict[str, float]:
    """RMSE of forecasts `FORECAST_YEARS` long, from every origin after `first` that leaves room; the autoregression is fitted to series[:first]."""
    values = torch.tensor(series, dtype=torch.float32)
    fitted = AutoReg(series[:first], lags=AUTOREG_LAGS).fit()
    origins = range(first, len(series) - FORECAST_YEARS + 1)
    truth = np.stack([series[o : o + FORECAST_YEARS] for o in origins])
    generated = np.stack([model.forecast(values[:o], FORECAST_YEARS).numpy() for o in origins])
    regressed = np.stack(
        [fitted.append(series[first:o], refit=False).forecast(FORECAST_YEARS) if o > first else fitted.forecast(FORECAST_YEARS) for o in origins]
    )
    flat = np.full_like(truth, series[:first].mean())
    return {"lstm": rmse(generated, truth), "autoreg_9": rmse(regressed, truth), "training_mean": rmse(flat, truth)}


def draw_windows(values: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Draw `rows` windows [window + 1, rows] at random places, each multiplied by its own random factor."""
    starts = torch.randint(len(values) - recipe.window, (recipe.rows,), generator=generator)
    factors = torch.exp(torch.randn(recipe.rows, generator=generator) * recipe.scale_spread)
    return torch.stack([values[s : s + recipe.window + 1] for s in starts.tolist()], dim=1) * factors


def train(series: np.ndarray, recipe: Recipe, label: str) -> Forecaster:
    """Train on all of `series` to predict one year ahead, and return the exponential average of the weights, merged into one LSTM.

    AdamW with warm-up and a cosine; a window's first years are not scored, as the state is still empty. No loss over generated sequences: one was tried on the
    folds (12 and 22 years fed back) and made both the next year and the next cycle worse, while the model below keeps oscillating without it.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    values = torch.tensor(series, dtype=torch.float32)
    mean, scale = round(float(values.mean()), 3), round(float(values.std()), 3)
    model = EnsembleLSTM(recipe.members, recipe.width)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * i / recipe.steps))))
    for _ in track(range(recipe.steps), description=label):
        window = (draw_windows(values, recipe, generator) - mean) / scale
        inputs = window[:-1, :, None].expand(-1, -1, recipe.members)
        outputs = model(inputs + recipe.input_noise * torch.randn(inputs.shape, generator=generator))
        errors = (outputs - window[1:, :, None])[recipe.ignored_years :]
        loss = errors.square().mean() * recipe.members
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 4.0)
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
    return Forecaster(average.module.merged(), mean, scale)


def score(model: Forecaster, series: np.ndarray, first: int) -> dict[str, float]:
    """One-step RMSE from index `first` on of the LSTM and of its two rivals, all of which saw series[:first] only."""
    predictions = {
        "lstm": lstm(model, series, first),
        "autoreg_9": autoreg(series, first),
        "persistence": persistence(series, first),
    }
    return {name: rmse(values, series[first:]) for name, values in predictions.items()}


def manifest(model: Forecaster, width: int, start: float) -> dict[str, object]:
    """Describe the model folder as `model.yaml` does."""

    def numbers() -> dict[str, object]:
        return {"kind": "numeric", "features": 1, "names": ["sunspot_number"], "normalization": {"mean": [model.mean], "scale": [model.scale]}}

    return {
        "format": 1,
        "name": "sunspots",
        "description": "LSTM that forecasts the yearly sunspot number from the years before it.",
        "kind": "recurrent",
        "cell": "lstm",
        "num_layers": 1,
        "hidden_size": width,
        "input": numbers(),
        "output": numbers(),
        "modes": ["one_to_one", "many_to_one", "one_to_many", "many_to_many"],
        "start": start,
        "generation": {"max_steps": 22, "max_steps_limit": 100000},
        "dtype": "float32",
    }


def card(scores: dict[str, dict[str, float]], recipe: Recipe, first_test_year: int) -> Card:
    """State the facts of the model."""
    names = {"lstm": "**this LSTM**", "autoreg_9": "AutoReg, 9 lags (statsmodels)", "persistence": "persistence (last year's value)"}
    columns = ("fold_1847_1896", "fold_1897_1946", "test_1947_2008")
    rows = [(text, *(f"{scores[column][name]:.2f}" for column in columns)) for name, text in names.items()]
    ahead = scores["test_closed_loop_11_years"]
    return Card(
        title="sunspots: yearly sunspot number, forecast by an LSTM",
        summary="Reads one value a year and predicts the next year's; fed with its own predictions it draws the following solar cycles.",
        data="Yearly mean sunspot numbers 1700-2008 (309 values), shipped with statsmodels as `statsmodels.datasets.sunspots`; collected by the National "
        "Geophysical "
        "Data Center (NOAA). `examples/data/sunspots.csv` is the same series.",
        licence="Public domain, as stated by statsmodels.",
        split=f"Chronological. 1700-{first_test_year - 1} (247 years) trains; the last fifth, {first_test_year}-2008 (62 years), tests and was looked at "
        "once, for "
        "the scores below. All choices were made inside the training years, on two folds: train to 1846, validate on 1847-1896; train to 1896, validate on "
        "1897-1946.",
        training=f"{recipe.members} independent one-layer LSTMs of {recipe.width} units, trained side by side and averaged. As their recurrent weights are "
        f"block-diagonal, they are stored and served as one LSTM of {recipe.members * recipe.width} units. Loss: squared error one year ahead, over random "
        "windows of "
        f"{recipe.window} years from an empty state, each window scaled by a random factor (later cycles are higher than those trained on), with noise on "
        "the inputs; "
        f"{recipe.steps} steps of AdamW and an exponential average of the weights. Seed {recipe.seed}.",
        scores=Table(("one-step RMSE, sunspots", "1847-1896", "1897-1946", "**test 1947-2008**"), rows),
        scores_note="The LSTM reads the series from 1700 with its state carried along; AutoReg is fitted to the same training years and predicts each year "
        "from the nine "
        "true ones before it. The two folds come from models trained on their years only, and guided the choices: read them as validation, not as test. "
        f"Closed loop, {FORECAST_YEARS} years ahead from every year of the test that leaves room: RMSE {ahead['lstm']:.1f} for the LSTM, "
        f"{ahead['autoreg_9']:.1f} for "
        f"AutoReg, {ahead['training_mean']:.1f} for the mean of the training years.",
        command="python -m training.sunspots --out models/sunspots --csv examples/data/sunspots.csv",
        reproducibility=f"About a minute on one core. Equal weights need the same torch build and kind of processor; torch {torch.__version__} with 1 thread "
        "gave these.",
        use="Demonstration and tests of numeric sequences: the next value from a history, a sequence from one value, the next sequence from a sequence.",
        limits="One series and 247 years of training: it knows this star only. Start it with a decade or more of history; from fewer values the first cycle "
        "is smaller than "
        "it should be. Left alone for many cycles it settles into a regular one, with neither the height nor the year of any real maximum. It states no "
        "uncertainty, "
        "and nothing keeps its values above zero.",
    )


def write_csv(path: Path, years: np.ndarray, series: np.ndarray) -> None:
    """Write the series as `year,value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("year,value\n" + "".join(f"{year},{value:g}\n" for year, value in zip(years, series, strict=True)), encoding="utf-8")


def show(scores: dict[str, dict[str, float]]) -> None:
    """Print the scores as a table."""
    table = ConsoleTable("RMSE", "lstm", "autoreg_9", "persistence", "training_mean")
    for name, row in scores.items():
        table.add_row(name, *(f"{row[column]:.2f}" if column in row else "" for column in ("lstm", "autoreg_9", "persistence", "training_mean")))
    Console().print(table)


def main() -> None:
    """Score the folds, train on all years before the test, score the test once, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--csv", type=Path, help="also write the series there, as year,value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    years, series = read_series()
    recipe, first = Recipe(), training_length(len(series))
    scores = {}
    for begin, end in FOLDS:
        scores[f"fold_{years[begin]}_{years[end - 1]}"] = score(train(series[:begin], recipe, f"fold to {years[begin - 1]}"), series[:end], begin)
    model = train(series[:first], recipe, f"all to {years[first - 1]}")
    scores[f"test_{years[first]}_{years[-1]}"] = score(model, series, first)
    scores[f"test_closed_loop_{FORECAST_YEARS}_years"] = closed_loop(model, series, first)
    show(scores)
    write_weights(arguments.out, model.state_dict())
    write_manifest(arguments.out, manifest(model, recipe.members * recipe.width, float(series[0])))
    write_card(arguments.out, card(scores, recipe, int(years[first])), {"metric": "RMSE", **scores})
    if arguments.csv:
        write_csv(arguments.csv, years, series)


if __name__ == "__main__":
    main()
