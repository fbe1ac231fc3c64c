"""Other libraries' names over ringloop, so that a program moves by changing an import."""
