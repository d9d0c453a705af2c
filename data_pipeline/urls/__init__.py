"""Addresses of pages: one spelling of each, and lists of those that are not wanted."""
