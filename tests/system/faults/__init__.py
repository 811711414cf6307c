"""The fault matrix: one table of faults (``table``), how each is injected (``inject``), and one judgement (``judge``)."""
