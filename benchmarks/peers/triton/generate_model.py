"""Triton's Python backend, decoupled: greedy generation, one response for each token.

A thread of the model's own advances all requests in flight together; they join and leave between two steps.
"""

import collections
import json
import sys
import threading
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as backend

ROWS = 256


class TritonPythonModel:
    """What the backend calls."""

    def initialize(self, args):
        """Load the weights and start the thread."""
        parameters = {key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()}
        sys.path.insert(0, parameters["peers"])
        from steppers import STEPPERS  # noqa: PLC0415 (its folder is only known now)

        self._threads = int(parameters["threads"])
        torch.set_num_threads(self._threads)
        torch.set_grad_enabled(False)
        self._step = STEPPERS[parameters["stepper"]](Path(parameters["folder"]))
        self._waiting = collections.deque()
        self._arrived = threading.Condition()
        self._stopping = False
        self._worker = threading.Thread(target=self._run, daemon=True)
        self._worker.start()

    def execute(self, requests):
        """Hand the requests to the thread; their answers come through their senders."""
        with self._arrived:
            for request in requests:
                token = int(backend.get_input_tensor_by_name(request, "TOKEN").as_numpy().flat[-1])
                steps = int(backend.get_input_tensor_by_name(request, "STEPS").as_numpy().flat[0])
                self._waiting.append((request.get_response_sender(), token, steps))
            self._arrived.notify()

    def finalize(self):
        """End the thread."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        self._worker.join(5)

    def _run(self):
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            rows, tokens, h, c = [], torch.zeros(0, dtype=torch.int64), self._step.zeros(0), self._step.zeros(0)
            while True:
                joined = self._take(len(rows))
                if joined is None:
                    return
                if joined:
                    fresh = self._step.zeros(len(joined))
                    rows += [[sender, steps] for sender, _, steps in joined]
                    tokens = torch.cat([tokens, torch.tensor([token for _, token, _ in joined])])
                    h, c = torch.cat([h, fresh], 1), torch.cat([c, fresh], 1)
                logits, h, c = self._step(tokens, h, c)
                tokens = logits.argmax(1)
                kept = self._send(rows, tokens)
                if len(kept) < len(rows):
                    index = torch.tensor(kept, dtype=torch.int64)
                    rows, tokens, h, c = [rows[row] for row in kept], tokens[index], h[:, index], c[:, index]

    def _take(self, running):
        """Return what joins the batch; wait where nothing runs. None: stop."""
        with self._arrived:
            while not (self._waiting or running or self._stopping):
                self._arrived.wait()
            if self._stopping:
                return None
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), ROWS - running))]

    @staticmethod
    def _send(rows, tokens):
        """Send each row its token; return the rows that go on."""
        values = tokens.numpy().astype(np.int32).reshape(-1, 1)
        kept = []
        for index, row in enumerate(rows):
            row[1] -= 1
            last = row[1] <= 0
            try:
                row[0].send(
                    backend.InferenceResponse([backend.Tensor("TOKEN_OUT", values[index])]), backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
                )
            except backend.TritonModelException:  # its caller has gone
                continue
            if not last:
                kept.append(index)
        return kept
