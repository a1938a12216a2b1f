"""Sessions on a gateway: their steps go together on one stream, and again on another stream for those whose answers were lost."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import cellstate
from tests.crash.callers import count_repetition
from tests.crash.lives import Life


class GatewayCaller:
    """Steps some sessions together.

    Args:
        lives: Through one door, on one face.
    """

    def __init__(self, lives: Sequence[Life]) -> None:
        self._lives = lives
        self._face = lives[0].face
        self._random = lives[0].random
        self._gateway: Any = None
        self._channels: dict[Life, Any] = {}

    async def run(self, rounds: int) -> None:
        """Take some steps of all, and end the stream."""
        for _ in range(rounds):
            values = {life: life.chunk(1)[0] for life in self._lives}
            for life, value in values.items():
                life.ask("gateway", [[value]], emit="last", form=_form(life), draws=None)
            await self._round(values)
            await asyncio.sleep(0.02 * self._random.random())
        if self._gateway is not None:
            try:
                await self._face.do(self._gateway.finish)
            except cellstate.CellstateError as error:
                count_repetition(self._lives[0], "gateway", error, time.monotonic())
        self._gateway, self._channels = None, {}

    async def _round(self, values: dict[Life, Any]) -> None:
        left, since_s = dict(values), time.monotonic()
        while True:
            failed = await self._try(left)
            if not left:
                return
            assert failed is not None
            count_repetition(self._lives[0], "gateway", failed, since_s)
            if self._gateway is not None:
                await self._face.do(self._gateway.close)
            self._gateway, self._channels = None, {}
            await asyncio.sleep(0.1 + 0.4 * self._random.random())

    async def _try(self, left: dict[Life, Any]) -> cellstate.CellstateError | None:
        """Step those that are left, and take out of them those that were answered. Returns an error of one that was not."""
        try:
            if self._gateway is None:
                self._gateway = await self._face.do(self._face.client.gateway)
            for life in left.keys() - self._channels.keys():
                self._channels[life] = await self._face.do(self._gateway.open, life.session, form=_form(life))
            inputs = {self._channels[life]: _input(life, value) for life, value in left.items()}
            answers = await self._face.do(self._gateway.step, inputs)
        except cellstate.CellstateError as error:
            return error
        failed = None
        for life in list(left):
            answer = answers[self._channels[life]]
            if isinstance(answer, cellstate.CellstateError):
                failed = answer
                continue
            life.got(answer)
            life.done(position=answer.position)
            del left[life]
        return failed


def _form(life: Life) -> str:
    return "logits" if life.model.features is None else "values"


def _input(life: Life, value: Any) -> Any:
    return cellstate.tokens([int(value)]) if life.model.features is None else value
