"""Every published number: how it is measured, what was measured, and the documents' tables, written from it."""
