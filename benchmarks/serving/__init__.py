# SPDX-License-Identifier: Apache-2.0
"""Proof of `segship serve` under load: waiting models, a load generator, a proxy with faults, what must hold.

Loopback only, and everything is bounded in count and time.
"""
