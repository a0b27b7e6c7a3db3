"""Reads published files, archives and hub repositories; finds identifiers and burned-in text."""
