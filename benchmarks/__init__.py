"""Measurements on this machine. What is compared is measured side by side in one run."""
