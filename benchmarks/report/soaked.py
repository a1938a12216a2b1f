"""The report's section on the soak."""

from benchmarks.items import soak
from benchmarks.options import Options
from benchmarks.report.markdown import Pictures, number, table
from benchmarks.samples import Results


def soaked(results: Results, options: Options, pictures: Pictures) -> str | None:
    """Return the section; None where it was not measured."""
    samples = results.of("soak", options.models[0])
    if not samples:
        return None
    of, facts = samples[0].figures, results.facts["soak"]
    rows = [
        ["calls per second that the machine answers", number(facts["able_calls_per_s"])],
        ["calls per second that were made", number(soak.OVERLOAD * facts["able_calls_per_s"])],
        ["calls per second that were answered", number(of["calls_per_s"])],
        ["calls refused with RESOURCE_EXHAUSTED", number(of["refused"])],
        ["of them without RetryInfo", number(of["refused_without_retry"])],
        ["other errors, by code", ", ".join(f"{code}: {count}" for code, count in facts["other"].items()) or "none"],
        ["time of an answered call, p50 / p99, ms", f"{number(of['p50_ms'])} / {number(of['p99_ms'])}"],
        ["resident memory before, at most, after, MiB", " / ".join(number(of[f"resident_{when}"] / 2**20) for when in ("before", "most", "after"))],
        ["one step three seconds after the end, ms", number(of["after_ms"])],
    ]
    return f"""## 8. A soak

For {of["seconds"]:.0f} s {soak.OVERLOAD:.0f} times as many calls as {soak.CALLERS} callers that wait for their answers can make; each generates
{soak.STEPS} steps or takes a tenth as many in a closed loop. Five of a hundred read slowly, five vanish, five send garbage.

{table(["", ""], rows)}
"""
