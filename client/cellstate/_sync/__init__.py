"""The sync face: grpc's own sync channel under the pure core."""
