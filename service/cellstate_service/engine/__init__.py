"""The engine advances many sessions together, step by step: scheduler, state pool, runner, sampler. Nothing in here knows gRPC, names or owners."""
