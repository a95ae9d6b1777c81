"""The native core: one vCPU on Unicorn, in C, and the few lines that load it."""
