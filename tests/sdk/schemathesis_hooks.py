"""Lets what schemathesis makes up meet what there is on the server: its model, a session, a trace."""

import os

import schemathesis

THINGS = {
    "/v1/models/{id}": "PONDER_TEST_MODEL",
    "/v1/branches/{id}/generate": "PONDER_TEST_SESSION",
    "/v1/branches/{id}/fork": "PONDER_TEST_SESSION",
    "/v1/branches/{id}/score": "PONDER_TEST_SESSION",
    "/v1/traces/{id}/outcome": "PONDER_TEST_TRACE",
}


@schemathesis.hook
def map_body(context, body):
    """Any other model is a 404, and half of all bodies name one."""
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = os.environ["PONDER_TEST_MODEL"]
    return body


@schemathesis.hook
def map_path_parameters(context, parameters):
    thing = THINGS.get(context.operation.path)
    if thing and parameters and len(str(parameters.get("id", ""))) % 2:
        parameters["id"] = os.environ[thing]
    return parameters
