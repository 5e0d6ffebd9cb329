"""Readers of data sets: the files of one layout -> `Dataset`."""
