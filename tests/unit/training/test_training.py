"""The training scripts: splits, baselines, and that the folders shipped give the scores they state."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from training import card, digits, shakespeare, sunspots
from training.ensemble import EnsembleLSTM

ROOT = Path(__file__).parents[3]
MODELS, DATA = ROOT / "models", ROOT / "examples" / "data"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    return sunspots.read_series()[1]


def shipped(name: str) -> tuple[dict, dict[str, Tensor], dict]:
    folder = MODELS / name
    manifest = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
    return manifest, load_file(folder / "weights.safetensors"), json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def test_last_fifth_of_the_years_is_the_test(series):
    years, _ = sunspots.read_series()
    first = sunspots.training_length(len(series))
    assert (len(series), first, len(series) - first) == (309, 247, 62)
    assert (years[first], years[-1]) == (1947, 2008)
    assert all(end <= first for _, end in sunspots.FOLDS)


def test_persistence_predicts_the_value_before():
    toy = np.array([1.0, 2.0, 4.0, 7.0, 11.0])
    assert sunspots.persistence(toy, 2).tolist() == [2.0, 4.0, 7.0]
    assert sunspots.rmse(sunspots.persistence(toy, 2), toy[2:]) == pytest.approx(np.sqrt((4 + 9 + 16) / 3))


def test_autoreg_uses_true_values_and_weights_of_the_training_part():
    toy = np.sin(np.arange(60) * 0.7) + 0.1 * np.random.default_rng(0).standard_normal(60)
    first, lags = 45, 3
    rows = np.column_stack([np.ones(first - lags), *(toy[lags - k : first - k] for k in range(1, lags + 1))])
    weights = np.linalg.lstsq(rows, toy[lags:first], rcond=None)[0]
    expected = [weights[0] + weights[1:] @ toy[t - lags : t][::-1] for t in range(first, 60)]
    np.testing.assert_allclose(sunspots.autoreg(toy, first, lags), expected, atol=1e-9)


def test_merged_ensemble_is_the_mean_of_its_members():
    torch.manual_seed(0)
    ensemble = EnsembleLSTM(members=3, width=4)
    values = torch.randn(20)
    merged = sunspots.Forecaster(ensemble.merged(), mean=0.0, scale=1.0)
    mean = ensemble(values[:, None, None].expand(-1, 1, 3)).mean(-1)[:, 0]
    torch.testing.assert_close(merged(values)[0], mean, atol=1e-5, rtol=0)


def test_no_gradient_joins_two_members():
    ensemble = EnsembleLSTM(members=3, width=4)
    ensemble(torch.randn(5, 2, 3)).square().sum().backward()
    blocks = ensemble.rnn.weight_hh_l0.grad.view(4, 3, 4, 3, 4)
    for i in range(3):
        for j in range(3):
            assert bool(blocks[:, i, :, j].any()) == (i == j)


def test_forecast_feeds_its_own_outputs_back():
    torch.manual_seed(0)
    model = sunspots.Forecaster(EnsembleLSTM(2, 4).merged(), mean=3.0, scale=2.0)
    history = torch.tensor([1.0, 4.0, 2.0])
    generated = model.forecast(history, 5)
    outputs, _ = model(torch.cat([history, generated]))
    torch.testing.assert_close(outputs[2:-1], generated, atol=1e-5, rtol=0)


def test_training_twice_gives_the_same_weights(series):
    recipe = sunspots.Recipe(members=2, width=4, steps=5)
    first, second = (sunspots.train(series[:150], recipe, "test").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shipped_sunspots_gives_the_scores_it_states(series):
    manifest, weights, scores = shipped("sunspots")
    rnn, head = nn.LSTM(1, manifest["hidden_size"], manifest["num_layers"]), nn.Linear(manifest["hidden_size"], 1)
    rnn.load_state_dict({name.removeprefix("rnn."): tensor for name, tensor in weights.items() if name.startswith("rnn.")})
    head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in weights.items() if name.startswith("head.")})
    (mean,), (scale,) = (manifest["input"]["normalization"][key] for key in ("mean", "scale"))
    with torch.no_grad():
        outputs = head(rnn(((torch.tensor(series, dtype=torch.float32) - mean) / scale)[:, None])[0])[:, 0] * scale + mean
    stated = scores["test_1947_2008"]
    assert sunspots.rmse(outputs[246:-1].numpy(), series[247:]) == pytest.approx(stated["lstm"], abs=0.01)
    assert sunspots.rmse(sunspots.persistence(series, 247), series[247:]) == pytest.approx(stated["persistence"], abs=1e-6)
    assert sunspots.rmse(sunspots.autoreg(series, 247), series[247:]) == pytest.approx(stated["autoreg_9"], abs=1e-3)


def test_shipped_sunspots_keeps_oscillating_on_its_own(series):
    manifest, weights, _ = shipped("sunspots")
    (mean,), (scale,) = (manifest["input"]["normalization"][key] for key in ("mean", "scale"))
    drawn = sunspots.Forecaster(weights, mean, scale).forecast(torch.tensor(series[:247], dtype=torch.float32), 220).numpy()
    peaks = [i for i in range(1, 219) if drawn[i - 1] < drawn[i] >= drawn[i + 1]]
    assert 9.0 < np.diff(peaks).mean() < 12.5
    assert drawn[-44:].std() > 0.6 * series[:247].std()
    assert -15 < drawn.min() < drawn.max() < 200


def test_digits_are_split_by_class_without_overlap():
    training, test = digits.read_images()
    assert (len(training.labels), len(test.labels)) == (1437, 360)
    assert all(34 <= count <= 38 for count in torch.bincount(test.labels).tolist())
    assert not {tuple(row) for row in training.pixels.tolist()} & {tuple(row) for row in test.pixels.tolist()}


def test_shipped_digits_gives_the_accuracy_it_states():
    manifest, weights, scores = shipped("digits")
    _, test = digits.read_images()
    mean, scale = (torch.tensor(manifest["input"]["normalization"][key]) for key in ("mean", "scale"))
    hidden = (test.pixels - mean) / scale
    for i in range(len(manifest["hidden_sizes"])):
        hidden = torch.relu(nn.functional.linear(hidden, weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"]))
    logits = nn.functional.linear(hidden, weights["head.weight"], weights["head.bias"])
    accuracy = (logits.argmax(1) == test.labels).double().mean().item()
    assert accuracy == pytest.approx(scores["test"]["accuracy"], abs=1 / 360)
    assert nn.functional.cross_entropy(logits, test.labels).item() == pytest.approx(scores["test"]["log_loss"], abs=1e-3)


def test_sunspots_csv_is_the_data_set():
    years, values = sunspots.read_series()
    with (DATA / "sunspots.csv").open(encoding="utf-8", newline="") as file:
        rows = [(int(row["year"]), float(row["value"])) for row in csv.DictReader(file)]
    assert rows == list(zip(years.tolist(), values.tolist(), strict=True))


def test_digits_csv_holds_two_held_out_images_of_each_class():
    _, test = digits.read_images()
    with (DATA / "digits.csv").open(encoding="utf-8", newline="") as file:
        rows = [[float(cell) for cell in row.values()] for row in csv.DictReader(file)]
    held_out = {(float(label), *pixels) for label, pixels in zip(test.labels.tolist(), test.pixels.tolist(), strict=True)}
    assert [row[0] for row in rows] == [digit for digit in range(10) for _ in range(2)]
    assert all(tuple(row) in held_out for row in rows)


def test_text_is_split_in_order_nine_to_one(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("cab" * 100, encoding="utf-8")
    vocabulary, training, validation = shakespeare.read_text(path)
    assert (vocabulary, len(training), len(validation)) == ("abc", 270, 30)
    assert training[:3].tolist() == [2, 0, 1]


def test_shakespeare_evaluation_completes_the_folder(tmp_path, monkeypatch, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "model"
    monkeypatch.setattr(shakespeare, "HIDDEN", 32)
    text.write_text("to be or not to be\n" * 200, encoding="utf-8")
    vocabulary, _, validation = shakespeare.read_text(text)
    torch.manual_seed(0)
    model = shakespeare.CharacterModel(len(vocabulary), 0.5)
    card.write_weights(out, {name: tensor.half() for name, tensor in model.state_dict().items()})
    monkeypatch.setattr("sys.argv", ["shakespeare", "--text", str(text), "--out", str(out), "--evaluate"])
    shakespeare.main()
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["streaming"] == pytest.approx(shakespeare.streaming_loss(model, validation), abs=1e-3)
    assert json.loads(capsys.readouterr().out) == {name: scores[name] for name in ("streaming", "block")}
    manifest = yaml.safe_load((out / "model.yaml").read_text(encoding="utf-8"))
    assert (manifest["start"], manifest["tokenizer"]["characters"]) == ("\n", vocabulary)
    assert f"{scores['streaming']:.4f}" in (out / "README.md").read_text(encoding="utf-8")


def test_manifest_of_shakespeare_names_sixty_five_characters():
    manifest = yaml.safe_load((MODELS / "shakespeare" / "model.yaml").read_text(encoding="utf-8"))
    characters = manifest["tokenizer"]["characters"]
    assert characters == "".join(sorted(set(characters)))
    assert len(characters) == manifest["input"]["vocabulary_size"] == manifest["output"]["vocabulary_size"] == 65
    assert (manifest["num_layers"], manifest["hidden_size"], manifest["start"]) == (2, 512, "\n")
