"""Execution as the oracle: generated programs are run, and the reader must agree with the run."""
