from cellstate.cli.demo.figures import Moves, Series, parse

BEFORE = """# HELP cellstate_calls_total Calls that ended.
# TYPE cellstate_calls_total counter
cellstate_calls_total{code="OK",method="Run"} 2.0
cellstate_models_loaded 3.0
"""
AFTER = """cellstate_calls_total{code="OK",method="Run"} 5.0
cellstate_calls_total{code="NOT_FOUND",method="Run"} 1.0
cellstate_calls_total{code="OK",method="OneToOne"} 0.0
cellstate_models_loaded 3.0
cellstate_step_seconds_bucket{le="1e-05",model="a"} 0.0
cellstate_step_seconds_sum{model="a"} 0.5
cellstate_step_seconds_count{model="a"} 10.0
"""


def test_text_format_is_read() -> None:
    figures = parse(BEFORE)

    assert figures[Series("cellstate_models_loaded", frozenset())] == 3.0
    assert figures[Series("cellstate_calls_total", frozenset({("code", "OK"), ("method", "Run")}))] == 2.0


def test_moves_are_differences() -> None:
    moves = Moves(parse(BEFORE), parse(AFTER))

    assert moves.total("cellstate_calls_total") == 4.0
    assert moves.total("cellstate_calls_total", code="OK") == 3.0
    assert moves.by("cellstate_calls_total", "method") == {"Run": 4.0}
    assert moves.mean("cellstate_step_seconds", model="a") == 0.05
    assert moves.mean("cellstate_step_seconds", model="b") is None
