"""Scripts that train the bundled models and write their folders under `models/`. Nothing the server or the client needs at run time lives here."""
