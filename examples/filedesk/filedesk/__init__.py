"""Filedesk: upload files, have them examined in the background, watch, download."""
