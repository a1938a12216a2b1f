"""The cellstate server. Imports point one way: rpc -> sessions -> engine -> models; `app.py` alone constructs things."""
