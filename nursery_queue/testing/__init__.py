"""Tools for testing applications that use nursery_queue."""

from __future__ import annotations
