"""Thin Ray shells around plain objects: the host, the VM, the cluster."""
