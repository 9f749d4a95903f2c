"""What the guard sees by itself of a loop written with a framework, one module for each."""
