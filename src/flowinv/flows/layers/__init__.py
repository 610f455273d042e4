"""The layers flows are made of."""
