#!/usr/bin/env python3
"""A stand-in for the Terraform providers `external` and `http`: under the name of one, as Terraform calls it, it serves that one.

It speaks version 5 of Terraform's plugin protocol and the part of go-plugin's that a provider of data sources needs. The few
messages are written by hand, so that no code is generated. Each data source takes and gives what the recipes in docs/consumers.md
use of the real one, and refuses what that one refuses.

TLS is not spoken, since Python's gRPC does not take the certificate that Terraform makes for itself (on the curve P-521). Whoever
runs Terraform sets TF_DISABLE_PLUGIN_TLS.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import msgpack

COOKIE = ("TF_PLUGIN_MAGIC_COOKIE", "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2")
REQUIRED, OPTIONAL, COMPUTED = 4, 5, 6


class Refused(Exception):
    """What Terraform shows as an error: a summary and a detail."""


def external(config):
    """Runs `program`; what it prints is the result."""
    program, query = config["program"], config["query"] or {}
    try:
        ran = subprocess.run(program, input=json.dumps(query).encode(), capture_output=True)
    except OSError as error:
        raise Refused("External Program Lookup Failed", str(error))
    if ran.returncode != 0:
        raise Refused("External Program Execution Failed", ran.stderr.decode(errors="replace"))
    try:
        result = json.loads(ran.stdout)
    except ValueError as error:
        raise Refused("Unexpected External Program Results", str(error))
    if not isinstance(result, dict) or not all(isinstance(value, str) for value in result.values()):
        raise Refused("Unexpected External Program Results", "the output must be a JSON object of texts")
    return {"result": result}


def http(config):
    """Gets `url`. An answer of any status is an answer."""
    request = urllib.request.Request(config["url"], headers=config["request_headers"] or {})
    try:
        response = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        response = error
    except OSError as error:
        raise Refused("Error making request", str(error))
    with response:
        headers = {name: ", ".join(response.headers.get_all(name)) for name in response.headers}
        body = response.read().decode(errors="replace")
        return {"response_body": body, "status_code": response.status, "response_headers": headers}


TEXTS = ["map", "string"]
# The attributes of each data source, and the function that computes those which the configuration does not give.
DATA_SOURCES = {
    "external": (
        external,
        {"program": (["list", "string"], REQUIRED), "query": (TEXTS, OPTIONAL), "result": (TEXTS, COMPUTED)},
    ),
    "http": (
        http,
        {
            "url": ("string", REQUIRED),
            "request_headers": (TEXTS, OPTIONAL),
            "response_body": ("string", COMPUTED),
            "status_code": ("number", COMPUTED),
            "response_headers": (TEXTS, COMPUTED),
        },
    ),
}


def varint(number):
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number, value):
    """A field of a protobuf message: a number, or a text or message with its length before it."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message):
    """The fields of a message by their numbers. None that is read here is repeated."""
    at = 0

    def read_varint():
        nonlocal at
        number, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    found = {}
    while at < len(message):
        key = read_varint()
        value = read_varint()
        if key & 7 == 2:
            at, value = at + value, message[at : at + value]
        found[key >> 3] = value
    return found


def attribute(name, kind, use):
    return field(1, name) + field(2, json.dumps(kind)) + field(use, 1)


def schema(attributes):
    return field(2, b"".join(field(2, attribute(name, *rest)) for name, rest in attributes.items()))


def get_schema(source, _request):
    _, attributes = DATA_SOURCES[source]
    return field(1, schema({})) + field(3, field(1, source) + field(2, schema(attributes)))


def prepare(_source, request):
    """The configuration of the provider, as it came: there is nothing to prepare."""
    return field(1, fields(request)[1])


def read(source, request):
    """Reads the data source: its state, or a diagnostic."""
    compute, _ = DATA_SOURCES[source]
    config = msgpack.unpackb(fields(fields(request)[2])[1])
    try:
        state = {**config, **compute(config)}
    except Refused as refused:
        summary, detail = refused.args
        return field(2, field(1, 1) + field(2, summary) + field(3, detail))
    return field(1, field(1, msgpack.packb(state)))


def nothing(_source, _request):
    return b""


METHODS = {
    "/tfplugin5.Provider/GetSchema": get_schema,
    "/tfplugin5.Provider/PrepareProviderConfig": prepare,
    "/tfplugin5.Provider/ValidateDataSourceConfig": nothing,
    "/tfplugin5.Provider/Configure": nothing,
    "/tfplugin5.Provider/ReadDataSource": read,
    "/tfplugin5.Provider/Stop": nothing,
}


class Methods(grpc.GenericRpcHandler):
    """The methods above for one data source, and go-plugin's own that ends the program."""

    def __init__(self, source, server):
        self.source, self.server = source, server

    def service(self, call):
        if call.method == "/plugin.GRPCController/Shutdown":
            return grpc.unary_unary_rpc_method_handler(self.shut_down)
        if call.method not in METHODS:
            return None
        method = METHODS[call.method]
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: method(self.source, request))

    def shut_down(self, _request, _context):
        # With time for this very answer to leave.
        self.server.stop(grace=1)
        return b""


def main():
    name, value = COOKIE
    if os.environ.get(name) != value:
        sys.exit("this is a plugin of Terraform, which starts it")
    # `terraform-provider-external_v1.0.0`
    source = os.path.basename(sys.argv[0]).removeprefix("terraform-provider-").split("_")[0]
    server = grpc.server(ThreadPoolExecutor())
    server.add_generic_rpc_handlers([Methods(source, server)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"1|5|tcp|127.0.0.1:{port}|grpc", flush=True)
    server.wait_for_termination()


main()
