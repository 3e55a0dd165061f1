# SPDX-License-Identifier: Apache-2.0
"""How fast a model or a graph is here, and how much memory it takes: what ``segship bench`` runs.

Stages are measured through the public functions in a warm process, graphs alone in a pure loop, cold start and peak
memory in fresh processes. No number comes out without the machine, the versions, the precision and the threads beside
it.
"""
