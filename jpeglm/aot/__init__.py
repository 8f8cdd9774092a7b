"""The step compiled for machines that are not here."""
