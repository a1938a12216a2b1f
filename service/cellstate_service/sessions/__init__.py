"""Sessions: names and owners, lifecycle, expiry, snapshots, and the calls that are on them. Lives in the event loop; knows neither gRPC nor torch."""
