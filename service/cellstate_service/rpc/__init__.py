"""The contract's services: decode, call one method of `sessions/`, encode. Protobuf and gRPC stop here."""
