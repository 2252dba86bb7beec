"""Attention models of other authors, one a file, all under `asmil.protocol.AttentionMIL`; names in `asmil.registry`.

Each is written anew from the equations of its paper; where the paper and its released code differ, the module says
which is followed. All compute one bag at a time, as their sources do (`asmil.baselines.bag_model`).
"""
