"""The callers: lean processes of their own, which take little from the machine. A job comes as JSON on standard input, its result goes to standard output."""
