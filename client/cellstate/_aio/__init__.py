"""The asyncio face: grpc.aio under the pure core. Names and parameters are those of the sync face; a test compares them."""
