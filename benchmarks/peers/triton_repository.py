"""Writes Triton's model repository: the reference models under its sequence batcher, and decoupled for generation, in the variants that are worth comparing."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reference import Reference

SOURCES = Path(__file__).parent / "triton"
MAX_ROWS = 256
# What a sequence model is told beside its input, where slots are fixed.
_CONTROLS = """control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] } ] }
  ]"""
_STRATEGIES = {
    "direct": f"direct {{ }}\n  {_CONTROLS}",
    "direct-delay": f"direct {{ max_queue_delay_microseconds: 500 minimum_slot_utilization: 0.5 }}\n  {_CONTROLS}",
    "oldest": f"oldest {{ max_candidate_sequences: {MAX_ROWS} }}",
    "oldest-delay": f"oldest {{ max_candidate_sequences: {MAX_ROWS} preferred_batch_size: [ 32, 64 ] max_queue_delay_microseconds: 500 }}",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to serve a reference model.

    Attributes:
        strategy: A strategy of the sequence batcher, or `generate`.
        stepper: `cell` or `packed`.
        threads: Of torch.
    """

    strategy: str
    stepper: str
    threads: int

    def __str__(self) -> str:
        return f"{self.strategy}-{self.stepper}-{self.threads}"

    def model_name(self, model: str) -> str:
        """Return the name under which Triton serves it."""
        return f"{model}-{self}"


def write_repository(folder: Path, model: Reference, model_folder: Path, variants: list[Variant]) -> None:
    """Write one folder for each variant of a model."""
    for variant in variants:
        at = folder / variant.model_name(model.name)
        (at / "1").mkdir(parents=True, exist_ok=True)
        generates = variant.strategy == "generate"
        shutil.copy(SOURCES / ("generate_model.py" if generates else "sequence_model.py"), at / "1" / "model.py")
        body = _generating() if generates else _stepping(variant, model)
        (at / "config.pbtxt").write_text(_common(variant, model, model_folder) + body)


def _common(variant: Variant, model: Reference, model_folder: Path) -> str:
    values = {"folder": model_folder, "peers": SOURCES.parent, "stepper": variant.stepper, "threads": variant.threads}
    parameters = "".join(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in values.items())
    return f'name: "{variant.model_name(model.name)}"\nbackend: "python"\ninstance_group [ {{ count: 1 kind: KIND_CPU }} ]\n{parameters}'


def _stepping(variant: Variant, model: Reference) -> str:
    return f"""max_batch_size: {MAX_ROWS}
input [ {{ name: "TOKEN" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "LOGITS" data_type: TYPE_FP32 dims: [ {model.vocabulary} ] }} ]
sequence_batching {{
  max_sequence_idle_microseconds: 60000000
  {_STRATEGIES[variant.strategy]}
}}
"""


def _generating() -> str:
    return """max_batch_size: 0
model_transaction_policy { decoupled: true }
input [ { name: "TOKEN" data_type: TYPE_INT32 dims: [ -1 ] }, { name: "STEPS" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "TOKEN_OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
