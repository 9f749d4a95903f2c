"""A journal of the guard, for people: on the terminal, as a page, and summed up for programs."""
