"""Moving a running VM's pages and state: frames, pre-copy, checkpoint epochs. Knows no Ray."""
