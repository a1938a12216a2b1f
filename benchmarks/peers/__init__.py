"""The servers measured beside ours: Triton, a plain grpc.aio server, and an empty one. All read the reference models' weights from the same folders."""
