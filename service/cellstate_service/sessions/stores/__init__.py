"""Where sessions are kept beside the server's memory: one contract (`store.py`), and who keeps it."""
