"""`cellstate demo`: the four modes, shown on the bundled models by calling a real server."""
