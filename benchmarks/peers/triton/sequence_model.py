"""Triton's Python backend: one step of a reference model for each request of a sequence.

Triton's sequence batcher hands over one request of each sequence that has one; they are one batch here. State lies in two slabs [layers, slots, hidden].
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as backend

SLOTS = 1024
STARTS, ENDS = backend.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, backend.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END


class TritonPythonModel:
    """What the backend calls."""

    def initialize(self, args):
        """Load the weights and reserve the slabs."""
        parameters = {key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()}
        sys.path.insert(0, parameters["peers"])
        from steppers import STEPPERS  # noqa: PLC0415 (its folder is only known now)

        torch.set_num_threads(int(parameters["threads"]))
        torch.set_grad_enabled(False)
        self._step = STEPPERS[parameters["stepper"]](Path(parameters["folder"]))
        self._h, self._c = self._step.zeros(SLOTS), self._step.zeros(SLOTS)
        self._free = list(range(SLOTS))
        self._slot_of = {}

    def execute(self, requests):
        """Answer one step of each sequence in `requests`."""
        with torch.inference_mode():
            responses = [None] * len(requests)
            rows = []
            for index, request in enumerate(requests):
                if self._is_padding(request):
                    responses[index] = backend.InferenceResponse([])
                else:
                    rows.append((index, request))
            if rows:
                self._answer(rows, responses)
            return responses

    @staticmethod
    def _is_padding(request):
        """The direct strategy fills slots without a request."""
        ready = backend.get_input_tensor_by_name(request, "READY")
        return ready is not None and not ready.as_numpy().flat[0]

    def _slot(self, request):
        sequence = request.correlation_id()
        if request.flags() & STARTS:
            slot = self._slot_of.get(sequence)
            if slot is None:
                slot = self._slot_of[sequence] = self._free.pop()
            self._h[:, slot] = 0
            self._c[:, slot] = 0
            return slot
        return self._slot_of[sequence]

    def _answer(self, rows, responses):
        slots = torch.tensor([self._slot(request) for _, request in rows])
        tokens = [backend.get_input_tensor_by_name(request, "TOKEN").as_numpy().flat[0] for _, request in rows]
        logits, h, c = self._step(torch.from_numpy(np.array(tokens, dtype=np.int64)), self._h[:, slots], self._c[:, slots])
        self._h[:, slots] = h
        self._c[:, slots] = c
        values = logits.numpy()
        for row, (index, request) in enumerate(rows):
            responses[index] = backend.InferenceResponse([backend.Tensor("LOGITS", values[row : row + 1])])
            if request.flags() & ENDS:
                self._free.append(self._slot_of.pop(request.correlation_id()))
