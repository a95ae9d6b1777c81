"""What a person or a job touches: Python API, command line, configuration, image store."""
