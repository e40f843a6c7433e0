"""Diffusion policies that other projects trained, as heads: read from their files, without their packages."""
