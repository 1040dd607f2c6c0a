"""Every published number: how it is measured, what was measured, and the documents' tables, which are written from it."""
