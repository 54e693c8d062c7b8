"""Layers that keep a state follow a packed prefix tree: where branches leave it, the state forks.

A short convolution goes on from the last inputs of its own path, a scan from the state in which the node that
it continues has ended. Projections, gates and norms look at one position each and stay the model's own code:
only the functions by which transformers' mixers look along the sequence are replaced, in single modules.
"""
