# SPDX-License-Identifier: Apache-2.0
"""Imports point one way: no room of the house knows one that stands on it."""

from tests.house.package import PACKAGE, imports, is_within, own_imports, sources

SHIP_ROAD = ("ship", "backends.torch")
# The command line and the reporters stand at the end of both roads.
EDGES = ("cli", "inspection", "doctor", "tune")
RUNTIMES = {"backends.onnxruntime": {"onnxruntime"}, "backends.mnn": {"MNN"}, "backends.mindspore": {"mindspore"}}
HEAVY = {"torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino", "MNN", "mindspore", "safetensors"}
MOST_ENTRIES = 37
"""34 of the second design, with serve; then its client, and what runs over many pictures."""


def use_road():
    return [module for module in sources() if not is_within(module, SHIP_ROAD + EDGES)]


def room_of(module):
    return "backends.torch" if module == "backends.torch" else module.split(".")[0]


def reached_from(room, arrows):
    reached, waiting = set(), [room]
    while waiting:
        for other in arrows[waiting.pop()] - reached:
            reached.add(other)
            waiting.append(other)
    return reached


def test_rooms_stand_on_each_other_in_one_order():
    arrows = {room_of(module): set() for module in sources()}
    for module in filter(None, sources()):
        arrows[room_of(module)] |= {room_of(other) for other in own_imports(module)} - {room_of(module)}
    assert {room for room in arrows if room in reached_from(room, arrows)} == set()


def test_use_road_never_imports_the_ship_road():
    crossing = {module: [name for name in own_imports(module) if is_within(name, SHIP_ROAD)] for module in use_road()}
    assert {module: names for module, names in crossing.items() if names} == {}


def test_only_the_module_that_wraps_a_runtime_imports_it():
    heavy = {module: {name.split(".")[0] for name in imports(module)} & HEAVY for module in use_road()}
    assert {module: names for module, names in heavy.items() if names} == RUNTIMES


def test_house_has_few_entries():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= MOST_ENTRIES
