"""The crash harness: sessions in all modes through the real client library, while servers are killed and connections cut. No step may be lost or repeated.

    make crash MINUTES=5 ARGS="--scenario sqlite"

`run.py` puts it together; `callers.py` asks, `disturb.py` disturbs, `expected.py` computes what had to come.
"""
