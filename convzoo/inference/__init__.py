"""Opened models at work: measured on a data set, or asked about pictures."""
