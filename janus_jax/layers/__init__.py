"""Building blocks shared by the nets: every one takes its compute dtype from its input."""
