"""Measures this server beside what it could reach and beside what people use. `python -m benchmarks --help` tells what there is to measure."""
