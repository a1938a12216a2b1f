"""What `import cellstate` offers: names, and two faces that cannot drift apart."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files

import pytest

import cellstate
from cellstate import connection, errors
from cellstate.v1 import model_pb2, session_pb2

PAIRS = [
    (cellstate.Client, cellstate.AsyncClient),
    (cellstate.Session, cellstate.AsyncSession),
    (cellstate.Outputs, cellstate.AsyncOutputs),
    (cellstate.Stream, cellstate.AsyncStream),
    (cellstate.Gateway, cellstate.AsyncGateway),
    (cellstate.Channel, cellstate.AsyncChannel),
]
OPTIONS = [
    cellstate.DrawOptions,
    cellstate.CallOptions,
    cellstate.DirectiveOptions,
    cellstate.GenerationOptions,
    cellstate.StreamOptions,
    cellstate.ChannelOptions,
    cellstate.SessionOptions,
    cellstate.ConnectionOptions,
]
PROTOCOL = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__", "__anext__": "__next__"}


def methods(cls):
    names = {name for name in dir(cls) if not name.startswith("_")} | {name for name in vars(cls) if name in PROTOCOL or name in PROTOCOL.values()}
    return {PROTOCOL.get(name, name): inspect.getattr_static(cls, name) for name in names}


def shape(function):
    """A signature without what must differ: Async before a name, and what is awaited."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default, re.sub(r"Async|Awaitable|_aio|_sync", "", str(p.annotation))) for p in parameters]


@pytest.mark.parametrize(("sync", "aio"), PAIRS)
def test_both_faces_have_the_same_names_and_signatures(sync, aio):
    ours, theirs = methods(sync), methods(aio)
    assert ours.keys() == theirs.keys()
    for name, member in ours.items():
        if isinstance(member, property):
            assert isinstance(theirs[name], property), name
        else:
            # a whole sequence, an iterable, and on the asyncio face an asynchronous one too
            assert [p[:3] for p in shape(member)] == [p[:3] for p in shape(theirs[name])], name
            annotations = [(a[3], b[3]) for a, b in zip(shape(member), shape(theirs[name]), strict=True) if a[0] != "inputs"]
            assert all(a == b for a, b in annotations), (name, annotations)


@pytest.mark.parametrize(("sync", "aio"), PAIRS)
def test_public_methods_are_documented_and_typed(sync, aio):
    for cls in (sync, aio):
        for name, member in methods(cls).items():
            function = member.fget if isinstance(member, property) else member
            assert inspect.getdoc(function), (cls, name)
            assert inspect.signature(function).return_annotation is not inspect.Signature.empty, (cls, name)


def test_all_lists_exactly_the_public_names():
    modules = {name for name in vars(cellstate) if inspect.ismodule(getattr(cellstate, name))}
    public = {name for name in vars(cellstate) if not name.startswith("_")} - modules | {"__version__"}
    assert sorted(cellstate.__all__) == sorted(public)
    assert len(set(cellstate.__all__)) == len(cellstate.__all__)


def test_every_error_is_offered():
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.CellstateError)}
    assert classes <= set(cellstate.__all__)


def test_version_is_that_of_the_distribution():
    assert cellstate.__version__ == version("cellstate")


def test_the_package_is_marked_as_typed():
    assert files("cellstate").joinpath("py.typed").is_file()


def test_importing_needs_neither_torch_nor_the_command_nor_a_warning():
    code = "import sys, cellstate; print({m.partition('.')[0] for m in sys.modules} & {'torch', 'typer', 'rich', 'grpc_status', 'cellstate_service'})"
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_no_grpc_or_protobuf_type_in_public_signatures():
    for cls in [cls for pair in PAIRS for cls in pair]:
        for name, member in methods(cls).items():
            if not isinstance(member, property):
                assert not re.search(r"grpc|_pb2", str(inspect.signature(member))), (cls, name)


def test_options_as_keywords_and_as_value_objects_name_the_same():
    assert {field.name for field in dataclasses.fields(cellstate.Sampling)} == cellstate.DrawOptions.__optional_keys__
    assert {field.name for field in dataclasses.fields(cellstate.Generation)} == cellstate.DirectiveOptions.__optional_keys__
    assert cellstate.SessionChanges.__optional_keys__ < cellstate.SessionOptions.__optional_keys__
    connection_fields = {field.name for field in dataclasses.fields(connection.Connection)}
    assert cellstate.ConnectionOptions.__optional_keys__ < connection_fields


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_is_explained(options):
    family = [other for other in OPTIONS if other.__optional_keys__ <= options.__optional_keys__]
    for key in options.__optional_keys__:
        assert any(f"    {key}: " in other.__doc__ for other in family), key


def test_service_config_repeats_reads_only():
    config = json.loads(files("cellstate").joinpath("service_config.json").read_text())
    services = {d.full_name: d for d in (model_pb2.DESCRIPTOR.services_by_name["ModelService"], session_pb2.DESCRIPTOR.services_by_name["SessionService"])}
    for method_config in config["methodConfig"]:
        assert method_config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
        for name in method_config["name"]:
            assert name["method"] in services[name["service"]].methods_by_name
            assert name["method"].startswith(("Get", "List"))
