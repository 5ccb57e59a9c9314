"""Learning rates: how they carry over to wider models, and laws of the best. Imports without torch."""
