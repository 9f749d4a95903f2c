"""Execution as the oracle: programs that build generation kwargs are run, and the reader must agree with the run."""
