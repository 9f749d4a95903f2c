"""How findings, sites and rules are shown. An output knows findings and nothing of how they came about."""
