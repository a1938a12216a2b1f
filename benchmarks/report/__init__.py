"""Turns results into tables, pictures and raw figures."""
