"""Reads what others publish: files, archives, hub repositories; finds identifiers and burned-in text."""
