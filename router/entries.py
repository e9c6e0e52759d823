"""What discovery holds, read and checked: a worker's endpoint, a worker's card."""

from __future__ import annotations

from dynamo.router.weights import Weights
from dynamo.shared.card import CardError, Registered, read_instance, read_registration
from dynamo.shared.discovery import key_of
from dynamo.shared.messages import Worker
from dynamo.shared.protocol import Instance


def read_worker(key: str, value: bytes) -> Worker:
    instance = read_instance(value)
    _check_key(key, key_of(instance.namespace, instance.component, instance.endpoint, instance.instance_id))
    return _worker_of(instance)


def _worker_of(instance: Instance) -> Worker:
    ((plane, address),) = instance.transport.items()
    common = {"codec": instance.request_plane_codec or "json", "device_type": instance.device_type or ""}
    match plane:
        case "tcp":
            host_port, _slash, path = address.partition("/")
            return Worker(instance.instance_id, address=host_port, path=path, **common)
        case "nats_tcp":
            return Worker(instance.instance_id, nats_subject=address, **common)
        case _:
            raise CardError(f"request plane {plane!r} is unknown; expected tcp or nats_tcp")


def read_registered(key: str, value: bytes) -> Registered:
    registered = read_registration(value)
    Weights.from_card(registered.card.router_config)  # read again by who needs it; a bad one is refused here
    said = registered.registration
    _check_key(key, key_of(said.namespace, said.component, said.endpoint, said.instance_id, said.model_suffix))
    return registered


def _check_key(key: str, expected: str) -> None:
    if key != expected:
        raise CardError(f"the value describes {expected}")
