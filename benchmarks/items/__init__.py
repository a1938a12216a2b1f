"""The items of the benchmark programme that need servers, one module each."""
