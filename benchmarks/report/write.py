"""Writes the report: README.md with tables and pictures, and the raw figures beside it."""

import dataclasses
import json
from pathlib import Path

from benchmarks.options import Options
from benchmarks.report.pictures import draw
from benchmarks.report.tables import sections
from benchmarks.samples import Results

CALLERS = {
    "compiled": """Generation and closed-loop stepping are called by compiled code: cellstate and the grpc.aio servers by the C++ caller in
`benchmarks/load/native`, Triton by perf_analyzer. Loads of other kinds are made by callers in Python.""",
    "Python": """Callers are Python, but for Triton's perf_analyzer, which is compiled: so the figures of cellstate and of the grpc.aio servers hold more of
their caller.""",
}


def write_report(results: Results, options: Options, machine: dict[str, str]) -> None:
    """Write README.md, results.json and the pictures into the folder of the options."""
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(_raw(results, options, machine))
    pictures = draw(results, options, options.out)
    (options.out / "README.md").write_text(_page(results, options, machine, pictures))


def _raw(results: Results, options: Options, machine: dict[str, str]) -> str:
    head = {
        "machine": machine,
        "rounds": options.rounds,
        "warm_s": options.warm_s,
        "measure_s": options.measure_s,
        "notes": results.notes,
        "facts": results.facts,
    }
    samples = ",\n".join(json.dumps(_rounded(dataclasses.asdict(sample))) for sample in results.samples)
    return f'{json.dumps(head, indent=1)[:-2]},\n "samples": [\n{samples}\n]}}\n'


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _page(results: Results, options: Options, machine: dict[str, str], pictures: dict[str, Path]) -> str:
    rows = "\n".join(f"| {name} | {'`' + text + '`' if name == 'command' else text} |" for name, text in machine.items())
    callers = CALLERS.get(results.facts.get("callers", ""), "")
    head = f"""# Benchmarks

Written by `make bench`. One run on one machine; the callers run on it too, as processes of their own. Shown are medians of {options.rounds} rounds, in
brackets the least and the greatest; subjects take turns within each round. Ratios are taken within a round, then their median. Only ratios carry over to
other machines. All streams of a load share one connection. All figures are in `results.json`.
{callers}

| | |
|---|---|
{rows}
"""
    notes = "\n".join(f"- {note}" for note in results.notes)
    parts = [head, *sections(results, options, pictures)]
    if notes:
        parts.append(f"## Notes\n\n{notes}\n")
    return "\n".join(parts)
